"""Leased clusters that go back into the pool, the pool that is filled again, and what neither may take."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.cluster import clean, containers, record
from sandbox.cluster.clean import Clean
from sandbox.cluster.owner import Owner
from sandbox.cluster.pool import entries, limits, refilling, returning, stillness
from sandbox.cluster.record import Cluster
from sandbox.cluster.reset.resetting import Proven, Unclean
from sandbox.errors import ClusterError, DeadlineExceeded, EnvironmentMissing, UsageError
from sandbox.host.mark import MARK
from sandbox.kube import stacks
from sandbox.kube.preparation import Preparation
from tests.unit.container_engine import SPEC, FakeEngine, installed
from tests.unit.pooled import CLEAN, KEY, pooled

BACK = ["mine: put back into the pool as pool-1"]


@pytest.fixture
def engine(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    made = installed(tmp_path, monkeypatch)
    monkeypatch.setattr(returning, "client", lambda: made)
    return made


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the reset finds, and whether the stack answers; `done` is what was done."""
    there = SimpleNamespace(done=[], fails=None, silent=False, full="")

    def resetting(cluster: Cluster, before: Clean) -> Proven:
        there.done.append(f"reset {cluster.name} of {cluster.owner}")
        if there.fails:
            raise there.fails
        return Proven([], replace(before, traces={"n1": ["proven"]}))

    def answer(url: str, *, within: float) -> None:
        there.done.append(url)
        if there.silent:
            raise DeadlineExceeded("no answer")

    monkeypatch.setattr(returning, "reset", resetting)
    monkeypatch.setattr(stacks, "first_answer", answer)
    monkeypatch.setattr(stillness, "still", lambda _: there.done.append("still"))
    monkeypatch.setattr(limits, "why_full", lambda: there.full)
    monkeypatch.setattr(containers, "refreshed", lambda _, cluster: cluster.nodes)
    monkeypatch.setenv("SANDBOX_POOL", "1")
    return there


def leased(engine: FakeEngine, *, age: float = 0.0, owner: Owner | None = None) -> Cluster:
    """A cluster that was leased as `mine`."""
    known = pooled(engine)
    entries.take(KEY, "mine")
    taken = record.get("mine")
    made = replace(taken, owner=owner or Owner.me(), origin=replace(known.origin, way="pool"))
    record.save(made)
    clean.write("mine", replace(CLEAN, since=time.time() - age, endpoints=["80/v1/models"]))
    return made


def test_a_leased_cluster_goes_back_reset_and_answering(engine: FakeEngine, world: SimpleNamespace) -> None:
    leased(engine)
    assert returning.release("mine") == BACK
    assert world.done == [f"reset mine of {Owner.me()}", "http://192.0.2.2:80/v1/models", "still"]
    assert record.names() == ["pool-1"]
    known = record.get("pool-1")
    assert (known.pooled, known.owner, known.engine_name, known.held_as) == (KEY, None, "pool-1", "")
    assert known.kubeconfig == record.home("pool-1") / "kubeconfig"
    assert known.kubeconfig.is_file()
    assert clean.read("pool-1").traces == {"n1": ["proven"]}
    assert len(engine.held) == 1
    again = entries.take(KEY, "next")
    assert again is not None
    assert again.engine_name == "pool-1"


KEPT_OUT: dict[str, Callable[[SimpleNamespace], object]] = {
    "no setting": lambda world: os.environ.pop("SANDBOX_POOL"),
    "off": lambda world: os.environ.update(SANDBOX_POOL="off"),
    "not clean": lambda world: setattr(world, "fails", Unclean("a rule is left", where="mine")),
    "its stack is silent": lambda world: setattr(world, "silent", True),
    "the machine is full": lambda world: setattr(world, "full", "1.0 GiB of memory are free"),
}


@pytest.mark.parametrize("why", KEPT_OUT)
def test_one_that_may_not_go_back_is_taken_down(engine: FakeEngine, world: SimpleNamespace, why: str) -> None:
    leased(engine)
    KEPT_OUT[why](world)
    assert "container pool-1-control-plane" in returning.release("mine")
    assert (engine.held, record.names()) == ([], [])
    assert "still" not in world.done


def test_one_that_is_too_old_or_too_many_is_taken_down(engine: FakeEngine, world: SimpleNamespace) -> None:
    leased(engine, age=25 * 3600)
    returning.release("mine")
    leased(engine)
    pooled(engine, "pool-2")
    returning.release("mine")
    assert record.names() == ["pool-2"]
    assert world.done == []


