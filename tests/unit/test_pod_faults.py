"""Faults of pods: each happens, is seen from outside to have happened by this fault, and heals or does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults import Context, drive
from sandbox.faults import pods as pod_faults
from sandbox.timeline import FaultEvent, Timeline, read
from tests.unit.api_server import Answer, Asked, status
from tests.unit.pod_cluster import DEPLOYMENTS, LABELS, PODS, PodCluster, pod_cluster

TARGET = {"target": LABELS}
WHOLE = ["started", "injected", "proven", "healed"]
Run = Callable[..., list[FaultEvent]]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodCluster]:
    with pod_cluster(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: PodCluster) -> Run:
    monkeypatch.setattr(pod_faults, "_PROOF_SECONDS", 0.5)
    monkeypatch.setattr(pod_faults, "_KILL_SECONDS", 0.3)

    def start(name: str, *, own: Any = None, **params: Any) -> list[FaultEvent]:
        context = Context(there.kube, own or there.own, "inference", threading.Event())
        log = tmp_path / "timeline.jsonl"
        log.unlink(missing_ok=True)
        with Timeline(log) as timeline:
            drive(name, 0, context, {"within": "500ms", **TARGET, **params}, timeline)
        return [event for event in read(log) if isinstance(event, FaultEvent)]

    return start


def states(events: list[FaultEvent]) -> list[str]:
    return [event.state for event in events]


# pod.kill


def test_a_killed_pod_gets_sigkill_before_the_api_server_hears_of_it_and_is_replaced(
    run: Run, there: PodCluster
) -> None:
    first, *others = there.pods
    alive: list[bool] = []
    there.server.rules.insert(0, lambda asked: alive.append(first.runs) if asked.method == "DELETE" else None)
    events = run("pod.kill")
    assert states(events) == WHOLE, events[-1].detail
    assert there.signals == [("SIGKILL", first.container)]
    assert alive == [False], "its process had ended by the signal, not by the deletion"
    assert first not in there.pods
    assert all(pod in there.pods and pod.runs for pod in others), "only as many as were asked for"
    assert events[1].evidence["pods"] == {first.name: first.uid}
    assert events[2].evidence["were"] == {first.container[:12]: first.node}


def test_several_pods_can_be_killed_on_several_nodes(run: Run, there: PodCluster) -> None:
    victims = there.pods[:2]
    assert states(run("pod.kill", count=2)) == WHOLE
    assert {ident for _, ident in there.signals} == {pod.container for pod in victims}


def test_with_grace_a_pod_is_only_deleted_and_drains(run: Run, there: PodCluster) -> None:
    there.drain = 0.1
    events = run("pod.kill", grace=10)
    assert states(events) == WHOLE, events[-1].detail
    assert not there.signals
    (deleted,) = [asked for asked in there.server.asked if asked.method == "DELETE"]
    assert deleted.body["gracePeriodSeconds"] == 10
    assert deleted.body["preconditions"]["uid"] == events[1].evidence["pods"]["sim-1"]


def test_on_nodes_out_of_reach_a_pod_is_deleted_without_grace(run: Run, there: PodCluster) -> None:
    events = run("pod.kill", own=replace(there.own, provider="existing"))
    assert states(events) == WHOLE
    assert not there.signals
    assert "out of reach" in events[2].detail


@pytest.mark.parametrize("wrong", ["undead", "kept"])
def test_a_pod_that_goes_on_at_its_node_or_in_the_api_is_not_proven_killed(
    run: Run, there: PodCluster, wrong: str
) -> None:
    setattr(there, wrong, True)
    assert states(run("pod.kill"))[-1] == "failed"
    assert "proven" not in states(run("pod.kill", grace=1))


def test_a_process_that_is_only_asked_to_end_is_not_killed(
    run: Run, there: PodCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = there.pods[:]
    monkeypatch.setattr(pod_faults.nodes, "kill_containers", lambda *_: [each.container for each in before])
    events = run("pod.kill")
    assert states(events) == ["started", "failed"]
    assert "SIGKILL" in events[-1].detail
    assert there.pods == before, "and nothing was deleted"


def test_a_pod_that_did_not_run_on_its_node_before_is_no_victim_of_ours(run: Run, there: PodCluster) -> None:
    gone = there.pods[0]
    ready = gone.as_json()
    gone.ends = 0.0
    gone.as_json = lambda: ready  # type: ignore[method-assign]  # as long as the kubelet has not said so
    events = run("pod.kill")
    assert states(events) == ["started", "failed"]
    assert f"{gone.name} does not run" in events[-1].detail


def test_a_pod_that_somebody_else_has_deleted_is_no_victim_of_ours(run: Run, there: PodCluster) -> None:
    def refused(asked: Asked) -> Answer | None:
        return status(409, "Conflict", "the UID does not match") if asked.method == "DELETE" else None

    there.server.rules.insert(0, refused)
    events = run("pod.kill", grace=1)
    assert states(events) == ["started", "failed"]
    assert "somebody else" in events[-1].detail


def test_pods_that_do_not_come_back_are_not_healed(run: Run, there: PodCluster) -> None:
    there.idle = True
    events = run("pod.kill")
    assert states(events) == ["started", "injected", "proven", "not_healed"]
    assert "2 of 2 pods with app=sim in inference ready, wanted 3" in events[-1].detail


def test_pods_that_come_back_and_are_not_ready_are_not_healed(run: Run, there: PodCluster) -> None:
    there.startup = 60.0
    assert states(run("pod.kill"))[-1] == "not_healed"


def test_too_few_ready_pods_are_no_target(run: Run, there: PodCluster) -> None:
    assert states(run("pod.kill", count=4)) == ["started", "no_target"]
    assert states(run("pod.kill", target={"app": "other"})) == ["started", "no_target"]
    assert not there.signals
    assert not [asked for asked in there.server.asked if asked.method == "DELETE"]


def test_a_pod_that_does_not_serve_is_nobody_to_kill(run: Run, there: PodCluster) -> None:
    there.pods[0].ready_at = time.monotonic() + 60
    events = run("pod.kill", count=3)
    assert states(events) == ["started", "no_target"]
    assert "2 ready pods" in events[-1].detail
    assert not there.signals


# rollout.restart


def test_a_restart_makes_new_pods_of_its_own_stamp_and_leaves_no_old_one(run: Run, there: PodCluster) -> None:
    old = {pod.uid for pod in there.pods}
    there.drain = 0.05
    events = run("rollout.restart", within="5s")
    assert states(events) == WHOLE, events[-1].detail
    assert there.generation == 2
    assert events[1].evidence["generations"] == {"sim": [1, 2]}
    assert not old & {pod.uid for pod in there.pods if not pod.deleted}
    assert set(events[2].evidence["new_pods"]) <= {pod.name for pod in there.pods}


def test_a_template_that_does_not_change_is_no_restart(run: Run, there: PodCluster) -> None:
    there.frozen = True
    events = run("rollout.restart")
    assert states(events) == ["started", "failed"]
    assert "generation" in events[-1].detail


def test_a_controller_that_makes_no_new_pod_is_no_proof(run: Run, there: PodCluster) -> None:
    there.lazy = True
    events = run("rollout.restart")
    assert states(events) == ["started", "injected", "failed"]
    assert "none of them of this restart" in events[-1].detail


def test_new_pods_of_another_restart_prove_nothing_of_this_one(run: Run, there: PodCluster) -> None:
    """A rollout that somebody else began goes on while ours is not taken over: its pods are new, and not ours."""
    there.lazy = True
    there.server.rules.insert(0, lambda asked: there.make() and None if asked.path == PODS else None)
    there.annotations = {"kubectl.kubernetes.io/restartedAt": "another"}
    monkey = there.answer

    def stale(asked: Asked) -> Answer | None:
        answer = monkey(asked)
        if asked.method == "PATCH":
            there.annotations = {"kubectl.kubernetes.io/restartedAt": "another"}
        return answer

    there.server.rules[-1] = stale
    events = run("rollout.restart")
    assert states(events) == ["started", "injected", "failed"], events[-1].detail


def test_a_rollout_that_does_not_end_is_not_healed(run: Run, there: PodCluster) -> None:
    there.startup = 60.0
    assert states(run("rollout.restart")) == ["started", "injected", "proven", "not_healed"]


def test_an_old_pod_that_stays_is_not_healed_whatever_the_deployment_says(run: Run, there: PodCluster) -> None:
    stays = there.pods[0].as_json()
    there.drain = 0.05

    def leftover(asked: Asked) -> Answer | None:
        answer = there.answer(asked)
        if answer and asked.path == PODS and asked.method == "GET" and answer.body:
            others = [each for each in answer.body["items"] if each["metadata"]["uid"] != stays["metadata"]["uid"]]
            answer.body["items"] = [stays, *others]
        return answer

    there.server.rules[-1] = leftover
    events = run("rollout.restart", within="2s")
    assert states(events)[-1] == "not_healed"
    assert stays["metadata"]["name"] in events[-1].detail


def test_a_deployment_that_wants_no_pod_is_no_target(run: Run, there: PodCluster) -> None:
    there.replicas = 0
    there.pods.clear()
    assert states(run("rollout.restart")) == ["started", "no_target"]
    assert not there.server.seen("PATCH", f"{DEPLOYMENTS}/sim")
    assert states(run("rollout.restart", target={"app": "other"})) == ["started", "no_target"]
