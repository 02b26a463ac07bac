"""Figures of pods, in full: the least, the greatest, of how many it is said, and the words on what is not certain."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from test_workloads import CRASHED, LIVES, PODS, REFUSED, STUCK, WAITING, WHY, closed, history, pod

from sandbox import metrics
from sandbox.metrics import pods as pods_
from sandbox.spec.slo import parse_expression, parse_selector
from sandbox.timeline import GpuNodes, PodEvent, WorkloadStarted

NO_PODS: list[PodEvent] = []
PRINTED = [
    *pod(1, "created", "scheduled", "running", "printed"),
    *pod(2, "created", "scheduled", "running", "silent"),
    *pod(3, "created", "waiting"),
]
MIXED = [*pod(1, "created", "scheduled", "running"), *pod(2, "created", "scheduled"), *pod(4, "created", "scheduled")]
ONE_STUCK = "1 pods have a node and have not run there, such as trainers-2"
TWO_STUCK = "2 pods have a node and have not run there, such as trainers-2"
NOBODY_RAN = "no pod of it ran, so none could fail"
NOBODY_PRINTED = "no pod of it ran, so none could print anything"
NOBODY_TOOK = "no pod of it ran and held, so none could take anything"
NOBODY_LOOKED = "nobody looked at nodes with GPUs, or there is none"
NOTHING_IN_USE = "no GPU was ever in use, so none could be in anybody's way"
NOBODY_CAME = "no pod of it was created, so nothing could become of one"


def observed(pods: list[PodEvent], metric: str, expression: str, groups: Any = None) -> metrics.Observed:
    events = [*history(pods=pods)[:-2], *([] if groups is None else [GpuNodes(t=41, groups=list(groups))])]
    rec = metrics.record(events, workloads={"trainers": "Insufficient"})
    return metrics.observe(rec, parse_selector(metric), parse_expression(expression, metric.partition("{")[0]))


@pytest.mark.parametrize(
    ("pods", "figure", "expected"),
    [
        (LIVES, ("pods_running", "value>=0"), (1, 1, "")),
        (LIVES, ("pods_failed", "rate<=1%"), (Fraction(1, 6), Fraction(1, 6), "")),
        (MIXED, ("pods_failed", "value==0"), (0, 2, TWO_STUCK)),
        (MIXED[:-2], ("pods_failed", "value==0"), (0, 1, ONE_STUCK)),
        (MIXED, ("pods_failed", "rate<=1%"), (0, Fraction(2, 6), TWO_STUCK)),
        (MIXED, ("pods_running", "value==1"), (1, 1, "")),
        (CRASHED, ("pods_failed", "value>=1"), (6, 6, "")),
        (PRINTED, ("pods_printing", "value==1"), (1, 1, "")),
        (PRINTED[-2:], ("pods_printing", "value>=1"), (0, 0, "")),
        # nodes: those of pods that ran and hold, at the most of all that got one and were not taken away by others
        (PODS, ("nodes_used", "value<=2"), (2, 2, "")),
        (MIXED, ("nodes_used", "value<=2"), (1, 2, TWO_STUCK)),
        (MIXED, ("gpus_allocated", "value<=4"), (1, 3, TWO_STUCK)),
        (LIVES, ("gpus_allocated", "value<=4"), (2, 2, "")),
        ([*MIXED[:3], *CRASHED[3:6]], ("nodes_used", "value<=2"), (1, 2, "1 pods got a node and failed there")),
        ([*MIXED[:3], *pod(2, "created", "scheduled", "lost")], ("nodes_used", "value<=2"), (1, 1, "")),
        (CRASHED, ("nodes_used", "value>=3"), (0, 2, "6 pods got a node and failed there")),
        (WAITING, ("pods_pending", "value==6"), (6, 6, "")),
        (WAITING, ("pods_created", "rate>=1"), (1, 1, "")),
        (REFUSED, ("pods_refused", "value==0"), (6, 6, "")),
        (REFUSED, ("pods_created", "value==0"), (0, 0, "")),
    ],
)
def test_a_figure_of_pods_lies_between_what_was_seen_and_what_may_still_come(
    pods: list[PodEvent], figure: tuple[str, str], expected: tuple[Fraction, Fraction, str]
) -> None:
    seen = observed(pods, *figure)
    assert (seen.low, seen.high, seen.why, seen.samples) == (*expected, 6)
    assert seen.value == seen.low


@pytest.mark.parametrize(
    ("pods", "metric", "expression", "why"),
    [
        (STUCK, "pods_failed", "value==0", NOBODY_RAN),
        (STUCK, "pods_printing", "value==0", NOBODY_PRINTED),
        (STUCK, "nodes_used", "value<=2", NOBODY_TOOK),
        (WAITING, "gpus_allocated", "value==0", NOBODY_TOOK),
        (REFUSED, "pods_pending", "value==0", NOBODY_CAME),
        (REFUSED, "pods_scheduled", "value==0", NOBODY_CAME),
        (NO_PODS, "pods_lost", "value==0", NOBODY_CAME),
    ],
)
def test_a_figure_that_had_no_chance_to_be_another_says_why_it_has_no_value(
    pods: list[PodEvent], metric: str, expression: str, why: str
) -> None:
    seen = observed(pods, metric, expression)
    assert (seen.value, seen.samples, seen.why) == (None, 0, why)
    assert math.isnan(seen.low)


def test_workloads_that_the_scenario_does_not_have_have_no_figure() -> None:
    for metric in ("pods_running", "nodes_used", "scheduling_rate", "scheduling_seconds"):
        expression = "max<=1s" if metric == "scheduling_seconds" else "value>=0"
        seen = observed(PODS, f"{metric}{{workload:others}}", expression)
        assert (seen.value, seen.samples, seen.why) == (None, 0, "")
    counted = observed(PODS, "scheduling_seconds{workload:others}", "count>=1")
    assert (counted.value, counted.samples) == (None, 0)


@pytest.mark.parametrize(
    ("pods", "expression", "expected"),
    [
        (PODS[:12], "max<=1s", (0.5, 0.5, 4, "")),
        (PODS, "max<=1s", (30.5, math.inf, 6, "2 pods still waited at the end, and may wait for ever")),
        (PODS, "min<=1s", (0.5, 0.5, 6, "2 pods still waited at the end, and may wait for ever")),
        (PODS, "count>=4", (4, 4, 4, "")),
        (WAITING, "min<=1s", (30.5, math.inf, 6, "6 pods still waited at the end, and may wait for ever")),
    ],
)
def test_how_long_pods_waited_for_a_node(
    pods: list[PodEvent], expression: str, expected: tuple[float, float, int, str]
) -> None:
    seen = observed(pods, "scheduling_seconds", expression)
    assert (seen.low, seen.high, seen.samples, seen.why) == expected
    assert seen.value == seen.low


def test_a_pod_that_came_just_before_the_end_has_waited_for_less_than_a_second() -> None:
    late = [*PODS[:12], *pod(5, "created", at=40.0), *pod(6, "created", at=50.0)]
    lives = metrics.record(history(pods=late), workloads={"trainers": ""}).pods
    assert pods_.waiting(list(lives.workloads.values())) == [0.5, 0.0]


def test_of_no_pods_nobody_waited() -> None:
    seen = observed(NO_PODS, "scheduling_seconds", "max<=1s")
    assert (seen.value, seen.samples) == (None, 0)


@pytest.mark.parametrize(
    ("pods", "rate", "samples"),
    [
        (PODS[:12], 4 / 0.5, 6),
        ([*pod(1, "created", "scheduled"), *pod(2, "created", "scheduled", at=11)], 2 / 1.5, 6),
        (PODS, 4 / 30.5, 6),  # two still wait at the end, 30.5 s after the first was created
        (WAITING, 0.0, 6),
        (NO_PODS, None, 6),
    ],
)
def test_the_rate_of_scheduling_is_over_the_time_from_the_first_pod_to_the_last_node(
    pods: list[PodEvent], rate: float | None, samples: int
) -> None:
    seen = observed(pods, "scheduling_rate", "value>=0")
    assert seen.value == (None if rate is None else pytest.approx(rate))
    assert seen.samples == (0 if rate is None else samples) or rate is None


@pytest.mark.parametrize(
    ("figure", "groups", "pods", "expected"),
    [
        (("gpu_nodes_free", "value>=2"), None, PODS, (None, NOBODY_LOOKED)),
        (("gpu_nodes_free", "value>=2"), [], PODS, (None, NOBODY_LOOKED)),
        (("gpu_nodes_free", "value>=2"), [(8, 0, 2)], STUCK, (None, NOTHING_IN_USE)),
        (("gpu_nodes_free", "value>=3"), [(8, 0, 2)], STUCK, (2, "")),
        (("gpu_nodes_free", "value>=2"), [(8, 0, 2)], PODS, (2, "")),
        (("gpu_nodes_free", "value>=2"), [(8, 0, 2), (8, 1, 1)], STUCK, (2, "")),
        (("gpu_nodes_free", "value>=2"), [(0, 0, 5), (8, 0, 2)], PODS, (2, "")),
        (("gpu_fragmentation", "value<=50%"), [(3, 1, 1), (1, 0, 1)], PODS, (Fraction(2, 3), "")),
        (("gpu_fragmentation", "value<=50%"), [(3, 3, 1)], PODS, (None, "")),
        (("gpu_fragmentation", "value<=50%"), [(2, 1, 1)], PODS, (1, "")),
    ],
)
def test_figures_of_nodes_are_exact_where_a_gpu_was_in_use(
    figure: tuple[str, str], groups: Any, pods: list[PodEvent], expected: tuple[Fraction | None, str]
) -> None:
    seen = observed(pods, *figure, groups=groups)
    assert (seen.value, seen.why) == expected
    assert seen.samples == (0 if seen.why else 1)
    assert seen.value is None or (seen.low, seen.high) == (seen.value, seen.value)


def test_the_table_of_a_workload_counts_each_pod_once_and_tells_the_commonest_words() -> None:
    (row,) = pods_.summarise(metrics.record(history(pods=LIVES), workloads={"trainers": ""}).pods)
    found = row.model_dump()
    assert {key: found[key] for key in ("workload", "pods", "created", "refused", "scheduled", "pending")} == {
        "workload": "trainers", "pods": 6, "created": 6, "refused": 0, "scheduled": 4, "pending": 2,
    }  # fmt: skip
    assert [found[state] for state in ("running", "succeeded", "failed", "lost")] == [1, 1, 1, 1]
    assert (found["nodes"], found["gpus"]) == (2, 2)
    assert found["creation_rate"] == pytest.approx(6 / 4)
    assert found["scheduling_rate"] == pytest.approx(4 / 30.5)
    assert found["scheduling_seconds"] == pytest.approx({"p50": 0.5, "p99": 0.985, "max": 1.0})
    assert sorted(found["said"]) == [f"1 x {WHY}", "1 x exit code 1", "1 x preempted"]


def test_the_words_of_a_table_are_the_five_commonest() -> None:
    crowd = [
        event for number, word in enumerate([*"abbcccddddeeeeef"]) for event in pod(number, "refused", refused=word)
    ]
    (row,) = pods_.summarise(metrics.record(history(pods=crowd), workloads={"trainers": ""}).pods)
    assert row.said == ["5 x e", "4 x d", "3 x c", "2 x b", "1 x a"]
    assert (row.refused, row.created, row.pending) == (16, 0, 0)
    assert row.scheduling_seconds == {}
    assert (row.creation_rate, row.scheduling_rate) == (None, None)


def test_a_pod_is_in_one_state_as_the_closing_tally_counts_it() -> None:
    events = [*LIVES, *pod(7, "created", "scheduled"), *pod(8, "refused")]
    assert closed(events).states == {
        "succeeded": 1, "failed": 1, "lost": 1, "running": 1, "pending": 2, "scheduled": 1, "refused": 1,
    }  # fmt: skip


def test_a_pod_that_ended_ran_only_if_it_was_seen_to_run() -> None:
    lives = pods_.Pods({"trainers": ""})
    for event in [*history(pods=[*LIVES, *pod(7, "created", "scheduled", "failed"), *pod(8, "created", "succeeded")])]:
        lives.take(event)
    found = lives.workloads["trainers"].pods
    assert {name: (pod.ran, pod.stuck, pod.pending) for name, pod in found.items()} == {
        "trainers-1": (True, False, False),
        "trainers-2": (True, False, False),
        "trainers-3": (True, False, False),
        "trainers-4": (True, False, False),
        "trainers-5": (False, False, True),
        "trainers-6": (False, False, True),
        "trainers-7": (False, False, False),
        "trainers-8": (True, False, False),
    }


# refused once it was there, as an admission that came late would have it; one that is there; one of which less is told
TAKEN_BACK = [*pod(1, "created", "refused"), *pod(2, "created"), *pod(3, "waiting")]


def test_what_was_refused_was_not_created_and_what_nobody_saw_created_was_not_either() -> None:
    assert observed(TAKEN_BACK, "pods_created", "value>=0").value == 1
    (row,) = pods_.summarise(metrics.record(history(pods=TAKEN_BACK), workloads={"trainers": ""}).pods)
    assert (row.created, row.refused) == (1, 1)
    for only in (TAKEN_BACK[:2], TAKEN_BACK[-1:]):
        seen = observed(only, "pods_lost", "value==0")
        assert (seen.value, seen.why) == (None, NOBODY_CAME)


@pytest.mark.parametrize(("because", "many"), [("Insufficient", 2), ("no such words", 0), ("", 0)])
def test_pods_wait_because_of_something_only_where_the_scheduler_said_so(because: str, many: int) -> None:
    rec = metrics.record(history(pods=[*PODS, *pod(7, "created")]), workloads={"trainers": because})
    seen = metrics.observe(rec, parse_selector("pods_because"), parse_expression("value>=0", "pods_because"))
    assert seen.value == many


def test_of_two_workloads_one_that_was_not_watched_to_its_end_leaves_all_open() -> None:
    events = history(pods=PODS)
    both = [*events[:2], WorkloadStarted(t=9.8, workload="others", pods=1), *events[2:]]
    rec = metrics.record(both, workloads={"trainers": "", "others": ""})
    every = parse_expression("value>=0", "pods_running")
    assert metrics.observe(rec, parse_selector("pods_running"), every).value is None
    assert metrics.observe(rec, parse_selector("pods_running{workload:trainers}"), every).value == 4


def test_a_pod_that_succeeded_and_was_then_deleted_ran() -> None:
    lives = metrics.record(history(pods=pod(1, "created", "succeeded", "lost")), workloads={"trainers": ""}).pods
    assert lives.workloads["trainers"].pods["trainers-1"].ran


def test_pods_that_were_deleted_before_they_got_a_node_have_no_rate() -> None:
    lives = metrics.record(history(pods=pod(1, "created", "lost")), workloads={"trainers": ""}).pods
    assert pods_.scheduling_rate(list(lives.workloads.values())) is None


def test_each_pod_holds_the_gpus_that_it_asked_for() -> None:
    assert pods_.gpus_of(pods_.Watched("trainers", 2, 4), [pods_.Pod("a"), pods_.Pod("b")]) == 8


def test_the_table_takes_the_middle_of_two_and_no_words_of_pods_that_run() -> None:
    two = [
        *pod(1, "created", "scheduled", "running", running="hello"),
        *pod(2, "created", "waiting", "scheduled", "running"),
    ]
    (row,) = pods_.summarise(metrics.record(history(pods=two), workloads={"trainers": ""}).pods)
    assert row.scheduling_seconds == pytest.approx({"p50": 0.75, "p99": 0.995, "max": 1.0})
    assert row.said == []