def test_one_that_never_was_in_the_pool_is_taken_down(engine: FakeEngine, world: SimpleNamespace) -> None:
    made = leased(engine)
    record.save(replace(made, origin=replace(made.origin, way="cold")))
    returning.release("mine")
    (record.home("broken")).mkdir()
    (record.home("broken") / "record.json").write_text("{")
    with pytest.raises(ClusterError, match="on which engine"):  # as `down` says
        returning.release("broken")
    assert (record.names(), world.done) == (["broken"], [])
    assert returning.release("nobody") == []


def test_one_that_is_kept_belongs_to_the_command_while_it_is_reset(engine: FakeEngine, world: SimpleNamespace) -> None:
    made = leased(engine)
    record.save(replace(made, owner=None))
    world.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        returning.release("mine")
    assert record.get("mine").owner == Owner.me()  # killed now, it is removed by the next command


@pytest.mark.parametrize(("told", "size"), [("", 0), ("off", 0), ("0", 0), ("2", 2)])
def test_the_setting(monkeypatch: pytest.MonkeyPatch, told: str, size: int) -> None:
    monkeypatch.setenv("SANDBOX_POOL", told)
    assert refilling.size() == size


@pytest.mark.parametrize("told", ["on", "-1", "two"])
def test_a_setting_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("SANDBOX_POOL", told)
    with pytest.raises(UsageError, match="SANDBOX_POOL"):
        refilling.size()


@pytest.fixture
def started(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """The processes that are started at the end."""
    made: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.setattr(refilling.subprocess, "Popen", lambda command, **how: made.append((command, how)))
    monkeypatch.setattr(refilling.atexit, "register", lambda _: None)
    monkeypatch.setattr(refilling, "_wishes", set())
    monkeypatch.setenv(MARK, "1 2 /state")
    return made


def test_the_pool_is_filled_again_once_for_each_kind_in_a_process_that_is_nobody_s(
    engine: FakeEngine, started: list[tuple[list[str], dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_POOL", "2")
    pooled(engine)
    for _ in range(2):
        refilling.at_the_end(KEY, "solo")
    refilling.at_the_end("other", "")
    assert started == []
    refilling._start()
    ((command, how),) = started
    assert command == [sys.executable, "-m", "sandbox", "pool", "fill", "solo", "--size", "2"]
    assert how["start_new_session"] is True
    assert MARK not in how["env"]


def test_a_pool_that_lacks_none_or_that_nobody_asked_to_fill_is_left(
    engine: FakeEngine, started: list[tuple[list[str], dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refilling.at_the_end(KEY, "solo")
    monkeypatch.setenv("SANDBOX_POOL", "1")
    pooled(engine)
    refilling.at_the_end(KEY, "solo")
    refilling._start()
    assert started == []


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """GiB that are free."""
    there = SimpleNamespace(memory=50.0, disk=50.0)
    memory = lambda: SimpleNamespace(available=there.memory * (1 << 30))  # noqa: E731
    monkeypatch.setattr(limits.psutil, "virtual_memory", memory)
    monkeypatch.setattr(limits, "disk_free", lambda: there.disk)
    return there


def test_a_pool_never_takes_the_last_of_memory_or_disk(free: SimpleNamespace) -> None:
    limits.refuse_too_many(Preparation(SPEC), 20)
    assert limits.why_full() == ""
    free.disk = 6.0
    with pytest.raises(EnvironmentMissing, match=r"GiB of disk, and 6\.0 GiB are free: less than 5 GiB") as told:
        limits.refuse_too_many(Preparation(SPEC), 20)
    assert told.value.fix == "make room, or prepare 3 more at most"
    free.disk = 4.9
    assert limits.why_full() == "4.9 GiB of disk are free, less than 5 GiB"
    with pytest.raises(EnvironmentMissing):
        limits.refuse_too_many(Preparation(SPEC), 1)
    limits.refuse_too_many(Preparation(SPEC), 0)
    free.memory, free.disk = 1.9, None
    assert limits.why_full() == "1.9 GiB of memory are free, less than 2 GiB"
    free.memory = 9.0
    limits.refuse_too_many(Preparation(SPEC), 1)


def test_two_commands_do_not_fill_the_pool_at_once(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "_FILL_SECONDS", 0.0)
    with entries.filling(), pytest.raises(ClusterError, match="another command fills the pool"), entries.filling():
        raise AssertionError("two at once")
    with entries.filling():
        assert cast("Any", engine).held == []
