from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sandbox.cluster import down, existing, failure, guard, leftovers, looking, node_images, nodes, record
from sandbox.cluster.owner import Owner
from sandbox.cluster.record import Cluster, Node
from sandbox.errors import ClusterError, UsageError
from sandbox.host.engine import Engine, Identity
from sandbox.spec.base import Metadata
from sandbox.spec.cluster import ClusterSpec, Existing

ENGINE = Identity("ENGINE:ONE", "none-1", "unix:///run/one.sock")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def cluster(name: str = "solo", **changes: Any) -> Cluster:
    made = Cluster(
        name=name,
        provider="kind",
        kubeconfig=record.home(name) / "kubeconfig",
        context=f"kind-{name}",
        run="abc",
        uid="u-1",
        shape="s",
        image="node:1",
        created=1.0,
        nodes=(Node(f"{name}-control-plane", "control-plane", "172.18.0.2", "c1"),),
    )
    return replace(made, **changes)


def test_a_record_comes_back_as_it_was_saved() -> None:
    made = cluster(owner=Owner.me(), engine=ENGINE, containers=("c1", "balancer"))
    record.mark_creating("solo", "abc", engine=ENGINE)
    record.save(made)
    assert record.find("solo") == made
    assert not record.creating("solo")
    assert made.node_addresses == ["172.18.0.2"]


def test_nobody_else_can_read_a_record() -> None:
    record.save(cluster())
    assert (record.home("solo") / "record.json").stat().st_mode & 0o077 == 0
    assert record.home("solo").stat().st_mode & 0o077 == 0


def test_a_missing_record_is_none_and_a_broken_one_says_what_to_type() -> None:
    assert record.find("solo") is None
    record.home("solo").mkdir()
    (record.home("solo") / "record.json").write_text('{"name": "solo"}')
    with pytest.raises(ClusterError) as broken:
        record.find("solo")
    assert broken.value.fix == "sandbox down solo"


def test_an_unknown_name_lists_the_known_ones() -> None:
    record.save(cluster("trio"))
    with pytest.raises(UsageError) as unknown:
        record.get("solo")
    assert "there: trio" in str(unknown.value)


def test_two_commands_cannot_hold_one_cluster() -> None:
    with record.locked("solo"), pytest.raises(ClusterError, match="another command"), record.locked("solo", wait=False):
        pass
    with record.locked("solo", wait=False):
        pass


def test_who_waits_for_another_command_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    said: list[str] = []

    def say(words: str) -> None:
        said.append(words)
        told.set()

    monkeypatch.setattr(record, "say", say)

    def second() -> None:
        with record.locked("solo"):
            pass

    waiting = threading.Thread(target=second)
    with record.locked("solo"):
        waiting.start()
        assert told.wait(30)
    waiting.join(30)
    assert not waiting.is_alive()
    assert "wait for another command" in said[0]


def test_one_run_at_a_time_uses_a_cluster() -> None:
    with record.lease("solo"):
        with pytest.raises(ClusterError, match="another run uses this cluster") as refused, record.lease("solo"):
            pass
        with record.lease("trio"), record.locked("solo", wait=False):  # neither others nor commands are kept out
            assert record.leased("solo")
    assert "another name" in refused.value.fix
    assert not record.leased("solo")
    with record.lease("solo"):
        pass
    assert record.names() == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", "A", "-a", "a-", "a\n", "a" * 41])
def test_what_is_no_name_never_becomes_a_path(name: str) -> None:
    for use in (record.home, record.find, record.get, record.forget, record.busy, looking.status, down):
        with pytest.raises(UsageError, match="is no name for a cluster"):
            use(name)
    for hold in (record.locked, record.lease):
        with pytest.raises(UsageError, match="is no name for a cluster"), hold(name):
            pass


def test_down_deletes_no_folder_that_is_no_clusters(tmp_path: Path) -> None:
    record.save(cluster("kept"))
    (tmp_path / "precious").mkdir()
    for name in (".", "kept/..", str(tmp_path / "precious")):
        with pytest.raises(UsageError):
            down(name)
    assert record.names() == ["kept"]
    assert (tmp_path / "precious").is_dir()


