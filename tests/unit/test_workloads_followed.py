"""Pods of a workload, followed: what was not heard of, not over or not seen is never written down as an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_workloads import Cluster, told, workload

from sandbox.errors import ClusterError
from sandbox.kube import ApiError, Object
from sandbox.timeline import Event, PodEvent, Timeline, WorkloadFinished, WorkloadStarted, read
from sandbox.workloads import Board, Ground, drive

RUNNING = {"phase": "Running", "node": "n1"}
Driven = Callable[..., list[Event]]


@pytest.fixture
def driven(tmp_path: Path) -> Driven:
    def through(
        cluster: Cluster,
        *,
        calm: Callable[[], bool] = lambda: True,
        **more: Any,
    ) -> list[Event]:
        wanted = workload(**more)
        halt = threading.Event()
        with Timeline(tmp_path / "timeline.jsonl") as timeline, ThreadPoolExecutor() as pool:
            ground = Ground(cluster, {"toolbox": "ref"}, timeline, halt, calm, pool)
            with Board(cluster, timeline, halt) as board:
                pool.submit(drive, ground, board, wanted, 0.0).result(timeout=20)
        return list(read(tmp_path / "timeline.jsonl"))

    return through


def ended(events: list[Event]) -> WorkloadFinished:
    (found,) = [event for event in events if isinstance(event, WorkloadFinished)]
    return found


@pytest.mark.parametrize("pods", [1, 3])
def test_as_many_pods_are_made_as_were_asked_for(driven: Driven, pods: int) -> None:
    made: list[str] = []

    def become(thing: Object) -> list[dict[str, Any]]:
        made.append(thing["metadata"]["name"])
        return [dict(RUNNING)]

    events = driven(Cluster(become), pods=pods)
    assert sorted(made) == [f"trainers-{number}" for number in range(1, pods + 1)]
    assert [event.pods for event in events if isinstance(event, WorkloadStarted)] == [pods]
    assert ended(events).created == pods


def test_a_pod_of_which_nothing_was_heard_keeps_the_watch_open(driven: Driven) -> None:
    def become(thing: Object) -> list[dict[str, Any]]:
        return [dict(RUNNING)] if thing["metadata"]["name"] == "trainers-1" else []

    assert ended(driven(Cluster(become), within="2s")).why == "time is out"


def test_nothing_is_settled_while_a_fault_is_still_to_strike(driven: Driven) -> None:
    calm = time.monotonic() + 2.5
    events = driven(Cluster(lambda _: [dict(RUNNING)]), calm=lambda: time.monotonic() >= calm)
    started = next(event for event in events if isinstance(event, WorkloadStarted))
    assert ended(events).t - started.t >= 2.2


def test_a_server_in_trouble_for_a_moment_has_refused_nothing(driven: Driven) -> None:
    class Busy(Cluster):
        troubles = 3

        def create(self, thing: Object) -> Object:
            if self.troubles:
                self.troubles -= 1
                raise ApiError("create", 503, {}, "etcd leader changed")
            return super().create(thing)

    events = driven(Busy(lambda _: [dict(RUNNING)]))
    assert (ended(events).created, ended(events).refused) == (2, 0)
    assert "refused" not in {state for _, state in told(events)}


def test_a_watch_that_broke_off_ends_nothing(driven: Driven, tmp_path: Path) -> None:
    class Forbidden(Cluster):
        def watch(self, *_: Any, **__: Any) -> Any:
            raise ApiError("watch", 403, {}, "forbidden")

    with pytest.raises(ClusterError, match="forbidden"):
        driven(Forbidden(lambda _: [dict(RUNNING)]), within="5s")
    assert not [event for event in read(tmp_path / "timeline.jsonl") if isinstance(event, WorkloadFinished)]


@pytest.mark.parametrize(("phase", "state"), [("Failed", "failed"), ("Succeeded", "succeeded")])
def test_a_pods_end_is_told_as_the_server_tells_it(driven: Driven, phase: str, state: str) -> None:
    bad = [{"name": "main", "state": {"terminated": {"exitCode": 9, "reason": "Error"}}}]
    end = {"phase": phase, "node": "n1", "containerStatuses": bad if phase == "Failed" else []}
    events = driven(Cluster(lambda _: [dict(RUNNING), dict(end)]), command=["train"])
    ends = [event for event in events if isinstance(event, PodEvent) and event.state in {"failed", "succeeded"}]
    assert [event.state for event in ends] == [state, state]
    assert {event.message for event in ends} == ({"exit code 9 Error"} if phase == "Failed" else {""})
    assert ended(events).why == "ended"
