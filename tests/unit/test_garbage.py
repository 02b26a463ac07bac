"""What nobody needs any more is found and removed; what others made, and what is in use, stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from sandbox import paths, reaper
from sandbox.cluster import garbage, leftovers, ownership, record, teardown, volumes
from sandbox.cluster.owner import Owner
from sandbox.cluster.pool import entries
from sandbox.cluster.snapshots import keeping, store
from sandbox.errors import SandboxError
from sandbox.host.mark import MARK
from tests.unit.container_engine import FakeContainer, FakeEngine, installed, put, refusal

GONE = Owner(os.getpid(), -1.0)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    made = installed(tmp_path, monkeypatch)
    monkeypatch.setattr(garbage, "client", lambda: made)
    monkeypatch.setattr(keeping, "client", lambda: made)
    monkeypatch.setattr(garbage, "look", lambda: SimpleNamespace(state="running"))
    return made


def found(*, dry_run: bool = False) -> set[tuple[str, str]]:
    return {(each.kind, each.name) for each in garbage.collect(dry_run=dry_run)}


def test_where_nothing_is_left_nothing_is_found(engine: FakeEngine) -> None:
    put(engine)
    assert found() == set()
    assert len(engine.held) == 1


def test_a_dry_run_tells_and_touches_nothing(engine: FakeEngine) -> None:
    put(engine, owner=GONE)
    (record.root() / "trio.lock").touch()
    told = found(dry_run=True)
    assert told == {("cluster", "solo"), ("file", "trio.lock")}
    assert len(engine.held) == 1
    assert (record.root() / "trio.lock").exists()
    assert found() >= told
    assert (engine.held, record.names()) == ([], [])


def test_a_cluster_that_another_command_works_on_stays(engine: FakeEngine) -> None:
    put(engine, owner=GONE)
    with record.locked("solo"):
        assert ("cluster", "solo") not in found()
    assert len(engine.held) == 1


def test_a_down_that_is_killed_halfway_is_finished(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    put(engine)
    with monkeypatch.context() as patch:
        patch.setattr(leftovers.containers, "remove", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            teardown.down("solo")
    halfway = record.get("solo")
    assert halfway.owner == Owner.me()
    record.save(replace(halfway, owner=GONE))
    assert found() >= {("cluster", "solo")}
    assert (engine.held, record.names()) == ([], [])


def test_nodes_that_a_killed_save_left_paused_go_on(engine: FakeEngine) -> None:
    put(engine)
    node: Any = engine.held[0]
    node.status, node.unpause = "paused", node.start
    note = record.home("solo") / "still.json"
    note.write_text(json.dumps(asdict(Owner.me())))
    assert (found(), node.status) == (set(), "paused")  # it is being saved
    note.write_text(json.dumps(asdict(GONE)))
    with record.locked("solo"):
        assert (found(), node.status) == (set(), "paused")
    assert found() == {("pause", "solo")}
    assert (node.status, note.exists()) == ("running", False)


def test_what_others_made_is_not_even_told(engine: FakeEngine) -> None:
    theirs = FakeContainer(engine, "theirs", network="", cluster="", status="exited")
    theirs.labels = {ownership.STATE_LABEL: "/another/state"}
    engine.held = [theirs, FakeContainer(engine, "db", network="", cluster="", status="exited")]
    engine.labelled = {"v": {ownership.STATE_LABEL: "/another/state", volumes.BASE_LABEL: "sha256:0"}}
    engine.volumes_held = {"v", "precious"}
    assert found() == set()
    assert (len(engine.held), engine.volumes_held) == (2, {"v", "precious"})


def test_a_helper_that_was_not_removed_goes_and_one_that_works_stays(engine: FakeEngine) -> None:
    ours = {ownership.STATE_LABEL: str(paths.state_dir())}
    for name, status in (("ended", "exited"), ("works", "running")):
        helper = FakeContainer(engine, name, network="", cluster="", status=status)
        helper.labels = {**ours, volumes.BASE_LABEL: "sha256:1"}
        engine.held.append(helper)
    assert found() == {("container", "ended")}
    assert [each.name for each in engine.held] == ["works"]


def test_what_cannot_be_removed_is_an_error_and_stops_nothing_else(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, owner=GONE)
    (record.root() / "trio.lock").touch()

    def remove(*_: object) -> None:
        raise refusal("driver failed")

    monkeypatch.setattr(leftovers.containers, "remove", remove)
    with pytest.raises(SandboxError, match="the engine refused"):
        garbage.collect()
    assert not (record.root() / "trio.lock").exists()


def test_locks_of_what_is_there_or_held_stay(engine: FakeEngine) -> None:
    put(engine)
    for name in ("solo.lock", "solo.run.lock", "_pool.lock", "trio.run.lock"):
        (record.root() / name).touch()
    (record.root() / "solo.json.new").touch()
    with record.lease("trio"):
        assert found() == {("file", "solo.json.new")}
    assert found() == {("file", "trio.run.lock")}
    assert {each.name for each in record.root().iterdir()} == {"solo", "solo.lock", "solo.run.lock", "_pool.lock"}


def test_who_waits_for_a_lock_that_is_removed_still_shuts_others_out(engine: FakeEngine) -> None:
    with record.lease("trio"):
        pass
    assert ("file", "trio.run.lock") in found()
    with record.lease("trio"), pytest.raises(SandboxError, match="another run uses"), record.lease("trio"):
        pass


def test_old_pooled_clusters_and_surplus_snapshots_are_told(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine)
    old = entries.Entry("pool-1", "k", "solo", time.time() - 90_000)
    drained: list[bool] = []
    monkeypatch.setattr(entries, "entries", lambda: [old, replace(old, name="pool-2", since=time.time())])
    monkeypatch.setattr(entries, "drain", lambda *, stale: drained.append(stale))
    monkeypatch.setattr(keeping, "surplus", lambda: ["auto-1"])
    monkeypatch.setattr(keeping, "fileless", lambda _: ["half"])
    monkeypatch.setattr(keeping, "reap", lambda _: ["half"])
    monkeypatch.setattr(keeping, "remove", lambda name: [name])
    assert found() == {("cluster", "pool-1"), ("snapshot", "auto-1"), ("snapshot", "half")}
    assert drained == [True]


@pytest.fixture
def child(engine: FakeEngine) -> Iterator[Any]:
    """Start a process with a mark; it is ended in any case."""
    started: list[subprocess.Popen[bytes]] = []

    def start(mark: str) -> subprocess.Popen[bytes]:
        program = "import time; print(flush=True); time.sleep(60)"
        process = subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # it is that program by now, and shows its environment
        process.stdout.close()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_only_children_of_commands_that_are_gone_are_ended(child: Any) -> None:
    me, state = Owner.me(), paths.state_dir()
    orphan = child(f"{me.pid} -1.0 {state}")
    mine, theirs = child(f"{me.pid} {me.started} {state}"), child(f"{me.pid} -1.0 /another/state")
    assert {kind for kind, _ in found()} == {"process"}
    orphan.wait(timeout=10)
    assert (mine.poll(), theirs.poll()) == (None, None)


def test_no_snapshot_that_has_a_file_is_fileless(engine: FakeEngine) -> None:
    ours = {ownership.STATE_LABEL: str(paths.state_dir())}
    engine.labelled = {"a": {store.LABEL: "kept", **ours}, "b": {store.LABEL: "half", **ours}}
    engine.volumes_held = {"a", "b"}
    store.path("kept").touch()
    assert keeping.fileless(engine) == ["half"]  # type: ignore[arg-type]


def test_a_cluster_that_runs_on_a_snapshot_outlives_it(engine: FakeEngine) -> None:
    """A container carries the labels of the image it runs on."""
    put(engine)
    ours = {ownership.STATE_LABEL: str(paths.state_dir()), store.LABEL: "mine"}
    engine.held[0].labels |= ours
    helper = FakeContainer(engine, "helper", network="", cluster="", status="exited")
    helper.labels = ours
    engine.held.append(helper)
    engine.labelled, engine.volumes_held = {"v": ours}, {"v"}
    assert keeping.remove("mine") == ["container helper", "volume v"]
    assert keeping.fileless(engine) == []  # type: ignore[arg-type]
    assert [each.name for each in engine.held] == ["solo-control-plane"]


def test_an_image_that_a_copy_ran_on_goes_once_the_copy_has_gone(engine: FakeEngine) -> None:
    """Beside the snapshot that has its name now."""
    ours = {ownership.STATE_LABEL: str(paths.state_dir()), store.LABEL: "kept"}
    images = [SimpleNamespace(id=each, tags=[each], labels=ours) for each in ("sha256:now", "sha256:earlier")]
    used, removed = ["sha256:earlier"], list[str]()

    class Engine(FakeEngine):
        @property
        def images(self) -> Any:
            return SimpleNamespace(list=lambda **_: images, remove=lambda tag, **_: removed.append(tag))

        def _containers(self, filters: dict[str, Any], **_: object) -> list[FakeContainer]:
            return [FakeContainer(self, "copy")] if filters.get("ancestor") in used else []

    store.write(snapshot("kept", image="sha256:now", volume="v"))
    made: Any = Engine(labelled={"v": ours}, volumes_held={"v"})
    assert (keeping.reap(made), removed) == ([], [])
    used.clear()
    assert keeping.fileless(made) == ["kept"]
    assert (keeping.reap(made), removed) == (["kept"], ["sha256:earlier"])
    assert made.volumes_held == {"v"}


def snapshot(name: str, *, image: str, volume: str) -> store.Snapshot:
    node = store.SnapshotNode(
        suffix="-control-plane", role="control-plane", name="node", image=image, volume=volume, serial="s",
        fingerprint="1", container={},
    )  # fmt: skip
    return store.Snapshot(
        format=store.FORMAT, name=name, key="", contents="solo", created=1.0, cluster="solo", spec={}, image="node:1",
        images=[], uid="u", ground={}, ready=[], kubeconfig="", nodes=[node],
    )  # fmt: skip


SCRIPT = """
import os, sys, time
from sandbox import reaper
with reaper.watch():
    print("watched", flush=True)
    sys.stdin.readline()
    {act}
