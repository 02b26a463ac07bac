"""The pool: what is taken from it and by whom, what is handed over, and what never is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.cluster import containers, guard, leftovers, looking, ownership, record, teardown, traces
from sandbox.cluster.making import Order
from sandbox.cluster.owner import Owner
from sandbox.cluster.pool import entries, filling, leasing, limits, stillness
from sandbox.cluster.record import Cluster
from sandbox.errors import ClusterError, EnvironmentMissing, UsageError
from sandbox.kube import Seen, inventory
from sandbox.kube.inventory import Inventory
from sandbox.kube.preparation import Preparation
from tests.unit.container_engine import SPEC, FakeEngine, installed, refusal
from tests.unit.pooled import CLEAN, KEY, NODE, pooled

GONE = Owner(os.getpid(), -1.0)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return installed(tmp_path, monkeypatch)


def test_only_what_belongs_to_nobody_waits_in_the_pool_the_oldest_first(engine: FakeEngine) -> None:
    now = time.time()
    pooled(engine, "pool-2", since=now - 5)
    pooled(engine, "pool-1", since=now - 9)
    pooled(engine, "pool-3", pooled="other")
    pooled(engine, "pool-4", owner=Owner.me())
    pooled(engine, "pool-5", pooled="")
    (record.home("pool-6")).mkdir()
    assert [each.name for each in entries.entries(KEY)] == ["pool-1", "pool-2"]
    assert {each.name for each in entries.entries()} == {"pool-1", "pool-2", "pool-3"}


def test_one_whose_content_nobody_knows_is_not_handed_out(engine: FakeEngine) -> None:
    pooled(engine)
    (record.home("pool-1") / "clean.json").write_text('{"contents": ')
    assert entries.entries() == []
    assert entries.take(KEY, "mine") is None


def test_what_is_taken_is_mine_under_its_new_name_and_its_things_are_found(engine: FakeEngine) -> None:
    pooled(engine)
    taken = entries.take(KEY, "mine")
    assert taken is not None
    assert (taken.name, taken.engine_name, taken.owner, taken.pooled) == ("mine", "pool-1", Owner.me(), "")
    assert taken.kubeconfig == record.home("mine") / "kubeconfig"
    assert record.names() == ["mine"]
    assert [each.name for each in ownership.survey(cast("Any", engine), "mine").containers] == ["pool-1-control-plane"]
    assert guard.container_problems(taken) == []
    assert containers.refreshed(cast("Any", engine), taken)[0].name == "solo-control-plane"
    record.save(replace(taken, owner=None))
    assert record.get("mine").held_as == "pool-1"


def test_a_leased_cluster_is_no_leftover_and_goes_with_all_that_carries_its_old_name(engine: FakeEngine) -> None:
    pooled(engine)
    entries.take(KEY, "mine")
    assert leftovers.reap() == []
    assert len(engine.held) == 1
    teardown.down("mine")
    assert (engine.held, engine.wires, record.names()) == ([], [], [])


def test_what_a_killed_command_had_taken_is_removed_and_never_handed_out(engine: FakeEngine) -> None:
    known = pooled(engine)
    record.save(replace(known, pooled="", owner=GONE))  # killed before the record got its new name
    pooled(engine, "pool-2")
    entries.take(KEY, "mine")
    record.save(replace(record.get("mine"), owner=GONE))  # and after
    assert entries.take(KEY, "other") is None
    assert sorted(leftovers.reap()) == ["mine", "pool-1"]
    assert engine.held == []


def test_of_many_that_ask_at_once_each_gets_another_one(engine: FakeEngine) -> None:
    for number in range(3):
        pooled(engine, f"pool-{number}")
    with ThreadPoolExecutor(max_workers=6) as pool:
        taken = [*pool.map(lambda number: entries.take(KEY, f"mine-{number}"), range(6))]
    held = [each.engine_name for each in taken if each is not None]
    assert sorted(held) == ["pool-0", "pool-1", "pool-2"]


def test_one_that_waited_for_more_than_a_day_is_not_handed_out_but_drained(engine: FakeEngine) -> None:
    pooled(engine, "pool-1", since=time.time() - 25 * 3600)
    pooled(engine, "pool-2", pooled="other")
    assert entries.take(KEY, "mine") is None
    assert entries.drain(stale=True) == ["pool-1"]
    assert entries.drain() == ["pool-2"]
    assert (engine.held, record.names()) == ([], [])


@pytest.fixture
def handed(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the cluster holds when it goes on; `done` is what was done to it."""
    there = SimpleNamespace(inventory=CLEAN.inventory, traces=CLEAN.traces, done=[], proven=None)

    def prove(cluster: Cluster) -> None:
        if there.proven:
            raise there.proven

    monkeypatch.setattr(stillness, "awake", lambda nodes: there.done.append("awake"))
    monkeypatch.setattr(stillness, "complete", lambda *_, **__: there.done.append("complete"))
    monkeypatch.setattr(inventory, "everything", lambda _: [])
    monkeypatch.setattr(inventory, "of", lambda _: there.inventory)
    monkeypatch.setattr(traces, "take", lambda _: there.traces)
    monkeypatch.setattr(guard, "prove_ours", prove)
    monkeypatch.setattr(leasing.Kube, "connect", lambda *_: None)
    return there