def test_folders_that_are_no_clusters_are_not_listed() -> None:
    (record.root() / "Not a cluster").mkdir()
    assert record.names() == []


def test_a_create_under_way_is_told_from_one_that_never_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "look", lambda: Engine("dead", "unix:///run/one.sock", "installed but not running"))
    record.mark_creating("solo", "abc", engine=ENGINE)
    with record.locked("solo"):
        assert looking.status("solo").state == "busy"
    found = looking.status("solo")
    assert (found.state, found.problems) == (
        "half-made",
        ("a create began and never ended", "installed but not running"),
    )


def test_different_clusters_do_not_wait_for_each_other() -> None:
    with record.locked("solo"), record.locked("trio", wait=False):
        pass


def test_an_owner_is_alive_until_its_process_ends_and_a_reused_pid_is_not_it() -> None:
    assert Owner.me().alive()
    assert not Owner(os.getpid(), 1.0).alive()
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    assert child.pid is not None
    assert not Owner(child.pid, 1.0).alive()


def test_an_owner_outlives_a_step_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner.me()
    boot, created = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: created + 3600)
    assert owner.alive()
    assert Owner.me() == owner


def test_only_half_made_and_orphaned_clusters_are_leftovers() -> None:
    record.save(cluster("kept"))
    record.save(cluster("mine", owner=Owner.me()))
    record.save(cluster("orphan", owner=Owner(os.getpid(), 1.0)))
    record.save(cluster("foreign", provider="existing", owner=Owner(os.getpid(), 1.0)))
    record.mark_creating("half", "abc", engine=ENGINE)
    found = [name for name in record.names() if leftovers.leftover(name)]
    assert found == ["half", "orphan"]


@pytest.mark.parametrize(
    ("ref", "full"),
    [
        ("toolbox", "docker.io/library/toolbox:latest"),
        ("ai-k8s-sandbox/toolbox:1", "docker.io/ai-k8s-sandbox/toolbox:1"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
        ("localhost/a", "localhost/a:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("a/b@sha256:00", "docker.io/a/b@sha256:00"),
    ],
)
def test_references_are_compared_as_containerd_stores_them(ref: str, full: str) -> None:
    assert node_images.full_name(ref) == full


LISTING = """{"containers": [
 {"id": "1", "metadata": {"name": "etcd"}, "state": "CONTAINER_EXITED", "createdAt": "1"},
 {"id": "2", "metadata": {"name": "etcd"}, "state": "CONTAINER_RUNNING", "createdAt": "2"},
 {"id": "3", "metadata": {"name": "kube-apiserver"}, "state": "CONTAINER_EXITED", "createdAt": "3"}]}"""


def test_the_digest_names_containers_whose_latest_attempt_failed() -> None:
    assert failure.failing(LISTING) == [("3", "kube-apiserver", "exited")]
    assert failure.failing("crictl: not found") == []


class FakeKube:
    """An API server that says who it is."""

    def __init__(self, uid: str, server: str = "https://127.0.0.1:6443") -> None:
        self._uid, self.server = uid, server

    def uid(self) -> str:
        return self._uid


def answers(monkeypatch: pytest.MonkeyPatch, kube: FakeKube, containers: list[str]) -> None:
    monkeypatch.setattr(guard.Kube, "connect", lambda *_: kube)
    monkeypatch.setattr(guard, "container_problems", lambda *_: containers)


def test_the_recorded_cluster_may_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, FakeKube("u-1"), [])
    guard.prove_ours(cluster())


@pytest.mark.parametrize(
    ("kube", "containers", "says"),
    [
        (FakeKube("u-2"), [], "UID u-2, recorded is u-1"),
        (FakeKube("u-1", "https://10.0.0.1:6443"), [], "not on a loopback address"),
        (FakeKube("u-1", "https://cluster.example:6443"), [], "not on a loopback address"),
        (FakeKube("u-1"), ["node x is not the recorded container"], "not the recorded container"),
    ],
)
def test_any_other_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, kube: FakeKube, containers: list[str], says: str
) -> None:
    answers(monkeypatch, kube, containers)
    with pytest.raises(ClusterError) as refused:
        guard.prove_ours(cluster())
    assert says in str(refused.value)


