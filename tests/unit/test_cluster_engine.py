"""What is done with the engine, on a stand-in for it that holds containers and networks and can refuse."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
from docker.errors import DockerException, NotFound

from sandbox.cluster import (
    bringup,
    containers,
    furnishing,
    guard,
    kind,
    leftovers,
    looking,
    making,
    node_images,
    nodes,
    ownership,
    reach,
    record,
    teardown,
)
from sandbox.cluster.owner import Owner
from sandbox.cluster.record import Cluster
from sandbox.errors import ClusterError, EnvironmentMissing, UsageError
from sandbox.host.engine import Engine
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.gpu import GpuGroup
from tests.unit.api_server import Answer, core, serving
from tests.unit.container_engine import SPEC, FakeEngine, installed, put, refusal

GONE = Owner(os.getpid(), -1.0)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return installed(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("cause", "kind_", "says"),
    [
        (refusal("network sandbox-solo not found"), ClusterError, "network sandbox-solo not found"),
        (NotFound("no such container"), ClusterError, "no such container"),
        (requests.ConnectionError("Connection aborted"), EnvironmentMissing, "Connection aborted"),
        (requests.ReadTimeout("Read timed out"), EnvironmentMissing, "Read timed out"),
        (DockerException("Error while fetching"), EnvironmentMissing, "Error while fetching"),
        (ConnectionResetError("reset by peer"), EnvironmentMissing, "reset by peer"),
    ],
)
def test_an_engine_that_refuses_or_is_silent_is_no_bug_of_ours(cause: Exception, kind_: type, says: str) -> None:
    with pytest.raises(EnvironmentMissing) as told, containers.engine_errors("solo"):
        raise cause
    assert type(told.value) is kind_
    assert (told.value.where, says in str(told.value), "sandbox doctor" in told.value.fix) == ("solo", True, True)


def start(cluster: Cluster) -> object:
    return nodes.start(cluster, cluster.node_names[0])


@pytest.mark.parametrize(
    "act",
    [
        start,
        nodes.states,
        lambda cluster: nodes.load_images(cluster, ["toolbox:1"]),
        lambda cluster: looking.current(cluster.name),
        lambda cluster: leftovers.reap(),
        lambda cluster: teardown.down(cluster.name),
        guard.container_problems,
    ],
)
def test_every_way_to_the_engine_tells_its_failure_as_one(engine: FakeEngine, act: Callable[[Cluster], object]) -> None:
    cluster = put(engine)
    engine.broken = refusal("layer does not exist")
    with pytest.raises(ClusterError, match="the engine refused") as refused:
        act(cluster)
    assert "layer does not exist" in str(refused.value)


def test_one_leftover_the_engine_will_not_remove_does_not_stop_the_others(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, owner=GONE)
    record.mark_creating("half", "abc", engine=engine.identity)
    removed: list[str] = []

    def remove(_: object, name: str) -> None:
        if name == "half":
            raise refusal("driver failed")
        removed.append(name)

    monkeypatch.setattr(containers, "remove", remove)
    assert leftovers.reap() == removed == ["solo"]
    assert record.creating("half")


def test_the_network_goes_only_when_no_container_is_left_on_it(engine: FakeEngine) -> None:
    put(engine)
    engine.held[0].refuses = 2
    kept: list[int] = []
    remove = engine.held[0].remove

    def watched(**_: object) -> None:
        kept.append(len(engine.wires))
        remove()

    engine.held[0].remove = watched  # type: ignore[method-assign]
    assert containers.remove(cast("Any", engine), "solo") == ["container solo-control-plane", "network sandbox-solo"]
    assert kept == [1, 1, 1]
    assert (engine.held, engine.wires) == ([], [])


def test_what_could_not_be_removed_is_still_ours_afterwards(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine)
    engine.held[0].refuses = 1000
    monkeypatch.setattr(containers, "_REMOVE_SECONDS", 0.2)
    with pytest.raises(ClusterError, match="could not be removed completely"):
        containers.remove(cast("Any", engine), "solo")
    assert len(engine.wires) == 1
    assert ownership.survey(cast("Any", engine), "solo").strangers == ()


@pytest.mark.parametrize("changes", [{"shape": "older"}, {"image": "node:0"}])
def test_an_orphan_of_another_make_is_cleared_and_a_kept_one_is_refused(
    engine: FakeEngine, changes: dict[str, str]
) -> None:
    put(engine, owner=GONE, **changes)
    assert bringup._running(cast("Any", engine), SPEC, "solo", None, image="node:1") is None
    assert (engine.held, engine.wires, record.names()) == ([], [], [])
    put(engine, **changes)
    with pytest.raises(UsageError, match="runs "):
        bringup._running(cast("Any", engine), SPEC, "solo", None, image="node:1")
    assert len(engine.held) == 1


LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@pytest.mark.parametrize(("status", "looks"), [("exited", 2), ("running", 0)])
def test_a_node_that_was_started_is_believed_only_once_its_kubelet_gave_word(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, looks: int
) -> None:
    known = put(engine, owner=GONE)
    engine.held[0].status = status
    monkeypatch.setattr(bringup, "prove_ours", lambda _: None)
    lease = {"metadata": {"name": "solo-control-plane"}}
    old, new = ({**lease, "spec": {"renewTime": f"{year}-01-01T00:00:00.000000Z"}} for year in (2020, 2999))
    lists = [Answer(200, {"metadata": {"resourceVersion": "1"}, "items": [each]}) for each in (old, new)]
    with serving(tmp_path) as (server, kube):
        monkeypatch.setattr(bringup.Kube, "connect", lambda *_: kube)
        server.on("GET", "/readyz", Answer(200, "ok"))
        server.on("GET", "/apis/coordination.k8s.io/v1", Answer(200, core(("leases", "Lease", True))))
        change = Answer(lines=[{"type": "MODIFIED", "object": new}])
        server.rules.append(
            lambda asked: (change if "watch" in asked.query else lists.pop(0)) if asked.path == LEASES else None
        )
        current = bringup._running(cast("Any", engine), SPEC, "solo", Owner.me(), image="node:1")
        assert len([each for each in server.seen("GET", LEASES) if "watch" not in each.query]) == looks
    assert current == record.find("solo")
    assert current is not None
    assert (current.owner, current.uid) == (Owner.me(), known.uid)


@pytest.fixture
def machine(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Beside the engine, a machine that can carry a cluster and has every image."""
    running = Engine("running", "unix:///nowhere", "a stand-in", cgroup="2")
    monkeypatch.setattr(bringup, "prepare", lambda: running)
    monkeypatch.setattr(bringup, "require", lambda _: None)
    monkeypatch.setattr(bringup.images, "tool", lambda _: Path("/nowhere/kind"))
    monkeypatch.setattr(bringup.images, "ensure", ensured)
    return engine


