"""What the judge says of pods: those that did not run, what could be promised of them, and the evidence."""

from __future__ import annotations

from typing import Any

import pytest
from test_workloads import CRASHED, PODS, WAITING, WHY, history, pod, spec

from sandbox import metrics
from sandbox.judge import weigh as judge
from sandbox.judge import workloads
from sandbox.spec.results import Check
from sandbox.spec.slo import parse_selector
from sandbox.timeline import PodEvent, WorkloadClosed, WorkloadFinished

SAID_OF_WAITING = "a threshold on `pods_because` or `pods_pending` says how many may"


def told(pods: list[PodEvent], slo: dict[str, list[str]] | None = None, **workload: Any) -> dict[str, Check]:
    own = spec(workload={"because": None, **workload}, slo=slo or {"pods_created": ["value>=1"]})
    return {each.id.rpartition("/")[2]: each for each in judge(history(own, pods)).checks if each.group == "workload"}


@pytest.mark.parametrize(
    ("pods", "slo", "status", "reason"),
    [
        (PODS[:12], {}, "pass", ""),
        (
            PODS, {}, "invalid",
            f"2 of 6 pods wait for a node, and nothing is promised of them; {SAID_OF_WAITING}",
        ),
        (PODS, {"pods_pending": ["value==2"]}, "pass", ""),
        (PODS, {"pods_scheduled": ["value<=4"]}, "invalid", "2 of 6 pods wait for a node, and nothing"),
        (PODS, {"pods_scheduled": ["value>=4"]}, "pass", ""),
        (
            CRASHED, {}, "fail",
            "6 of 6 pods failed, and nothing is promised of them; a threshold on `pods_failed` says how many may",
        ),
        (
            [*CRASHED[:3], *WAITING[2:4]], {}, "fail",
            "1 of 2 pods failed, 1 of 2 pods wait for a node, and nothing is promised",
        ),
    ],
)  # fmt: skip
def test_of_pods_that_did_not_run_it_is_said_what_could_be_promised(
    pods: list[PodEvent], slo: dict[str, list[str]], status: str, reason: str
) -> None:
    found = told(pods, slo or {"nodes_used": ["value<=9"]})["whole"]
    assert found.status == status
    assert found.reason.startswith(reason)
    assert bool(found.reason) == bool(reason)


def test_a_promise_of_one_workload_is_none_of_another() -> None:
    first = spec(workload={"because": None})["workloads"][0]
    both = [first, {**first, "name": "others"}]

    def status(*of: str) -> str:
        slo = {f"pods_pending{each}": ["value==2"] for each in of}
        results = judge(history(spec(workloads=both, slo=slo), PODS))
        return next(each.status for each in results.checks if each.id == "workload/trainers/whole")

    assert status("{workload:others}") == "invalid"
    assert status("{workload:others}", "{workload:trainers}") == "pass"
    assert status("{workload:trainers}") == "pass"


def test_pods_that_wait_for_a_reason_that_the_scenario_names_are_spoken_of() -> None:
    found = told([*PODS, *pod(7, "created", "scheduled")], because="Insufficient")["whole"]
    assert found.reason.startswith("1 of 7 pods have a node and never ran there, and nothing is promised")


def test_the_evidence_of_what_did_not_run_is_what_was_said_of_it() -> None:
    pods = [
        *pod(1, "created", "waiting", "scheduled", "failed", failed="exit code 3"),
        *pod(2, "created", "waiting", "scheduled", "failed"),
        *pod(3, "created", "scheduled", "failed"),
        *pod(4, "created", "scheduled", "running"),
    ]
    found = told(pods)["whole"]
    assert found.evidence == [
        "trainers-1 failed: exit code 3",
        f"trainers-2 failed: {WHY}",
        "trainers-3 failed: nothing was said of it",
    ]
    assert (found.observed, found.samples) == ("3 failed, 1 running", 4)


