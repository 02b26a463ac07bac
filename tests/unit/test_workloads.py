"""Workloads: what a scenario may say of them, what is judged of their pods, and how they are driven and followed."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sandbox import metrics
from sandbox.errors import UsageError
from sandbox.judge import weigh as judge
from sandbox.kube import ApiError, Kube, Object
from sandbox.metrics.pods import Pods
from sandbox.plan import load_all
from sandbox.report import github, terminal
from sandbox.report.write import write_all
from sandbox.spec import load_text
from sandbox.spec.results import Check, Results
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import METRICS, parse_expression, parse_selector
from sandbox.spec.workload import Workload
from sandbox.timeline import Event, GpuNodes, PhaseChanged, PodEvent, RunStarted, Timeline, read
from sandbox.timeline import WorkloadClosed as Closed
from sandbox.timeline import WorkloadFinished as Finished
from sandbox.timeline import WorkloadStarted as Started
from sandbox.workloads import Board, Ground, close, drive, objects

driving_module = sys.modules["sandbox.workloads.drive"]
HEAD = """
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: demo, description: For a test.}
"""
ONE = "workloads: [{name: trainers, pods: 6, resources: {nvidia.com/gpu: 1}}]\n"
SLO = 'slo: {pods_scheduled: ["value==4"]}\n'
WHY = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def scenario(text: str) -> Scenario:
    return load_text(HEAD + text, Path("demo.yaml"), Scenario).model


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as error:
        scenario(text)
    return str(error.value)


def test_a_scenario_may_have_workloads_alone() -> None:
    loaded = scenario(ONE + SLO)
    assert loaded.stack is None
    assert loaded.load is None
    assert loaded.workloads[0].gpus == 1
    assert Scenario.model_validate(loaded.model_dump(mode="json", by_alias=True)) == loaded


LOAD = "load: {profile: chat-short, arrivals: {rate: 5}, duration: 10s}\n"
STACK = "stack: {name: vllm-sim}\nsteadyState: [openai.chat]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "stack: must be there, or `workloads`"),
        (ONE, "workloads: workloads without `slo`"),
        (LOAD + SLO, "load: needs a `stack`"),
        ("stack: {name: vllm-sim}\n" + ONE + SLO, "steadyState: must be there"),
        (ONE + SLO + "steadyState: [openai.chat]\n", "steadyState[0]: openai.chat looks at a stack"),
        (ONE + SLO + "attacks: [all]\n", "attacks: needs a `load`"),
        (ONE + 'slo: {ttft: ["med<=1s"]}\n', "ttft is measured on requests, and there is no `load`"),
        (STACK + LOAD + SLO, "pods_scheduled is measured on pods, and there are no `workloads`"),
        (ONE + 'slo: {"pods_pending{workload:others}": ["value==1"]}\n', "no workload 'others'; there are: trainers"),
        (ONE + 'slo: {pods_printing: ["value==1"]}\n', "no workload has `prints`"),
        (ONE + 'slo: {"pods_because{workload:trainers}": ["value==1"]}\n', "workload trainers has no `because`"),
        (ONE + 'slo: {pods_scheduled: ["value==7"]}\n', "value==7 needs more pods than the 6 there are"),
        (ONE + 'slo: {"pods_scheduled{phase:fault}": ["value==1"]}\n', "pods_scheduled has no tag 'phase'"),
        (ONE + 'slo: {"gpu_fragmentation{workload:trainers}": ["value<=0.1"]}\n', "is measured over all nodes"),
        (STACK + LOAD + ONE + 'slo: {"ttft{workload:trainers}": ["med<=1s"]}\n', "ttft has no tag 'workload'"),
        (ONE + SLO + "faults: [{pod.kill: {target: {a: b}}, at: 31s}]\n", "after the last workload's time has ended"),
        ("workloads: [{name: a}, {name: a}]\n" + 'slo: {pods_scheduled: ["value==1"]}\n', "another workload's name"),
        ("workloads: [{name: a, after: b}, {name: b}]\n" + SLO, "'b' is no workload before this one"),
        ("workloads: [{name: a, sharedClaim: true}]\n" + SLO, "needs a `claim` to share"),
        ("workloads: [{name: a, prints: '['}]\n", "no regular expression"),
        ("workloads: [{name: a, fleet: true, prints: x}]\n", "a simulated node runs no container"),
        ("workloads: [{name: a, pods: 5001}]\n" + SLO, "less than or equal to 5000"),
        ("workloads: [{name: a, pod: {containers: []}}]\n" + SLO, "pod.containers: is written as `image`"),
        ("workloads: [{name: a, container: {image: x}}]\n" + SLO, "write `image` beside `container`"),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, says: str) -> None:
    assert says in refusal(text)


def test_names_that_nothing_has_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(
        HEAD + 'workloads: [{name: a, fleet: true}, {name: b, image: nope}]\nslo: {nodes_used: ["value==1"]}\n'
    )
    with pytest.raises(UsageError) as error:
        load_all([str(path)])
    assert "workloads[0].fleet: cluster solo has no simulated nodes" in str(error.value)
    assert "workloads[1].image: there is no image 'nope'" in str(error.value)


def test_a_plan_of_workloads_needs_their_images_and_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(f"{HEAD}{ONE}{SLO}")
    plan = load_all([str(path)])[0]
    assert plan.images == ["toolbox"]
    assert "trainers: 6 pods of 1 nvidia.com/gpu, at 0 s" in plan.in_words()
    assert "stack         none" in plan.in_words()


# --- judged


def spec(**changes: Any) -> dict[str, Any]:
    first = {
        "name": "trainers",
        "pods": 6,
        "resources": {"nvidia.com/gpu": 1},
        "because": "Insufficient nvidia.com/gpu",
    }
    return {
        "apiVersion": "sandbox/v1",
        "kind": "Scenario",
        "metadata": {"name": "demo", "description": "A history written by hand."},
        "workloads": [first | changes.pop("workload", {})],
        "slo": {"pods_scheduled{workload:trainers}": ["value==4"], "pods_pending": ["value==2"]},
        **changes,
    }


def pod(number: int, *states: str, at: float = 10.0, **more: Any) -> list[PodEvent]:
    name, node = f"trainers-{number}", f"node-{number % 2}"
    return [
        PodEvent(
            t=at + step / 2, workload="trainers", pod=name, state=state,
            node=node if state == "scheduled" else "", message=WHY if state == "waiting" else more.get(state, ""),
        )
        for step, state in enumerate(states)
    ]  # fmt: skip


RAN = ("created", "scheduled", "running")
PODS = [event for n in range(1, 5) for event in pod(n, *RAN)] + [
    event for n in (5, 6) for event in pod(n, "created", "waiting")
]


def closed(pods: list[PodEvent]) -> Closed:
    """The closing tally that goes with these."""
    known = Pods({"trainers": ""})
    for event in (Started(t=9.9, workload="trainers", pods=6), *pods):
        known.take(event)
    lives = known.workloads["trainers"].pods.values()
    return Closed(t=40.5, workload="trainers", states=dict(Counter(pod.now for pod in lives)))


def history(
    scenario: dict[str, Any] | None = None, pods: list[PodEvent] | None = None, *, whole: bool = True, created: int = 6
) -> list[Event]:
    events: list[Event] = [
        RunStarted(t=0, run_id="r1", wall="2026-01-01T00:00:00Z", scenario=scenario or spec(), source="demo.yaml"),
        PhaseChanged(t=9, name="exercise", status="started"),
        Started(t=9.9, workload="trainers", pods=6, gpus=1),
        *(PODS if pods is None else pods),
    ]
    if whole:
        events.append(Finished(t=40, workload="trainers", created=created, refused=6 - created, why="settled"))
        events.append(closed(PODS if pods is None else pods))
        events.append(GpuNodes(t=41, groups=[(8, 0, 1), (8, 4, 1)]))
    return [*events, PhaseChanged(t=46, name="recover", status="ok")]


def check(results: Results, name: str) -> Check:
    found = [item for item in results.checks if item.id.startswith(name)]
    assert len(found) == 1, [item.id for item in results.checks]
    return found[0]


def test_pods_that_are_where_they_have_to_be_pass_and_the_scheduler_s_words_are_the_evidence() -> None:
    results = judge(history())
    assert results.verdict == "pass", [each for each in results.checks if each.status != "pass"]
    assert check(results, "slo/pods_pending").observed == "2"
    assert check(results, "slo/pods_pending").evidence == [f"trainers-5 and 1 more: {WHY}"]
    assert check(results, "workload/trainers/because").observed == "said of 2 of 2 pods held back"
    summary = results.workloads[0]
    assert (summary.scheduled, summary.pending, summary.running, summary.nodes, summary.gpus) == (4, 2, 4, 2, 4)
    assert summary.said == [f"2 x {WHY}"]


def test_a_count_that_is_not_met_fails_and_says_the_number() -> None:
    results = judge(history(spec(slo={"pods_scheduled": ["value==6"]})))
    assert check(results, "slo/pods_scheduled").status == "fail"
    assert check(results, "slo/pods_scheduled").observed == "4"
    assert WHY in " ".join(check(results, "slo/pods_scheduled").evidence)


def test_a_watch_that_was_cut_short_is_invalid_even_where_its_counts_fit() -> None:
    results = judge(history(whole=False))
    assert results.verdict == "invalid"
    assert {each.status for each in results.checks if each.group in {"slo", "workload"}} == {"invalid"}


def test_pods_that_the_timeline_does_not_tell_of_are_missing_evidence() -> None:
    results = judge(history(pods=PODS[:-2]))
    assert check(results, "workload/trainers/watched").status == "invalid"
    assert "evidence is missing" in check(results, "workload/trainers/watched").reason


def test_pods_that_wait_for_another_reason_fail() -> None:
    results = judge(history(spec(workload={"because": "Insufficient cpu"})))
    assert check(results, "workload/trainers/because").status == "fail"
    assert "Insufficient nvidia.com/gpu" in check(results, "workload/trainers/because").reason


def test_of_one_pod_that_waits_for_another_reason_its_words_are_told() -> None:
    other = PodEvent(t=12, workload="trainers", pod="trainers-6", state="waiting", message="no claim yet")
    found = check(judge(history(pods=[*PODS, other])), "workload/trainers/because")
    assert (found.status, found.reason) == ("fail", "of trainers-6 the scheduler said: no claim yet")


def test_what_was_said_of_pods_that_waited_for_a_moment_only_does_not_count_beside_those_that_still_wait() -> None:
    early = PodEvent(t=10.1, workload="trainers", pod="trainers-1", state="waiting", message="no claim yet")
    assert judge(history(pods=[early, *PODS])).verdict == "pass"


def test_where_nothing_waits_its_reason_is_not_proven() -> None:
    pods = [event for n in range(1, 7) for event in pod(n, *RAN)]
    results = judge(history(spec(slo={"pods_scheduled": ["value==6"]}), pods))
    assert check(results, "workload/trainers/because").status == "invalid"


PRINTS = {"workload": {"prints": "GPU 0: NVIDIA H100", "because": None}, "slo": {"pods_printing": ["value==4"]}}


def test_what_pods_print_is_held_against_every_pod_that_ran() -> None:
    said = [event for n in range(1, 5) for event in pod(n, "printed", at=12, printed="GPU 0: NVIDIA H100 80GB")]
    good = judge(history(spec(**PRINTS), [*PODS, *said]))
    assert good.verdict == "pass", good.headline
    silent = pod(1, "failed", "silent", at=12, failed="exit code 9", silent="no devices were found")
    bad = judge(history(spec(**PRINTS), [*PODS, *said[1:], *silent]))
    assert check(bad, "workload/trainers/prints").status == "fail"
    assert "no devices were found" in check(bad, "workload/trainers/prints").reason


@pytest.mark.parametrize(
    ("more", "status", "observed", "reason"),
    [
        (
            pod(1, "printed", "failed", at=12, printed="GPU 0: NVIDIA H100", failed="exit code 1"),
            "fail", "3 of 4 did", "trainers-1 printed it, and failed: exit code 1",
        ),
        (pod(1, "failed", at=12), "fail", "3 of 4 did", "trainers-1 failed, and its last line is: none"),
        (pod(1, "silent", at=12), "fail", "3 of 4 did", "trainers-1 running, and its last line is: none"),
        (
            [*pod(1, "printed", at=12, printed="GPU 0: NVIDIA H100"), *pod(7, "created", "scheduled")],
            "invalid", "4 of 5 did", "trainers-7 has a node and never ran there, so it could not print anything",
        ),
    ],
)  # fmt: skip
def test_a_pod_that_printed_and_failed_or_never_ran_did_not_do_it(
    more: list[PodEvent], status: str, observed: str, reason: str
) -> None:
    said = [event for n in range(2, 5) for event in pod(n, "printed", at=12, printed="GPU 0: NVIDIA H100 80GB")]
    found = check(judge(history(spec(**PRINTS), [*PODS, *said, *more])), "workload/trainers/prints")
    assert (found.status, found.observed, found.reason) == (status, observed, reason)
    assert found.samples == int(observed.split()[2])


def test_where_no_pod_ran_nothing_could_be_printed_which_is_invalid() -> None:
    pods = [event for n in range(1, 7) for event in pod(n, "created", "waiting")]
    assert check(judge(history(spec(**PRINTS), pods)), "workload/trainers/prints").status == "invalid"


def test_pods_that_the_server_refuses_are_counted_with_its_words() -> None:
    pods = [*PODS[:-4], *pod(5, "refused", refused="exceeded quota"), *pod(6, "refused", refused="exceeded quota")]
    results = judge(history(spec(workload={"because": None}, slo={"pods_refused": ["value==2"]}), pods, created=4))
    assert results.verdict == "pass", results.headline
    assert check(results, "workload/trainers/watched").evidence[0] == "2 x refused: exceeded quota"


def value(
    pods: list[PodEvent], metric: str, expression: str = "value>=0", groups: Any = (), created: int = 6
) -> float | None:
    events = [*history(pods=pods, created=created)[:-2], GpuNodes(t=41, groups=list(groups))]
    rec = metrics.record(events, workloads={"trainers": "Insufficient"})
    own = parse_expression(expression, metric.partition("{")[0])
    seen = metrics.observe(rec, parse_selector(metric), own)
    return None if own.decided(seen.low, seen.high) is None else seen.value


LIVES = [
    *pod(1, "created", "scheduled", "running", "succeeded"),
    *pod(2, "created", "scheduled", "running", "failed", at=11, failed="exit code 1"),
    *pod(3, "created", "waiting", "scheduled", "running", "lost", at=12, lost="preempted"),
    *pod(4, "created", "scheduled", "running", at=13),
    *pod(5, "created", "waiting", at=14),
    *pod(6, "created", at=14),
]


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        ("pods_created", 6),
        ("pods_scheduled", 4),
        ("pods_pending", 2),
        ("pods_running", 1),
        ("pods_succeeded", 1),
        ("pods_failed", 1),
        ("pods_lost", 1),
        ("pods_because", 2),
        ("nodes_used", 2),
        ("gpus_allocated", 2),
        ("scheduling_rate", 4 / 30.5),
    ],
)
def test_each_metric_of_pods_counts_what_it_says(metric: str, wanted: float) -> None:
    assert value(LIVES, metric) == pytest.approx(wanted)


def test_times_and_shares_of_pods() -> None:
    assert value(LIVES[:-3], "scheduling_seconds", "max<=1s") == 1.0
    assert value(LIVES, "pods_scheduled", "rate>=0.5") == pytest.approx(4 / 6)
    assert METRICS["scheduling_seconds"].kind == "trend"


def test_devices_of_claims_are_gpus_too_and_a_shared_claim_counts_once() -> None:
    claim = PodEvent(
        t=12, workload="trainers", pod="trainers-4", state="allocated", devices=["gpu.nvidia.com/n/gpu-0", "gpu-1"]
    )
    assert value([*LIVES, claim], "gpus_allocated") == 4
    shared = [claim.model_copy(update={"pod": f"trainers-{n}", "message": "trainers"}) for n in (1, 4)]
    assert value([*LIVES, *shared], "gpus_allocated") == 4


@pytest.mark.parametrize(
    ("groups", "free", "fragmentation"),
    [
        ([(8, 0, 10)], 10, 0.0),
        ([(8, 4, 10)], 0, 1.0),
        ([(8, 0, 3), (8, 6, 4), (8, 8, 5)], 3, 8 / 32),
        ([(8, 8, 5)], 0, None),
        ([], None, None),
    ],
)
def test_free_gpus_on_nodes_partly_in_use_are_fragments(
    groups: Any, free: int | None, fragmentation: float | None
) -> None:
    assert value(PODS, "gpu_nodes_free", groups=groups) == free
    assert value(PODS, "gpu_fragmentation", groups=groups) == fragmentation


# a zero needs its denominator

STUCK = [event for n in range(1, 7) for event in pod(n, "created", "scheduled")]
REFUSED = [event for n in range(1, 7) for event in pod(n, "refused", refused="exceeded quota")]
CRASHED = [
    event for n in range(1, 7) for event in pod(n, "created", "scheduled", "failed", failed="UnexpectedAdmission")
]
WAITING = [event for n in range(1, 7) for event in pod(n, "created", "waiting")]


@pytest.mark.parametrize(
    ("pods", "metric", "expression"),
    [
        (STUCK, "pods_failed", "value==0"),
        (STUCK, "pods_failed", "rate<=1%"),
        (STUCK, "nodes_used", "value<=2"),
        (STUCK, "gpus_allocated", "value==6"),
        (STUCK, "pods_printing", "value==0"),
        (REFUSED, "pods_failed", "value==0"),
        (REFUSED, "nodes_used", "value<=1"),
        (REFUSED, "pods_pending", "value==0"),
        (REFUSED, "pods_lost", "value==0"),
        (REFUSED, "gpus_allocated", "value<=4"),
        (WAITING, "pods_failed", "value==0"),
        (WAITING, "nodes_used", "value<=1"),
        (CRASHED, "nodes_used", "value<=2"),
        (PODS[:-4] + STUCK[-4:], "pods_failed", "value==0"),
        (PODS[:-4] + STUCK[-4:], "gpus_allocated", "value==6"),
    ],
)
def test_without_a_chance_to_go_wrong_there_is_no_figure(pods: list[PodEvent], metric: str, expression: str) -> None:
    created = 0 if pods is REFUSED else 6
    assert value(pods, metric, expression, created=created) is None
    own = spec(workload={"because": None, "prints": "x"}, slo={metric: [expression]})
    assert check(judge(history(own, pods, created=created)), f"slo/{metric}").status == "invalid"


@pytest.mark.parametrize(
    ("pods", "metric", "expression"),
    [
        (STUCK, "pods_running", "value==4"),
        (STUCK, "pods_failed", "value>=3"),
        (STUCK, "pods_printing", "value==6"),
        (REFUSED, "pods_running", "value==6"),
        (REFUSED, "gpus_allocated", "value==4"),
        (CRASHED, "gpus_allocated", "value==6"),
        (CRASHED, "pods_failed", "value==0"),
        (WAITING, "scheduling_rate", "value>=1"),
    ],
)
def test_a_promise_that_is_broken_for_certain_still_fails(pods: list[PodEvent], metric: str, expression: str) -> None:
    own = spec(workload={"because": None, "prints": "x"}, slo={metric: [expression]})
    if (pods, metric) == (STUCK, "pods_failed"):  # all six may fail yet
        own["slo"] = {"pods_succeeded": ["value>=3"]}
        metric = "pods_succeeded"
    results = judge(history(own, pods, created=0 if pods is REFUSED else 6))
    assert check(results, f"slo/{metric}").status == "fail"


@pytest.mark.parametrize("metric", ["gpu_nodes_free", "gpu_fragmentation"])
def test_nodes_on_which_no_gpu_was_ever_in_use_show_nothing(metric: str) -> None:
    expression = {"gpu_nodes_free": "value>=2", "gpu_fragmentation": "value<=1%"}[metric]
    assert value(REFUSED, metric, expression, groups=[(8, 0, 2)], created=0) is None
    assert value(PODS, metric, expression, groups=[(8, 0, 2)]) is not None
    assert value(REFUSED, metric, expression, groups=[(8, 0, 2), (8, 8, 1)], created=0) is not None


def test_gpus_that_are_held_and_not_offered_any_more_are_no_free_ones() -> None:
    assert value(PODS, "gpu_fragmentation", groups=[(3, 4, 1), (4, 0, 1)]) == 0.0


def test_a_pod_that_still_waits_has_waited_for_as_long_as_it_was_watched_and_may_wait_for_ever() -> None:
    pods = [*PODS[:-4], *pod(5, "created", "waiting", at=10.5), *pod(6, "created", "waiting", at=10.5)]  # until 40.5
    assert value(pods, "scheduling_seconds", "max<=1s") == 30.0
    assert value(pods, "scheduling_seconds", "max>=20s") == 30.0
    assert value(pods, "scheduling_seconds", "max<=60s") is None, "it may or may not have got one by then"
    assert value(pods, "scheduling_seconds", "med<=1s") == 0.5
    assert value(pods, "scheduling_seconds", "p(90)<=1s") is not None
    assert value(pods, "scheduling_seconds", "count>=4") == 4
    assert value(pods, "scheduling_rate", "value>=1") == pytest.approx(4 / 30.5)
    results = judge(history(spec(slo={"scheduling_seconds": ["max<=1s"], "pods_pending": ["value==2"]}), pods))
    assert check(results, "slo/scheduling_seconds").status == "fail"


# a moment is not a state


def test_a_pod_that_crashes_after_its_watch_breaks_the_promise() -> None:
    """It ran for four quiet seconds, and printed what it had to; then it ended with 1."""
    said = [event for n in range(1, 5) for event in pod(n, "printed", at=12, printed="GPU 0: NVIDIA H100 80GB")]
    own = spec(workload={"prints": "GPU 0", "because": None}, slo={"pods_printing": ["value==4"]})
    assert judge(history(own, [*PODS, *said])).verdict == "pass"
    crashed = [*PODS, *said, *pod(1, "failed", at=40.2, failed="exit code 1 Error")]
    results = judge(history(own, crashed))
    assert results.workloads[0].failed == 1
    assert check(results, "workload/trainers/prints").status == "fail"
    assert "printed it, and failed: exit code 1" in check(results, "workload/trainers/prints").reason
    assert check(results, "workload/trainers/whole").status == "fail"


def test_a_watch_whose_time_was_out_has_not_seen_where_pods_stay() -> None:
    events = [
        event.model_copy(update={"why": "time is out"}) if isinstance(event, Finished) else event for event in history()
    ]
    results = judge(events)
    assert check(results, "workload/trainers/watched").status == "invalid"
    assert "`within`" in check(results, "workload/trainers/watched").reason


@pytest.mark.parametrize(
    ("closings", "says"),
    [
        ([], "looked at 0 times"),
        ([closed(PODS), closed(PODS)], "looked at 2 times"),
        ([Closed(t=41, workload="trainers", states={"running": 4, "pending": 1})], "1 pending, 4 running, and the"),
        ([closed(LIVES)], "at the end of the run they were"),
    ],
)
def test_pods_that_were_not_looked_at_when_the_run_was_over_prove_nothing(closings: list[Event], says: str) -> None:
    events = [event for event in history() if not isinstance(event, Closed)]
    results = judge([*events[:-1], *closings, events[-1]])
    assert results.verdict == "invalid"
    assert says in check(results, "workload/trainers/watched").reason


ENDS = {
    "failed": pod(4, "created", "scheduled", "running", "failed", failed="exit code 1"),
    "lost": pod(4, "created", "scheduled", "running", "lost", lost="preempted"),
    "refused": pod(4, "refused", refused="exceeded quota"),
    "pending": pod(4, "created", "waiting"),
    "scheduled": pod(4, "created", "scheduled"),
}


@pytest.mark.parametrize(
    ("state", "slo", "status"),
    [
        ("failed", {"pods_scheduled": ["value==4"]}, "fail"),
        ("failed", {"pods_scheduled": ["value==4"], "pods_succeeded": ["value>=0"]}, "fail"),
        ("failed", {"pods_failed{workload:trainers}": ["value<=1"]}, "pass"),
        ("lost", {"pods_scheduled": ["value==4"]}, "fail"),
        ("lost", {"pods_lost": ["value==1"]}, "pass"),
        ("refused", {"pods_failed": ["value==0"]}, "invalid"),
        ("refused", {"pods_refused": ["value==1"]}, "pass"),
        ("refused", {"pods_running": ["value==3"]}, "pass"),
        ("pending", {"pods_failed": ["value==0"]}, "invalid"),
        ("pending", {"pods_running": ["value<=6"]}, "invalid"),
        ("pending", {"pods_scheduled": ["value>=3"]}, "pass"),
        ("scheduled", {"pods_scheduled": ["value==4"]}, "invalid"),
        ("scheduled", {"pods_running": ["value>=3"]}, "pass"),
    ],
)
def test_every_pod_is_asked_after_unless_it_is_promised_how_many_need_not_run(
    state: str, slo: dict[str, Any], status: str
) -> None:
    events = [event for n in (1, 2, 3, 5, 6) for event in pod(n, *RAN)] + ENDS[state]
    created = 5 if state == "refused" else 6
    results = judge(history(spec(workload={"because": None}, slo=slo), events, created=created))
    found = check(results, "workload/trainers/whole")
    assert found.status == status, found.reason
    if status != "pass":
        assert "trainers-4" in found.evidence[0]
        assert "says how many may" in found.reason


@pytest.mark.parametrize("created", [5, 7])
def test_fewer_pods_than_were_asked_for_are_another_workload(created: int) -> None:
    pods = [event for n in range(1, 6) for event in pod(n, *RAN)]
    own = spec(workload={"because": None}, slo={"pods_running": ["value>=5"]})
    results = judge([e.model_copy(update={"refused": 0}) if isinstance(e, Finished) else e for e in history(own, pods)])
    assert check(results, "workload/trainers/watched").status == "invalid"
    finished = Finished(t=40, workload="trainers", created=5, refused=0, why="placed")
    results = judge([finished if isinstance(e, Finished) else e for e in history(own, pods, created=created)])
    assert check(results, "workload/trainers/watched").status == "invalid"
    assert "5 pods were asked for, not 6" in check(results, "workload/trainers/watched").reason


def test_every_report_shows_the_workloads(tmp_path: Path) -> None:
    events = history()
    results = judge(events)
    shown = StringIO()
    for width in (80, 140):
        terminal.render(results, Console(file=shown, width=width, force_terminal=False))
    assert "trainers" in shown.getvalue()
    assert "waiting" in shown.getvalue()
    assert "| trainers | 6 | 4 | 2 |" in github.markdown(results)
    write_all(results, events, tmp_path)
    assert '<h2 id="workloads-h">' in (tmp_path / "report.html").read_text()
    assert 'name="trainers.scheduled" value="4"' in (tmp_path / "junit.xml").read_text()


# --- made and followed


def workload(**changes: Any) -> Workload:
    return Workload.model_validate({"name": "trainers", "pods": 2, "resources": {"nvidia.com/gpu": 1}, **changes})


def test_a_pod_asks_for_its_resources_and_is_one_that_pod_security_admits() -> None:
    made = objects.pod(workload(), 1, {"toolbox": "ref"})
    container = made["spec"]["containers"][0]
    assert made["metadata"]["name"] == "trainers-1"
    assert container["image"] == "ref"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert made["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_partial_pod_is_merged_and_tolerations_add_up() -> None:
    partial = {"schedulerName": "bin-packing", "tolerations": [{"key": "a"}], "securityContext": {"runAsUser": 1}}
    made = objects.pod(workload(fleet=True, pod=partial, container={"env": [{"name": "A"}]}), 1, {"toolbox": "ref"})
    assert made["spec"]["schedulerName"] == "bin-packing"
    assert [each["key"] for each in made["spec"]["tolerations"]] == ["kwok.x-k8s.io/node", "a"]
    assert made["spec"]["nodeSelector"] == {"kwok.x-k8s.io/node": "fake"}
    assert made["spec"]["securityContext"]["runAsNonRoot"] is True
    assert made["spec"]["containers"][0]["env"] == [{"name": "A"}]


def test_a_claim_is_a_template_for_each_pod_or_one_that_all_share() -> None:
    spec = {"devices": {"requests": [{"name": "gpu"}]}}
    own, shared = workload(claim=spec), workload(claim=spec, sharedClaim=True)
    assert (objects.claim(own) or {})["kind"] == "ResourceClaimTemplate"
    assert (objects.claim(own) or {})["spec"] == {"spec": spec}
    assert (objects.claim(shared) or {})["spec"] == spec
    assert objects.pod(own, 1, {"toolbox": "r"})["spec"]["resourceClaims"][0]["resourceClaimTemplateName"] == "trainers"
    assert objects.pod(shared, 1, {"toolbox": "r"})["spec"]["resourceClaims"][0]["resourceClaimName"] == "trainers"
    assert objects.pod(own, 1, {"toolbox": "r"})["spec"]["containers"][0]["resources"]["claims"] == [{"name": "claim"}]


class Cluster(Kube):
    """A cluster that does with each pod what `become` says: the changes that a watch would tell."""

    def __init__(self, become: Callable[[Object], list[dict[str, Any]]], logs: str = "") -> None:
        self.become = become
        self.said = logs
        self.changes: list[dict[str, Any]] = []
        self.things: dict[str, list[Object]] = {}
        self.refuse = ""
        self.made = 0
        self.deaf = False  # the watch hears nothing any more

    def list_at(self, what: Any) -> tuple[list[Object], str]:
        if what.kind != "Pod":
            return self.things.get(what.kind, []), "0"
        last = {each["object"]["metadata"]["name"]: each for each in self.changes}
        there = [each["object"] for each in last.values() if each["type"] != "DELETED"]
        others = self.things.get("Pod", []) if what.namespace is None else []
        return [*there, *others], str(len(self.changes))

    def tell(self, thing: Object, **state: Any) -> None:
        """Let something become of a pod."""
        kind = state.pop("type", "MODIFIED")
        changed = {**thing, "metadata": {**thing["metadata"], "resourceVersion": str(len(self.changes) + 1)}}
        changed["spec"] = {**thing["spec"], "nodeName": state.pop("node", "")}
        self.changes.append({"type": kind, "object": {**changed, "status": state}})

    def create(self, thing: Object) -> Object:
        if self.refuse:
            raise ApiError("create", 403, {"reason": "Forbidden", "message": self.refuse}, "")
        self.made += 1
        for state in self.become(thing):
            self.tell(thing, **state)
        return thing

    def watch(self, _: Any, *, since: str, within: float) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + min(within, 0.2)
        at = int(since)
        while time.monotonic() < end:
            while at < len(self.changes) and not self.deaf:
                yield self.changes[at]
                at += 1
            time.sleep(0.01)

    def logs(self, *_: Any, **__: Any) -> str:
        return self.said


def unschedulable(words: str) -> dict[str, Any]:
    return {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": words}]}


@pytest.fixture
def driven(tmp_path: Path) -> Callable[..., list[Event]]:
    def through(
        cluster: Cluster, *wanted: Workload, stop: bool = False, last: Callable[[], object] | None = None
    ) -> list[Event]:
        """What is written; with `last`, which happens when all watches are over, the last look too."""
        halt = threading.Event()
        with Timeline(tmp_path / "timeline.jsonl") as timeline, ThreadPoolExecutor() as pool:
            ground = Ground(cluster, {"toolbox": "ref"}, timeline, halt, lambda: True, pool)
            with Board(cluster, timeline, halt) as board:
                if stop:
                    halt.set()
                futures = [pool.submit(drive, ground, board, each, each.at) for each in wanted]
                for future in futures:
                    future.result(timeout=20)
                if last is not None:
                    last()
                    close(ground, board, wanted)
        return list(read(tmp_path / "timeline.jsonl"))

    return through


def told(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.pod, event.state) for event in events if isinstance(event, PodEvent)]


def test_pods_are_followed_until_all_run(driven: Callable[..., list[Event]]) -> None:
    cluster = Cluster(lambda _: [{"phase": "Pending", "node": "n1"}, {"phase": "Running", "node": "n1"}])
    events = driven(cluster, workload())
    for name in ("trainers-1", "trainers-2"):
        assert {state for pod, state in told(events) if pod == name} == {"created", "scheduled", "running"}
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert (events[-1].why, events[-1].created) == ("placed", 2)


def test_pods_that_the_scheduler_holds_back_settle_before_time_is_out(driven: Callable[..., list[Event]]) -> None:
    events = driven(Cluster(lambda _: [unschedulable(WHY)]), workload(within="20s"))
    assert isinstance(events[-1], Finished)
    assert events[-1].why == "settled"
    assert ("trainers-1", "waiting") in told(events)


def test_pods_of_which_nothing_is_heard_are_watched_until_time_is_out(driven: Callable[..., list[Event]]) -> None:
    events = driven(Cluster(lambda _: []), workload(within="1s"))
    assert isinstance(events[-1], Finished)
    assert events[-1].why == "time is out"


def test_what_a_pod_prints_is_looked_for_in_its_log(driven: Callable[..., list[Event]]) -> None:
    cluster = Cluster(lambda _: [{"phase": "Succeeded", "node": "n1"}], logs="first\nGPU 0: NVIDIA H100 (UUID: x)\n")
    events = driven(cluster, workload(command=["nvidia-smi", "-L"], prints="NVIDIA H100"))
    printed = [event for event in events if isinstance(event, PodEvent) and event.state == "printed"]
    assert [event.message for event in printed] == ["GPU 0: NVIDIA H100 (UUID: x)"] * 2
    other = driven(cluster, workload(name="others", command=["nvidia-smi"], prints="B200"))
    silent = [event for event in other if isinstance(event, PodEvent) and event.state == "silent"]
    assert len(silent) == 2


def test_a_pod_that_is_deleted_by_others_is_lost_with_their_words(driven: Callable[..., list[Event]]) -> None:
    disrupted = {"type": "DisruptionTarget", "status": "True", "message": "Preempted by a pod"}
    cluster = Cluster(
        lambda _: [
            {"phase": "Running", "node": "n1"},
            {"type": "DELETED", "phase": "Running", "node": "n1", "conditions": [disrupted]},
        ]
    )
    lost = [e for e in driven(cluster, workload()) if isinstance(e, PodEvent) and e.state == "lost"]
    assert [event.message for event in lost] == ["Preempted by a pod"] * 2


def test_a_pod_that_is_refused_is_written_down_and_does_not_end_the_others(
    driven: Callable[..., list[Event]],
) -> None:
    cluster = Cluster(lambda _: [])
    cluster.refuse = "exceeded quota: gpus"
    events = driven(cluster, workload())
    assert isinstance(events[-1], Finished)
    assert (events[-1].why, events[-1].refused) == ("ended", 2)


def test_one_workload_waits_for_another(driven: Callable[..., list[Event]]) -> None:
    cluster = Cluster(lambda _: [{"phase": "Running", "node": "n1"}])
    events = driven(cluster, workload(), workload(name="late", after="trainers"))
    kinds = [f"{e.workload} {e.type}" for e in events if isinstance(e, Started | Finished)]
    assert [kind.replace("workload.", "") for kind in kinds] == [
        "trainers started",
        "trainers finished",
        "late started",
        "late finished",
    ]


def test_a_run_that_is_being_ended_writes_no_end_that_was_not_seen(driven: Callable[..., list[Event]]) -> None:
    assert not driven(Cluster(lambda _: []), workload(), workload(name="late", after="trainers"), stop=True)


RUNS = {"phase": "Running", "node": "n1"}
EXITED = {"name": "main", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
FAILS = {"phase": "Failed", "node": "n1", "containerStatuses": [EXITED]}


def later(seconds: float, **state: Any) -> Cluster:
    """A cluster whose pods run at once, and to which that happens so much later."""
    cluster = Cluster(lambda thing: threading.Timer(seconds, lambda: cluster.tell(thing, **state)).start() or [RUNS])  # type: ignore[func-returns-value]
    return cluster


def finished(events: list[Event]) -> Finished:
    return [event for event in events if isinstance(event, Finished)][-1]


def test_as_many_pods_are_made_as_are_asked_for(driven: Callable[..., list[Event]]) -> None:
    cluster = Cluster(lambda _: [RUNS])
    events = driven(cluster, workload(pods=5))
    assert cluster.made == finished(events).created == 5
    assert len({pod for pod, state in told(events) if state == "created"}) == 5


def test_pods_that_run_for_a_moment_are_not_placed(driven: Callable[..., list[Event]]) -> None:
    events = driven(later(0.5, **FAILS), workload())
    assert finished(events).why == "ended"
    assert told(events).count(("trainers-1", "failed")) == 1


def test_a_command_that_runs_is_watched_for_all_of_its_time_unless_it_is_said_how_long_is_enough(
    driven: Callable[..., list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving_module, "_QUIET", 0.3)
    own, running = {"command": ["serve"], "within": "2s"}, Cluster(lambda _: [RUNS])
    assert finished(driven(later(1.2, **FAILS), workload(**own))).why == "ended"
    begun = time.monotonic()
    assert finished(driven(running, workload(**own, name="b"))).why == "settled"
    assert time.monotonic() - begun >= 2
    begun = time.monotonic()
    enough = {**own, "within": "30s", "stableFor": "1s"}
    assert finished(driven(running, workload(**enough, name="c"))).why == "settled"
    assert 1 <= time.monotonic() - begun < 15


def test_what_changed_just_before_time_was_out_is_not_settled(driven: Callable[..., list[Event]]) -> None:
    cluster = later(1.0, **RUNS)
    assert finished(driven(cluster, workload(command=["serve"], within="1500ms"))).why == "time is out"


@pytest.mark.parametrize(
    ("state", "written"), [(FAILS, "failed"), ({**RUNS, "type": "DELETED"}, "lost"), (RUNS, "running")]
)
def test_what_became_of_pods_until_the_run_was_over_is_written_down(
    driven: Callable[..., list[Event]], state: dict[str, Any], written: str
) -> None:
    cluster = Cluster(lambda _: [RUNS])

    def last() -> None:
        cluster.deaf = True
        (first,) = [each["object"] for each in cluster.changes if each["object"]["metadata"]["name"] == "trainers-1"]
        cluster.tell(first, **state)

    events = driven(cluster, workload(), last=last)
    (end,) = [event for event in events if isinstance(event, Closed)]
    assert end.states == dict(Counter(["running", written]))
    assert events.index(end) > events.index(finished(events))


def holder(node: str, gpus: int, **more: Any) -> Object:
    container = {"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    return {"metadata": {}, "spec": {"nodeName": node, "containers": [container], **more}, "status": more}


def node(name: str, gpus: int = 0) -> Object:
    return {"metadata": {"name": name}, "status": {"allocatable": {"nvidia.com/gpu": str(gpus)} if gpus else {}}}


def test_gpus_in_use_are_those_of_every_pod_whoever_made_it(driven: Callable[..., list[Event]]) -> None:
    cluster = Cluster(lambda _: [RUNS])
    done = holder("n1", 1, phase="Succeeded")
    before = {"initContainers": [{"resources": {"limits": {"nvidia.com/gpu": "2"}}}]}
    cluster.things = {
        "Node": [node("n1", 4), node("n2", 4), node("n3", 4), node("n4")],
        "Pod": [holder("n2", 1), holder("n2", 1), done, holder("", 4), holder("n3", 1, **before)],
    }
    events = driven(cluster, workload(pods=3), last=lambda: None)
    (seen,) = [event for event in events if isinstance(event, GpuNodes)]
    assert seen.groups == [(4, 2, 2), (4, 3, 1)]


def test_gpus_of_the_dra_driver_are_counted_by_the_claims_that_hold_them(driven: Callable[..., list[Event]]) -> None:
    def device(name: str, kind: str = "gpu") -> Object:
        return {"name": name, "attributes": {"type": {"string": kind}}}

    def claim(*names: str) -> Object:
        results = [{"driver": "gpu.nvidia.com", "pool": "n1", "device": name} for name in names]
        return {"metadata": {"name": "c"}, "status": {"allocation": {"devices": {"results": results}}}}

    spec = {"driver": "gpu.nvidia.com", "nodeName": "n1", "pool": {"name": "n1"}}
    devices = [device("gpu-0"), device("gpu-1"), device("gpu-2"), device("gpu-3-mig", "mig")]
    cluster = Cluster(lambda _: [RUNS])
    cluster.things = {
        "Node": [node("n1")],
        "ResourceSlice": [{"spec": {**spec, "devices": devices}}, {"spec": {**spec, "driver": "other"}}],
        "ResourceClaim": [claim("gpu-0"), claim("gpu-0", "gpu-2"), {"metadata": {"name": "waits"}}],
        "Pod": [holder("n1", 1)],  # by a resource that is a claim in truth
    }
    events = driven(cluster, workload(), last=lambda: None)
    (seen,) = [event for event in events if isinstance(event, GpuNodes)]
    assert seen.groups == [(3, 2, 1)]


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"stableFor": "5s"}, "goes with `command`"),
        ({"command": ["x"], "stableFor": "30s"}, "has to be shorter than `within` (30s)"),
        ({"command": ["x"], "stableFor": "100ms"}, "greater than or equal to 1"),
    ],
)
def test_how_long_is_enough_goes_with_a_command_and_its_time(own: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        workload(**own)


def test_a_timeline_of_workloads_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    with Timeline(path) as timeline:
        for event in history():
            timeline.append(event)
    place = {"writer": "", "seq": None, "written": None}
    assert [event.model_copy(update=place) for event in read(path)] == history()
    assert [event.seq for event in read(path)] == list(range(len(history())))
    assert json.loads(path.read_text().splitlines()[2])["type"] == "workload.started"