def order(engine: FakeEngine, owner: Owner | None = None) -> Order:
    return Order(cast("Any", engine), SPEC, "mine", owner, Path("kind"), "node:1", {}, "2")


def test_a_lease_says_how_the_cluster_came_and_whose_it_is(engine: FakeEngine, handed: SimpleNamespace) -> None:
    pooled(engine)
    leased = leasing.lease(order(engine), KEY)
    assert leased == record.get("mine")
    assert leased is not None
    assert (leased.owner, leased.context) == (None, "kind-mine")
    assert leased.origin.words == "from the pool, prepared from snapshot auto-k1"
    assert handed.done == ["awake", "complete"]
    assert "kind-pool-1" not in leased.kubeconfig.read_text()
    assert leased.kubeconfig.stat().st_mode & 0o777 == 0o600


DIRT: dict[str, Callable[[SimpleNamespace], object]] = {
    "an object": lambda there: setattr(there, "inventory", Inventory({**CLEAN.inventory.objects, "v1/Pod a/x": "u h"})),
    "a process": lambda there: setattr(there, "traces", {NODE: ["process kubelet", "process stress"]}),
    "a daemon that is gone": lambda there: setattr(there, "traces", {NODE: []}),
    "not provably ours": lambda there: setattr(there, "proven", ClusterError("kube-system has another UID")),
}  # fmt: skip


