"""What is ours in an engine, what is not, and that every command which removes something keeps to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox import paths
from sandbox.cluster import bringup, containers, guard, leftovers, looking, making, nodes, ownership, record, teardown
from sandbox.cluster.owner import Owner
from sandbox.cluster.record import Cluster, Node
from sandbox.errors import EXIT_FAIL, ClusterError, EnvironmentMissing, NotOurs, SandboxError
from sandbox.host.engine import Engine
from tests.unit.container_engine import (
    ANONYMOUS,
    EARLY,
    SPEC,
    FakeContainer,
    FakeEngine,
    FakeNetwork,
    installed,
    put,
    refusal,
)

GONE = Owner(os.getpid(), -1.0)
BEFORE = "2025-12-31T23:59:59Z"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    made = installed(tmp_path, monkeypatch)
    monkeypatch.setattr(bringup, "prepare", lambda: Engine("running", "unix:///x", "a stand-in", cgroup="2"))
    monkeypatch.setattr(bringup, "require", lambda _: None)
    monkeypatch.setattr(bringup.images, "tool", lambda _: Path("/nowhere/kind"))
    monkeypatch.setattr(
        bringup.images, "ensure", lambda names: {each: SimpleNamespace(ref=f"{each}:1") for each in names}
    )
    return made


def half_made(engine: FakeEngine) -> None:
    """What a killed `up` leaves: its mark, its network, and nodes that no record knows."""
    engine.wires = [FakeNetwork(engine)]
    engine.held = [FakeContainer(engine, "solo-control-plane"), FakeContainer(engine, "solo-worker", role="worker")]
    record.mark_creating("solo", "abc", engine=engine.identity)


def orphaned(engine: FakeEngine) -> None:
    put(engine, owner=GONE, shape="older")


def ended(engine: FakeEngine) -> None:
    """A cluster whose nodes somebody removed by hand, but for one."""
    known = put(engine)
    gone = Node("solo-worker", "worker", "192.0.2.3", "id-solo-worker")
    record.save(replace(known, nodes=(*known.nodes, gone)))


def down(_: FakeEngine) -> None:
    teardown.down("solo")


def up(_: FakeEngine) -> None:
    bringup.up(SPEC)


def clear_a_failed_create(engine: FakeEngine) -> None:
    containers.remove(cast("Any", engine), "solo")


DECOYS: dict[str, Callable[[FakeEngine], FakeContainer]] = {
    "a user's container": lambda engine: FakeContainer(engine, "db", cluster="", volumes=("precious",)),
    "a node of another kind cluster": lambda engine: FakeContainer(engine, "other-control-plane", cluster="other"),
    "a stopped one": lambda engine: FakeContainer(engine, "db", cluster="", status="exited"),
    "one with our word for a cluster and no more": lambda engine: labelled(FakeContainer(engine, "db", cluster="")),
    "one of this name that nobody recorded, from before": lambda engine: FakeContainer(
        engine, "solo-worker7", role="worker", created=BEFORE
    ),
}


def labelled(container: FakeContainer) -> FakeContainer:
    container.labels[ownership.CLUSTER_LABEL] = "solo"
    return container


@pytest.mark.parametrize("decoy", DECOYS)
@pytest.mark.parametrize(
    ("left", "act"),
    [
        (put, down),
        (half_made, down),
        (half_made, up),
        (half_made, clear_a_failed_create),
        (orphaned, down),
        (orphaned, up),
        (ended, up),
    ],
)
def test_nothing_goes_while_what_others_made_is_on_the_network(
    engine: FakeEngine,
    left: Callable[[FakeEngine], object],
    act: Callable[[FakeEngine], None],
    decoy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left(engine)
    guest = DECOYS[decoy](engine)
    engine.held.append(guest)
    engine.volumes_held = {"precious"}
    before = [*engine.held]
    with pytest.raises(NotOurs) as refused:
        act(engine)
    assert (engine.held, len(engine.wires), engine.volumes_held) == (before, 1, {"precious"})
    assert list(guest.attrs["NetworkSettings"]["Networks"]) == ["sandbox-solo"]
    assert refused.value.exit_code == EXIT_FAIL
    assert guest.name in str(refused.value)
    assert "nothing of it is removed" in refused.value.what
    told = "docker rm --force" if guest.cluster == "solo" else f"docker network disconnect sandbox-solo {guest.name}"
    assert told in refused.value.fix
    assert record.home("solo").exists()
    assert act is not down or "remove" not in capsys.readouterr().err, "it sounds as if the removing had begun"


@pytest.mark.parametrize("left", [half_made, orphaned])
def test_the_clearing_of_what_was_killed_says_what_is_in_its_way_and_goes_on(
    engine: FakeEngine, left: Callable[[FakeEngine], object], capsys: pytest.CaptureFixture[str]
) -> None:
    left(engine)
    engine.held.append(FakeContainer(engine, "db", cluster=""))
    before = [*engine.held]
    assert leftovers.reap() == []
    assert engine.held == before
    assert "docker network disconnect sandbox-solo db" in capsys.readouterr().err
    with pytest.raises(NotOurs):
        leftovers.reap(strict=True)
    engine.held.pop()
    assert leftovers.reap() == ["solo"]
    assert (engine.held, engine.wires, record.names()) == ([], [], [])


def test_a_cluster_runs_on_beside_a_guest_and_goes_once_it_left(engine: FakeEngine) -> None:
    known = put(engine)
    guest = FakeContainer(engine, "db", cluster="")
    engine.held.append(guest)
    assert guard.container_problems(known) == []
    assert looking.current("solo").node_names == ["solo-control-plane"]
    del guest.attrs["NetworkSettings"]["Networks"]["sandbox-solo"]
    teardown.down("solo")
    assert (engine.held, engine.wires, record.names()) == ([guest], [], [])


def test_a_guest_that_comes_while_it_goes_keeps_the_network_and_is_told_so(engine: FakeEngine) -> None:
    put(engine)
    guest = FakeContainer(engine, "db", cluster="")

    def leave(**_: object) -> None:
        engine.held[:] = [guest]

    engine.held[0].remove = leave  # type: ignore[method-assign]
    with pytest.raises(NotOurs, match="its own containers are gone, the network stays"):
        teardown.down("solo")
    assert (engine.held, len(engine.wires), record.names()) == ([guest], 1, ["solo"])
    engine.held.clear()
    teardown.down("solo")
    assert (engine.wires, record.names()) == ([], [])


def test_of_a_killed_create_only_what_kind_made_on_that_network_alone_goes(engine: FakeEngine) -> None:
    half_made(engine)
    engine.held.append(FakeContainer(engine, "solo-external-load-balancer", role="external-load-balancer"))
    elsewhere = FakeContainer(engine, "solo-worker2", role="worker")
    elsewhere.attrs["NetworkSettings"]["Networks"]["kind"] = {"NetworkID": "n7"}
    engine.held.append(elsewhere)
    with pytest.raises(NotOurs, match="nothing of it"):
        teardown.down("solo")
    assert len(engine.held) == 4
    engine.held.remove(elsewhere)
    assert len([each for each in teardown.down("solo") if each.startswith("container")]) == 3


def test_a_create_that_failed_beside_a_guest_says_that_it_stays(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_network(*_: object, **__: object) -> None:
        mark = json.loads((record.home("solo") / "creating.json").read_text())
        engine.wires = [FakeNetwork(engine, run=mark["run"])]
        engine.held = [FakeContainer(engine, "db", cluster="")]
        raise refusal("driver failed")

    monkeypatch.setattr(containers, "make_network", make_network)
    with pytest.raises(ClusterError, match="what is left of it stays"):
        bringup.up(SPEC)
    assert "docker network disconnect sandbox-solo db" in capsys.readouterr().err
    assert record.creating("solo")
    assert (len(engine.held), len(engine.wires)) == (1, 1)


def test_what_a_killed_kind_had_asked_for_at_the_last_moment_goes_too(engine: FakeEngine) -> None:
    half_made(engine)
    engine.held = []
    (network,) = engine.wires

    def remove() -> None:
        engine.wires.clear()
        engine.held.append(FakeContainer(engine, "solo-control-plane", status="created"))

    network.remove = remove  # type: ignore[method-assign]
    teardown.down("solo")
    assert (engine.held, record.names()) == ([], [])


def test_what_is_recorded_goes_wherever_somebody_moved_it(engine: FakeEngine) -> None:
    known = put(engine)
    engine.held[0].attrs["NetworkSettings"]["Networks"] = {"theirs": {"NetworkID": "n7", "IPAddress": "198.51.100.1"}}
    assert guard.container_problems(known) == ["node solo-control-plane is not on the cluster's network"]
    assert looking.current("solo").node_addresses == [""]
    assert "container solo-control-plane" in teardown.down("solo")
    assert (engine.held, engine.wires) == ([], [])


def test_the_address_of_a_node_is_that_on_its_own_network(engine: FakeEngine) -> None:
    put(engine)
    networks = engine.held[0].attrs["NetworkSettings"]["Networks"]
    networks.clear()
    networks |= {
        "a": {"IPAddress": "198.51.100.1", "NetworkID": "n7"},
        "sandbox-solo": {"IPAddress": "192.0.2.2", "NetworkID": "n1"},
    }
    assert looking.current("solo").node_addresses == ["192.0.2.2"]


@pytest.mark.parametrize(("server", "problems"), [("41", 0), ("42", 1), ("", 0)])
def test_a_copy_of_the_same_uid_is_told_by_its_port(engine: FakeEngine, server: str, problems: int) -> None:
    known = put(engine)
    engine.held[0].attrs["NetworkSettings"]["Ports"] = {"6443/tcp": [{"HostIp": "127.0.0.1", "HostPort": "41"}]}
    found = guard.container_problems(known, f"https://127.0.0.1:{server}" if server else "")
    assert len(found) == problems
    assert all("not at a port of its containers, which is 41" in each for each in found)


def test_volumes_of_the_cluster_go_with_it_and_are_a_leftover_without_it(engine: FakeEngine) -> None:
    put(engine)
    state = {ownership.STATE_LABEL: str(paths.state_dir())}
    engine.labelled = {
        "var": {ownership.CLUSTER_LABEL: "solo", **state},
        "another's": {ownership.CLUSTER_LABEL: "solo", ownership.STATE_LABEL: "/elsewhere"},
        "of another cluster": {ownership.CLUSTER_LABEL: "trio", **state},
    }
    engine.volumes_held = {*engine.labelled, "nobody's"}
    assert "volume var" in teardown.down("solo")
    assert engine.volumes_held == {"another's", "nobody's"}  # that of a trio that nothing knows is a leftover


def test_a_container_of_a_recorded_name_and_another_id_is_not_ours(engine: FakeEngine) -> None:
    known = put(engine)
    engine.held[0].id = "made-by-hand"
    assert guard.container_problems(known) == ["node solo-control-plane is not the recorded container"]
    assert nodes.states(known) == {"solo-control-plane": "gone"}
    with pytest.raises(NotOurs, match="did not make"):
        teardown.down("solo")
    assert len(engine.held) == 1


def test_a_cluster_of_this_name_of_another_state_folder_is_left_alone(engine: FakeEngine) -> None:
    engine.wires = [FakeNetwork(engine, state="/home/somebody/state")]
    engine.held = [FakeContainer(engine, "solo-control-plane")]
    for act in (down, up):
        with pytest.raises(NotOurs, match="not this sandbox's"):
            act(engine)
    assert (len(engine.held), len(engine.wires)) == (1, 1)


def test_what_carries_all_our_labels_is_ours_and_goes(engine: FakeEngine) -> None:
    put(engine)
    helper = FakeContainer(engine, "helper", cluster="")
    helper.labels = {**engine.wires[0].attrs["Labels"]}
    engine.held.append(helper)
    assert "container helper" in teardown.down("solo")
    assert engine.held == []


def test_only_volumes_that_nobody_named_go_with_a_container(engine: FakeEngine) -> None:
    put(engine)
    named_as_by_the_engine = "f" * 64
    engine.held[0].attrs["Mounts"] = [
        {"Type": "volume", "Name": ANONYMOUS},
        {"Type": "volume", "Name": "precious"},
        {"Type": "volume", "Name": named_as_by_the_engine},
        {"Type": "bind", "Source": "/lib/modules"},
    ]
    engine.held[0].attrs["HostConfig"] = {
        "Binds": ["precious:/data", "/lib/modules:/lib/modules:ro"],
        "Mounts": [{"Type": "volume", "Source": named_as_by_the_engine, "Target": "/more"}],
    }
    engine.volumes_held = {ANONYMOUS, "precious", named_as_by_the_engine}
    teardown.down("solo")
    assert engine.volumes_held == {"precious", named_as_by_the_engine}


def test_the_load_balancer_of_several_control_planes_is_recorded_and_goes(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    half_made(engine)
    engine.held.append(FakeContainer(engine, "solo-external-load-balancer", role="external-load-balancer"))
    (tmp_path / "kubeconfig").touch()
    monkeypatch.setattr(making.Kube, "connect", lambda *_: SimpleNamespace(uid=lambda: "u-1"))
    order = making.Order(cast("Any", engine), SPEC, "solo", None, Path("kind"), "node:1", {}, "2")
    made = making.describe(order, making.Making("abc", engine.identity), tmp_path / "kubeconfig")
    assert made.engine == engine.identity
    assert {*made.containers} == {each.id for each in engine.held}
    assert [node.name for node in made.nodes] == ["solo-control-plane", "solo-worker"]
    record.save(made)
    teardown.down("solo")
    assert engine.held == []


def elsewhere(engine: FakeEngine, cluster: Cluster | None = None) -> FakeEngine:
    """Another engine answers from now on: it holds nothing, as theirs would."""
    del cluster
    engine.held, engine.wires, engine.identifier, engine.data = [], [], "ENGINE:TWO", "none-2"
    return engine


ACTS: list[Callable[[FakeEngine], object]] = [
    down,
    up,
    clear_a_failed_create,
    lambda _: leftovers.reap(strict=True),
    lambda _: looking.current("solo"),
    lambda _: guard.container_problems(record.get("solo")),
    lambda _: nodes.stop(record.get("solo"), "solo-control-plane"),
    lambda _: nodes.load_images(record.get("solo"), ["toolbox:1"]),
]


@pytest.mark.parametrize("act", ACTS)
def test_on_another_engine_every_command_says_so_and_keeps_the_record(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, act: Callable[[FakeEngine], object]
) -> None:
    put(engine, owner=GONE)
    monkeypatch.setattr(bringup.images, "ensure", lambda _: pytest.fail("images were made on the wrong engine"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/two.sock")
    elsewhere(engine)
    with pytest.raises(ClusterError, match="made on another engine") as refused:
        act(engine)
    assert not isinstance(refused.value, NotOurs)
    assert "export DOCKER_HOST=unix:///var/run/docker.sock" in refused.value.fix
    assert "DOCKER_CONTEXT" in refused.value.fix
    assert record.names() == ["solo"]


def test_a_half_made_cluster_on_another_engine_is_kept_too(engine: FakeEngine) -> None:
    half_made(engine)
    elsewhere(engine)
    for act in (down, up):
        with pytest.raises(ClusterError, match="made on another engine"):
            act(engine)
    assert record.creating("solo")
    assert looking.status("solo").state == "half-made"
    assert "made on another engine" in looking.status("solo").problems[1]


def test_status_tells_of_another_engine_and_goes_on_to_the_next(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = put(engine)
    elsewhere(engine)
    here = FakeContainer(engine, "trio-control-plane", cluster="trio", network="sandbox-trio", status="exited")
    engine.held = [here]
    node = Node(here.name, "control-plane", "", here.id)
    record.save(replace(known, name="trio", nodes=(node,), containers=(here.id,), engine=engine.identity))
    found = {each.name: each for each in looking.list_clusters()}
    assert (found["solo"].state, found["trio"].state) == ("elsewhere", "stopped")
    assert "made on another engine" in found["solo"].problems[0]
    assert "export DOCKER_HOST=" in found["solo"].problems[0] or "start the engine" in found["solo"].problems[0]
    monkeypatch.setattr(looking, "look", lambda: Engine("foreign", "unix:///x", "unix:///x does not answer"))
    assert looking.status("solo").state == "unreachable"
    assert looking.status("solo").problems == ("unix:///x does not answer",)


def test_a_docker_context_that_is_not_there_is_an_error_of_every_look(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(EnvironmentMissing, match="no docker context nowhere"):
        looking.list_clusters()
    put(engine)
    for look in (looking.list_clusters, lambda: looking.status("solo")):
        with pytest.raises(EnvironmentMissing, match="no docker context nowhere"):
            look()


def test_engines_that_share_their_id_are_told_apart_by_their_data(engine: FakeEngine) -> None:
    known = put(engine)
    held, wires = [*engine.held], [*engine.wires]
    engine.data, engine.held, engine.wires = "none-2", [], []
    with pytest.raises(ClusterError, match="made on another engine"):
        teardown.down("solo")
    engine.held, engine.wires = held, wires  # the same engine, whose built-in network was made anew
    assert guard.container_problems(known) == []
    assert len(teardown.down("solo")) == 3


def test_a_record_of_an_older_version_is_removed_only_where_its_containers_are(engine: FakeEngine) -> None:
    known = put(engine)
    path = record.home("solo") / "record.json"
    older = {key: value for key, value in json.loads(path.read_text()).items() if key not in {"engine", "containers"}}
    path.write_text(json.dumps(older))
    held, wires = [*engine.held], [*engine.wires]
    engine.held, engine.wires = [], []
    for act in (down, up, lambda _: looking.current("solo")):
        with pytest.raises(ClusterError, match="does not say on which engine") as refused:
            act(engine)
        assert "DOCKER_HOST" in refused.value.fix
        assert f"rm -r {record.home('solo')}" in refused.value.fix
    assert looking.status("solo").state == "elsewhere"
    assert record.find("solo") == replace(known, engine=None, containers=())
    engine.held, engine.wires = held, wires
    assert len(teardown.down("solo")) == 3
    assert record.names() == []


def test_a_mark_of_an_older_version_is_cleared_only_where_its_network_is(engine: FakeEngine) -> None:
    half_made(engine)
    (record.home("solo") / "creating.json").write_text(json.dumps({"run": "abc", "kind": None}))
    wires, engine.wires = engine.wires, []
    held, engine.held = engine.held, []
    assert leftovers.reap() == []
    assert record.creating("solo")
    engine.wires, engine.held = wires, held
    assert leftovers.reap() == ["solo"]


def test_a_record_that_cannot_be_read_is_no_reason_to_remove_what_bears_its_name(engine: FakeEngine) -> None:
    put(engine)
    (record.home("solo") / "record.json").write_text("{")
    with pytest.raises(ClusterError):
        teardown.down("solo")
    assert len(engine.held) == 1


def test_a_folder_without_record_or_mark_claims_nothing_and_is_cleared(engine: FakeEngine) -> None:
    record.home("solo").mkdir()
    assert teardown.down("solo") == ["record solo"]
    put(engine)
    record.forget("solo")
    with pytest.raises(NotOurs, match="did not make"):
        teardown.down("solo")
    assert len(engine.held) == 1


def test_a_network_of_ours_alone_is_a_leftover(engine: FakeEngine) -> None:
    engine.wires = [FakeNetwork(engine)]
    assert leftovers.reap() == ["solo"]
    assert engine.wires == []


def test_a_mark_says_on_which_engine_it_was_made(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def make_network(*_: object, **__: object) -> None:
        seen.append(json.loads((record.home("solo") / "creating.json").read_text()))
        raise refusal("no more addresses")

    monkeypatch.setattr(containers, "make_network", make_network)
    with pytest.raises(SandboxError):
        bringup.up(SPEC)
    assert seen[0]["engine"] == asdict(engine.identity)
    assert EARLY > BEFORE