def ensured(names: list[str]) -> dict[str, Any]:
    assert not record.busy("solo"), "images are had under the lock"
    return {name: SimpleNamespace(ref=f"{name}:1") for name in names}


def test_a_cluster_that_was_taken_off_its_network_is_told_at_once(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = put(engine)
    engine.held[0].attrs["NetworkSettings"]["Networks"] = {}
    monkeypatch.setattr(nodes, "start_all", lambda *_: pytest.fail("nothing of it can answer"))
    with pytest.raises(ClusterError, match="taken off its network") as told:
        bringup._running(cast("Any", engine), SPEC, "solo", None, image=known.image)
    assert "solo-control-plane is not on the cluster's network" in str(told.value)
    assert "sandbox down solo" in told.value.fix
    assert looking.status("solo").problems[-1] == "solo-control-plane is not on the cluster's network"


def test_an_engine_that_fails_on_the_way_up_is_told_as_such(
    machine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def running(*_: object, **__: object) -> None:
        raise refusal("cannot start a container that has no network")

    monkeypatch.setattr(bringup, "_running", running)
    with pytest.raises(ClusterError, match="the engine refused") as refused:
        bringup.up(SPEC)
    assert refused.value.where == "solo"


def test_a_running_cluster_gets_what_its_spec_now_asks_for(
    machine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(machine)
    done: list[object] = []
    monkeypatch.setattr(bringup, "_running", lambda *_, **__: made)
    monkeypatch.setattr(bringup.Kube, "connect", lambda *_: "kube")
    monkeypatch.setattr(furnishing, "furnish", lambda *given: done.append(given))
    monkeypatch.setattr(bringup.node_images, "load", lambda there, refs: done.append((there[0].name, refs)))
    assert bringup.up(SPEC, app_images=["toolbox"]) is made
    assert done == [("solo-control-plane", ["toolbox:1"]), ("kube", SPEC, 1, {"toolbox": "toolbox:1"})]


@pytest.mark.parametrize("gpu", [[], [GpuGroup(profile="h100")]])
def test_gpus_are_waited_for_only_where_the_spec_has_some(monkeypatch: pytest.MonkeyPatch, gpu: list[GpuGroup]) -> None:
    done: list[object] = []

    def apply(kube: object, spec: ClusterSpec, nodes: list[str], image: str) -> bool:
        done.append((nodes, image))
        return bool(spec.gpu)

    monkeypatch.setattr(furnishing.addons, "apply", lambda *_: None)
    monkeypatch.setattr(furnishing, "wait_for", lambda *_, **__: None)
    monkeypatch.setattr(furnishing.gpus, "in_order", lambda *_: ["solo-control-plane"])
    monkeypatch.setattr(furnishing.gpus, "apply", apply)
    monkeypatch.setattr(furnishing.gpus, "wait", lambda kube, spec, nodes: done.append(nodes))
    spec = SPEC.model_copy(update={"gpu": gpu})
    refs = {name: f"{name}:1" for name in bringup.addons.images(spec)}
    furnishing.furnish(cast("Any", None), spec, 1, refs)
    named = ["solo-control-plane"]
    assert done == ([(named, "gpu-emulator:1"), named] if gpu else [([], "")])


def test_a_mistake_of_ours_in_a_create_is_shown_as_one_and_its_logs_are_kept(
    machine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def make_network(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(containers, "make_network", make_network)
    with pytest.raises(RuntimeError, match="no such thing"):
        bringup.up(SPEC)
    assert "interrupted" not in capsys.readouterr().err
    (digest,) = (tmp_path / "state" / "logs").glob("solo-*/digest.txt")
    assert digest.read_text() == "RuntimeError: no such thing\n"
    assert record.names() == []


def test_a_disk_that_is_too_full_for_logs_hides_no_cause_and_keeps_no_cluster(
    machine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make_network(*_: object, **__: object) -> None:
        put(machine)
        (tmp_path / "state" / "logs").write_text("no folder can be made here")
        raise ClusterError("the /var of a node could not be copied")

    monkeypatch.setattr(containers, "make_network", make_network)
    with pytest.raises(ClusterError, match="did not come up") as failed:
        bringup.up(SPEC)
    assert "could not be copied" in str(failed.value)
    assert (machine.held, record.names()) == ([], [])


def test_an_engine_that_fails_in_a_create_leaves_logs_and_a_cluster_error(
    machine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_network(*_: object, **__: object) -> None:
        raise requests.ReadTimeout("Read timed out")

    monkeypatch.setattr(containers, "make_network", make_network)
    with pytest.raises(ClusterError, match="its logs are kept") as failed:
        bringup.up(SPEC)
    assert "Read timed out" in str(failed.value)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_passed_on_and_the_create_undone(
    machine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: type[BaseException]
) -> None:
    def make_network(*_: object, **__: object) -> None:
        raise end

    monkeypatch.setattr(containers, "make_network", make_network)
    with pytest.raises(end):
        bringup.up(SPEC)
    assert "interrupted" in capsys.readouterr().err
    assert record.names() == []


def test_nodes_that_do_not_answer_here_are_told_plainly_and_the_cluster_is_removed(
    machine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(*_: object, **__: object) -> None:
        put(machine)

    monkeypatch.setattr(containers, "make_network", lambda *_, **__: None)
    monkeypatch.setattr(making, "_volumes", lambda *_: ["/volumes/solo"])
    monkeypatch.setattr(kind, "create", create)
    monkeypatch.setattr(reach, "_SECONDS", 0.1)
    monkeypatch.setattr(reach, "_ONE_TRY_SECONDS", 0.1)
    with pytest.raises(ClusterError, match="not reachable from this machine") as told:
        bringup.up(SPEC)
    assert "192.0.2.2:6443" in str(told.value)  # of a network kept for documents
    assert "Docker Desktop" in str(told.value)
    assert "Linux" in told.value.fix
    assert (machine.held, machine.wires, record.names()) == ([], [], [])


def test_a_node_that_answers_is_within_reach() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as there:
        reach.require_reach("solo", "127.0.0.1", port=there.getsockname()[1])


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a `docker` first on the PATH whose `save` and `exec` are these shell commands."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")

    def write(save: str, import_: str) -> None:
        program = tmp_path / "docker"
        program.write_text(f'#!/bin/sh\ncase "$3" in\nsave) {save};;\nexec) {import_};;\nesac\n')
        program.chmod(0o755)

    return write


NODES = cast("Any", [SimpleNamespace(id="1", name="a"), SimpleNamespace(id="2", name="b")])


@pytest.mark.parametrize(
    ("save", "import_"), [("exec sleep 600", "exec cat"), ("exec cat /dev/zero", "exec sleep 600")]
)
def test_loading_that_does_not_end_is_ended(
    docker: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, save: str, import_: str
) -> None:
    docker(save, import_)
    monkeypatch.setattr(node_images, "_STREAM_SECONDS", 0.5)
    with pytest.raises(ClusterError, match="loading images took longer") as late:
        node_images._stream(["toolbox:1"], NODES)
    assert late.value.where == "a, b"


def test_every_node_gets_all_of_the_archive(docker: Callable[[str, str], None], tmp_path: Path) -> None:
    docker("exec head -c 3000000 /dev/zero", f'exec cat > "{tmp_path}/$5"')
    node_images._stream(["toolbox:1"], NODES)
    assert [(tmp_path / name).stat().st_size for name in ("1", "2")] == [3_000_000, 3_000_000]


def test_when_every_node_breaks_off_the_nodes_are_blamed_and_nobody_waits(docker: Callable[[str, str], None]) -> None:
    docker("exec cat /dev/zero", "echo no space left >&2; exit 1")
    with pytest.raises(ClusterError, match="the node did not take the images") as broken:
        node_images._stream(["toolbox:1"], NODES)
    assert "no space left" in str(broken.value)


def test_an_image_the_engine_cannot_save_is_told(docker: Callable[[str, str], None]) -> None:
    docker("echo no such image >&2; exit 1", "cat; exit 1")
    with pytest.raises(EnvironmentMissing, match="could not save") as lacking:
        node_images._stream(["toolbox:1"], NODES)
    assert "no such image" in str(lacking.value)