@pytest.mark.parametrize("what", DIRT)
def test_one_that_is_not_as_it_was_is_removed_and_the_next_one_handed_out(
    engine: FakeEngine, handed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pooled(engine, "pool-1", since=time.time() - 9)
    DIRT[what](handed)
    assert leasing.lease(order(engine), KEY) is None
    assert (engine.held, engine.wires, record.names()) == ([], [], [])


@pytest.mark.parametrize("how", ["exited", "dead", "gone", "refuses"])
def test_one_that_died_in_the_pool_is_removed_in_words_and_the_next_one_handed_out(
    engine: FakeEngine,
    handed: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    pooled(engine, "pool-1", since=time.time() - 9)

    def refuse(nodes: Sequence[object]) -> None:
        if how == "refuses" and record.get("mine").held_as == "pool-1":
            raise refusal("cannot unpause")

    monkeypatch.setattr(stillness, "awake", refuse)
    engine.held[0].status = "running" if how == "refuses" else how
    if how == "gone":
        engine.held.clear()
    pooled(engine, "pool-2")
    leased = leasing.lease(order(engine), KEY)
    assert leased is not None
    assert (leased.engine_name, record.names()) == ("pool-2", ["mine"])
    said = capsys.readouterr().err
    assert "pool-1 is not handed out, and removed" in said
    assert ("cannot unpause" if how == "refuses" else f"solo-control-plane is {how}") in said


def test_status_tells_since_when_and_how_a_cluster_came(engine: FakeEngine) -> None:
    pooled(engine)
    engine.held[0].status = "paused"
    found = looking.status("pool-1")
    assert (found.state, found.problems, found.came, found.snapshot) == ("pooled", (), "snapshot", "auto-k1")
    engine.held[0].status = "exited"
    assert looking.status("pool-1").state == "stopped"


def test_a_pool_without_one_of_that_content_gives_none(engine: FakeEngine, handed: SimpleNamespace) -> None:
    pooled(engine, pooled="other")
    assert leasing.lease(order(engine), KEY) is None
    assert record.names() == ["pool-1"]


def test_traces_of_two_looks_differ_by_what_came_and_went() -> None:
    before = {"n1": ["process kubelet", "iptables a", "files of /etc 1"]}
    now = {"n1": ["process kubelet", "process kubelet", "files of /etc 2"], "n2": ["process x"]}
    assert traces.difference(before, before) == []
    assert traces.difference(before, now) == [
        "n1: there since: files of /etc 2",
        "n1: there since: process kubelet",
        "n1: gone: files of /etc 1",
        "n1: gone: iptables a",
        "n2: there since: process x",
    ]


def test_a_node_that_does_not_tell_is_never_called_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    node = cast("Any", SimpleNamespace(name="n1"))
    for answer in ((1, "files of /usr 1"), (0, ""), (0, "process kubelet"), (-1, "no such container")):
        monkeypatch.setattr(containers, "run", lambda *_, answer=answer: answer)
        with pytest.raises(ClusterError, match="does not tell"):
            traces.take([node])
    monkeypatch.setattr(containers, "run", lambda *_: (0, "process a\nfiles of /usr 1\n"))
    assert traces.take([node]) == {"n1": ["files of /usr 1", "process a"]}


def test_the_controllers_stop_first_and_go_on_last(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    refusals = [refusal("unable to freeze")]  # of one of them, once

    class Machine:
        def __init__(self, role: str) -> None:
            self.name, self.status, self.labels = role, "running", {containers.ROLE_LABEL: role}

        def pause(self) -> None:
            if refusals:
                raise refusals.pop()
            self.status = "paused"
            done.append(f"pause {self.name}")

        def unpause(self) -> None:
            self.status = "running"
            done.append(f"unpause {self.name}")

        def reload(self) -> None:
            pass

    monkeypatch.setattr(containers, "run", lambda node, command: (done.append(f"{command[1]} {node.name}"), (0, ""))[1])

    def renewed(*_: object, since: float) -> Callable[[], Seen[None]]:
        done.append(f"leases since {since}")
        return lambda: Seen(True, None, "")

    monkeypatch.setattr(stillness, "renewed", renewed)
    nodes = cast("Any", [Machine("control-plane"), Machine("worker")])
    stillness.still(nodes)
    stillness.awake(nodes)
    stillness.awake(nodes)
    stillness.complete(cast("Any", None), nodes, ["a"], since=100.0)
    assert done[0] == "-STOP control-plane"
    assert sorted(done[1:3]) == ["pause control-plane", "pause worker"]
    assert sorted(done[3:5]) == ["unpause control-plane", "unpause worker"]
    assert done[5:] == ["leases since 85.0", "-CONT control-plane"]


def test_a_controller_that_cannot_be_stopped_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimpleNamespace(name="n", labels={containers.ROLE_LABEL: "control-plane"}, pause=lambda: None)
    monkeypatch.setattr(containers, "run", lambda *_: (1, "no process found"))
    monkeypatch.setattr(stillness, "_MANAGER_SECONDS", 0.1)
    with pytest.raises(ClusterError, match="did not take STOP"):
        stillness.still([cast("Any", node)])


def test_a_controller_that_is_being_started_again_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    codes = iter([1, 1, 0])
    node = SimpleNamespace(
        name="n", labels={containers.ROLE_LABEL: "control-plane"}, pause=lambda: done.append("pause")
    )
    monkeypatch.setattr(containers, "run", lambda *_: (next(codes), ""))
    stillness.still([cast("Any", node)])
    assert done == ["pause"]


@pytest.fixture
def machine(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with so many GiB free, where preparing one puts it into the pool."""
    free = SimpleNamespace(gib=8.0, disk=50.0, made=0)

    def prepare(what: Preparation, refs: object, deployed: object, key: str, source: str) -> None:
        free.made += 1
        pooled(engine, f"pool-new{free.made}", pooled=key)

    monkeypatch.setattr(limits, "disk_free", lambda: free.disk)
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=free.gib * (1 << 30)))
    monkeypatch.setattr(filling.images, "ensure", lambda names: {})
    monkeypatch.setattr(filling.fetching, "key", lambda *_: KEY)
    monkeypatch.setattr(filling, "_put", prepare)
    return free


def test_a_pool_is_filled_up_to_its_size(engine: FakeEngine, machine: SimpleNamespace) -> None:
    pooled(engine)
    assert len(filling.fill(Preparation(SPEC), 3)) == 3
    assert machine.made == 2
    assert len(filling.fill(Preparation(SPEC), 2)) == 3
    assert machine.made == 2


def test_a_pool_that_would_leave_less_than_two_gib_is_refused_before_anything_is_made(
    engine: FakeEngine, machine: SimpleNamespace
) -> None:
    with pytest.raises(EnvironmentMissing, match="less than 2 GiB would be left") as told:
        filling.fill(Preparation(SPEC), 11)
    assert told.value.fix == "make room, or prepare 10 more at most"
    machine.gib = 2.1
    with pytest.raises(EnvironmentMissing) as told:
        filling.fill(Preparation(SPEC), 1)
    assert "sandbox pool drain" in told.value.fix
    assert machine.made == 0
    machine.gib = 2.7
    assert len(filling.fill(Preparation(SPEC), 1)) == 1


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_is_none_is_refused(engine: FakeEngine, machine: SimpleNamespace, size: int) -> None:
    with pytest.raises(UsageError, match="no size of a pool"):
        filling.fill(Preparation(SPEC), size)