"""


def watched(tmp_path: Path, act: str) -> tuple[int, str]:
    """Run a command under a reaper; its exit code, and what the reaper said."""
    env = {**os.environ, "SANDBOX_STATE_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    env.pop(MARK, None)
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "gone.lock").touch()
    command = [sys.executable, "-c", SCRIPT.format(act=act)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        (its_reaper,) = psutil.Process(process.pid).children()
        process.stdin.close()
        code = process.wait(timeout=60)
        its_reaper.wait(timeout=60)
    return code, (tmp_path / "reaper.log").read_text()


def test_a_command_that_is_killed_is_cleared_up_after_by_its_reaper(tmp_path: Path) -> None:
    code, said = watched(tmp_path, "os.kill(os.getpid(), 9)")
    assert code == -9
    assert "gone.lock" in said
    assert not (tmp_path / "clusters" / "gone.lock").exists()


@pytest.mark.parametrize("act", ["pass", "sys.exit(3)", "raise ValueError", "os.kill(os.getpid(), 2)"])
def test_the_reaper_of_a_command_that_ends_has_nothing_to_do(tmp_path: Path, act: str) -> None:
    code, said = watched(tmp_path, act)
    assert code >= 0 or code == -2
    assert said == ""
    assert (tmp_path / "clusters" / "gone.lock").exists()


def test_one_reaper_is_enough(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MARK, raising=False)
    with reaper.watch():
        mark = os.environ[MARK]
        with reaper.watch():
            assert os.environ[MARK] == mark
        assert os.environ[MARK] == mark
    assert MARK not in os.environ