def test_an_existing_cluster_is_changed_only_with_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, FakeKube("u-1", "https://10.0.0.1:6443"), [])
    with pytest.raises(ClusterError, match="without leave"):
        guard.prove_ours(cluster(provider="existing", allow_changes=False))
    guard.prove_ours(cluster(provider="existing", allow_changes=True))


def test_nothing_is_loaded_into_nodes_that_are_somebody_elses() -> None:
    with pytest.raises(UsageError, match="toolbox:1") as refused:
        nodes.load_images(cluster(provider="existing"), ["toolbox:1"])
    assert "sandbox images push" in refused.value.fix
    assert nodes.load_images(cluster(provider="existing"), []) == {}


CONFIG: dict[str, Any] = {
    "current-context": "prod",
    "contexts": [
        {"name": "prod", "context": {"cluster": "p", "user": "p"}},
        {"name": "lab", "context": {"cluster": "l", "user": "me", "namespace": "x"}},
        {"name": "torn", "context": {"cluster": "gone", "user": "me"}},
    ],
    "clusters": [
        {"name": "p", "cluster": {"server": "https://prod"}},
        {"name": "l", "cluster": {"server": "https://lab", "certificate-authority": "ca.crt"}},
    ],
    "users": [
        {"name": "p", "user": {"token": "secret"}},
        {"name": "me", "user": {"client-certificate": "/abs/me.crt", "client-key": "keys/me.key"}},
    ],
}


@pytest.fixture
def kubeconfig(tmp_path: Path) -> str:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


def test_only_the_one_context_is_copied_with_its_files_found_again(kubeconfig: str, tmp_path: Path) -> None:
    copied = existing.only_context(Existing(kubeconfig=kubeconfig, context="lab"))
    assert copied["current-context"] == "lab"
    assert [each["name"] for key in ("contexts", "clusters", "users") for each in copied[key]] == ["lab", "l", "me"]
    assert copied["clusters"][0]["cluster"]["certificate-authority"] == str(tmp_path / "ca.crt")
    assert copied["users"][0]["user"] == {
        "client-certificate": "/abs/me.crt",
        "client-key": str(tmp_path / "keys/me.key"),
    }
    assert "secret" not in yaml.safe_dump(copied)


def test_an_unknown_context_names_those_there_are(kubeconfig: str) -> None:
    with pytest.raises(UsageError) as unknown:
        existing.only_context(Existing(kubeconfig=kubeconfig, context="nope"))
    assert "lab, prod, torn" in unknown.value.fix


def test_a_torn_context_is_refused(kubeconfig: str) -> None:
    with pytest.raises(UsageError, match="names cluster gone"):
        existing.only_context(Existing(kubeconfig=kubeconfig, context="torn"))


@pytest.mark.parametrize("text", ["", "- a", "{contexts: 3}", ": ["])
def test_what_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        existing.only_context(Existing(kubeconfig=str(path), context="x"))


def test_an_existing_cluster_takes_nobodys_name_and_leaves_nothing_when_refused(state: Path) -> None:
    spec = ClusterSpec(
        kind="Cluster",
        metadata=Metadata(name="lab", description="Not ours."),
        provider="existing",
        existing=Existing(kubeconfig=str(state / "none"), context="lab"),
    )
    made = cluster("lab")
    record.save(made)
    with pytest.raises(UsageError, match="cluster of this machine"):
        existing.adopt(spec, "lab", allow_changes=True)
    assert record.find("lab") == made
    with pytest.raises(UsageError):
        existing.adopt(spec, "lab-2", allow_changes=True)
    assert record.names() == ["lab"]