def test_a_workload_says_how_many_came_and_in_what_they_ended() -> None:
    found = told(PODS)["watched"]
    assert (found.status, found.reason) == ("pass", "")
    assert found.observed == "6 of 6 pods created, watched until settled; in the end 2 pending, 4 running"
    assert found.evidence == [f"t=40.00s {found.observed}"]


def test_a_closing_tally_of_nothing_says_none() -> None:
    events = [
        each.model_copy(update={"states": {}}) if isinstance(each, WorkloadClosed) else each for each in history()
    ]
    (found,) = [each for each in judge(events).checks if each.id == "workload/trainers/watched"]
    assert found.reason == "at the end of the run they were none, and the timeline tells of 2 pending, 4 running"


def test_a_watch_whose_time_was_out_names_a_pod_that_was_not_where_it_stays() -> None:
    def reason(pods: list[PodEvent]) -> str:
        events = [
            each.model_copy(update={"why": "time is out"}) if isinstance(each, WorkloadFinished) else each
            for each in history(pods=pods)
        ]
        (found,) = [each for each in judge(events).checks if each.id == "workload/trainers/watched"]
        return found.reason

    words = "were over before its pods were where they stay"
    assert f"{words}: give it more" in reason(PODS)
    assert f"{words}, such as trainers-6: give it more" in reason([*PODS[:-2], *pod(6, "created")])
    assert f"{words}, such as trainers-6: give it more" in reason([*PODS[:-2], *pod(6, "created", "scheduled")])


def test_words_that_most_pods_are_told_come_first() -> None:
    pods = [
        *pod(1, "created", "waiting"),
        *(
            event.model_copy(update={"message": event.message and "zz"})
            for n in (2, 3)
            for event in pod(n, "created", "waiting")
        ),
    ]
    assert witnesses(pods, "pods_pending", 5) == ["trainers-2 and 1 more: zz", f"trainers-1: {WHY}"]
    ended = [event for n, word in enumerate("abbccc") for event in pod(n, "created", "failed", failed=word)]
    assert witnesses(ended, "pods_failed", 2) == ["3 x failed: c", "2 x failed: b"]


def test_of_refusals_the_commonest_are_shown() -> None:
    words = [f"quota {n}" for n in range(30) for _ in range(n + 1)]
    pods = [event for n, word in enumerate(words) for event in pod(n, "refused", refused=word)]
    found = told(pods)["watched"].evidence
    assert found[0] == "30 x refused: quota 29"
    assert len(found) == workloads._LINES + 1


def witnesses(pods: list[PodEvent], metric: str, most: int) -> list[str]:
    lives = metrics.record(history(pods=pods), workloads={"trainers": ""}).pods
    return workloads.witnesses(lives, parse_selector(metric), most)


def test_the_evidence_of_a_rate_is_how_fast_pods_came_and_the_slowest_of_them() -> None:
    slow = [*PODS[:12], *pod(5, "created", "waiting", "scheduled", "running", at=11), *pod(6, "created", at=12.5)]
    assert witnesses(slow, "scheduling_rate", 2) == [
        "created at 2/s, placed at 0/s: no scheduler is quicker than its pods come",
        "t=12.00s trainers-5 on node-1, 1.000 s after it was created",
        "t=10.50s trainers-1 on node-1, 0.500 s after it was created",
    ]
    assert witnesses(PODS[:2], "scheduling_seconds", 2) == [
        "t=10.50s trainers-1 on node-1, 0.500 s after it was created"
    ]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, ["node-1: 2 pods", "and 1 nodes more"]),
        (2, ["node-1: 2 pods", "node-0: 1 pods"]),
        (9, ["node-1: 2 pods", "node-0: 1 pods"]),
    ],
)
def test_the_evidence_of_places_is_the_nodes_with_most_pods(most: int, expected: list[str]) -> None:
    three = [*pod(1, "created", "scheduled"), *pod(2, "created", "scheduled"), *pod(3, "created", "scheduled")]
    taken = pod(4, "created", "scheduled", "lost")
    assert witnesses([*three, *taken], "nodes_used", most) == expected
