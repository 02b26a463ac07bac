"""Thresholds and validity in detail, and the figures of a load, on hand-written histories."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from test_judge import GOOD, LOAD_AT, SCENARIO, check, fault, history, request, scenario

from sandbox import metrics
from sandbox.judge import weigh as judge
from sandbox.metrics import Table
from sandbox.metrics.summary import summarise
from sandbox.spec.results import Results, Summary
from sandbox.timeline import ClientBeat, Event, LoadAborted, LoadFinished, LoadStarted, Request

EASY = {"ttft": ["p(50)<=1s"]}


def quiet(**keys: Any) -> dict[str, Any]:
    return scenario(**{"faults": [], "slo": EASY, **keys})


def beat(at: float, **keys: Any) -> ClientBeat:
    told = {"lag": [0.001] * 20, "beats": 100, "cpu": 0.2, "in_flight": 3, "added": [0.001] * 20, "calibrated": 200}
    return ClientBeat(t=LOAD_AT + at, **{**told, **keys})


def pulse(*beats: ClientBeat, asked: dict[str, Any] | None = None, spec: dict[str, Any] | None = None) -> Results:
    """A history with these beats of the load client in place of its own."""
    events: list[Event] = []
    for event in history(spec=spec or quiet(), faults=[]):
        if isinstance(event, LoadFinished):
            events += beats
        if isinstance(event, LoadStarted):
            events.append(event.model_copy(update={"asked": asked or {}}))
        elif not isinstance(event, ClientBeat):
            events.append(event)
    return judge(events)


def ids(results: Results) -> list[str]:
    return [each.id.split("/")[1] for each in results.checks if each.group == "validity"]


# validity


def test_the_busiest_process_decides_and_is_named() -> None:
    both = [beat(n, worker=name, cpu=0.97 if (name, n) == ("2", 7) else 0.3) for n in range(1, 31) for name in "12"]
    found = check(pulse(*both), "validity/client_cpu")
    assert found.status == "invalid"
    assert "workers.processes" in found.reason
    assert found.evidence[0].startswith(f"t={LOAD_AT + 7:.2f}s process 2 ")
    assert check(pulse(*(each for each in both if each.cpu < 0.9)), "validity/client_cpu").status == "pass"


def test_the_beats_of_several_processes_are_pooled() -> None:
    """One of 40 processes is late for one second of 30: less than a hundredth of all beats."""
    many = [
        beat(n, worker=str(w), lag=[0.5 if (w, n) == (0, 5) else 0.001] * 20) for n in range(1, 31) for w in range(40)
    ]
    found = check(pulse(*many), "validity/client_lag")
    assert (found.status, found.samples) == ("pass", 120_000)
    alone = check(pulse(*(each for each in many if each.worker == "0")), "validity/client_lag")
    assert alone.status == "invalid"


@pytest.mark.parametrize(
    ("asked", "calibrated", "status"),
    [
        ({}, 0, None),
        ({"calibrated": False}, 0, None),
        ({"calibrated": True}, 0, "invalid"),
        ({"calibrated": True}, 200, "pass"),
        ({}, 200, "pass"),
    ],
)
def test_only_a_client_that_was_never_to_be_calibrated_is_judged_without(
    asked: dict[str, Any], calibrated: int, status: str | None
) -> None:
    beats = [beat(n, calibrated=calibrated, added=[0.001] * 20 if calibrated else []) for n in range(1, 31)]
    results = pulse(*beats, asked=asked)
    assert ("client_added" in ids(results)) == (status is not None)
    if status is not None:
        assert check(results, "validity/client_added").status == status


def test_a_client_that_says_nothing_of_itself_is_no_pass() -> None:
    results = pulse(asked={"calibrated": True})
    for name in ("client_lag", "client_added", "client_cpu"):
        found = check(results, f"validity/{name}")
        assert (found.status, "load.log" in found.reason) == ("invalid", True)


def test_a_locustfile_has_no_schedule_to_be_late_for() -> None:
    load = {"locustfile": "mine.py", "arrivals": {"process": "closed", "users": 5}, "duration": "30s"}
    assert "sched_lag" not in ids(judge(history(spec=quiet(load=load), faults=[])))
    assert "sched_lag" in ids(judge(history(spec=quiet(), faults=[])))


@pytest.mark.parametrize("late", ["lag", "added"])
def test_each_breach_says_what_it_shows_and_what_to_change(late: str) -> None:
    results = pulse(*(beat(n, **{late: [0.4] * 20}) for n in range(1, 31)))
    found = check(results, f"validity/client_{late}")
    assert found.status == "invalid"
    assert "lower the rate" in found.reason
    assert f"{late}=400.0ms" in found.evidence[0]


# a load that a threshold ended

ABORTED = LoadAborted(t=LOAD_AT + 9, threshold="slo/ttft/p(50)<=50ms", observed="80.0 ms")
STRICT = quiet(slo={"ttft": [{"threshold": "p(50)<=50ms", "abortOnFail": True}]})


def test_the_threshold_that_ended_a_load_fails_with_the_figure_of_that_moment() -> None:
    results = judge(history(spec=STRICT, faults=[], extra=[ABORTED], aborted="asked to end (SIGTERM)"))
    found = check(results, "slo/ttft")
    assert (results.verdict, found.status, found.observed) == ("fail", "fail", "80.0 ms")
    assert f"{ABORTED.t:.1f} s" in found.reason
    client = check(results, "validity/load-client")
    assert (client.status, ABORTED.threshold in client.observed) == ("pass", True)


def test_it_fails_too_where_the_load_came_to_its_end_before_it_could_be_ended() -> None:
    fine = [request(LOAD_AT + n / 10, ttft=0.01) for n in range(300)]
    assert judge(history(spec=STRICT, requests=fine, faults=[])).verdict == "pass"
    results = judge(history(spec=STRICT, requests=fine, faults=[], extra=[ABORTED]))
    assert check(results, "slo/ttft").status == "fail"


@pytest.mark.parametrize("change", [{"finished": False}, {"attempted": 400}])
def test_a_load_that_was_ended_must_still_have_been_written_down(change: dict[str, Any]) -> None:
    results = judge(history(spec=STRICT, faults=[], extra=[ABORTED], aborted="asked to end (SIGTERM)", **change))
    assert check(results, "validity/load-client").status == "invalid"
    assert results.verdict == "fail", "what ended it was broken all the same"


# figures


def of(summaries: list[Summary], phase: str, **tags: str) -> Summary:
    (found,) = [each for each in summaries if each.phase == phase and each.tags == tags]
    return found


def test_a_summary_has_every_figure_of_every_metric() -> None:
    taken = [
        Request(
            t=LOAD_AT + n + 1.0,
            scheduled=LOAD_AT + n - 0.5,
            sent=LOAD_AT + n,
            first=LOAD_AT + n + 0.2,
            last=LOAD_AT + n + 0.8,
            chunks=3,
            tokens=4,
            prompt_tokens=10,
            gaps=[0.2, 0.4],
            outcome="ok",
        )
        for n in range(10)
    ]
    found = of(judge(history(spec=quiet(), requests=taken, faults=[])).summaries, "all")
    expected = {"ttft": 0.2, "ttft_intended": 0.7, "tpot": 0.2, "ntpot": 0.25, "icl": 0.3, "e2e": 1.0, "sched_lag": 0.5}
    assert set(found.percentiles) == set(expected)
    names = {"count", "min", "max", "mean", "std", "p50", "p90", "p95", "p99"}
    for metric, mean in expected.items():
        assert set(found.percentiles[metric]) == names
        assert found.percentiles[metric]["mean"] == pytest.approx(mean)
    assert found.percentiles["icl"]["std"] == pytest.approx(0.1)
    assert found.percentiles["icl"]["count"] == 20
    assert (found.tokens_in, found.tokens_out) == (100, 40)


def test_a_sum_of_prompts_that_were_not_all_told_is_no_sum() -> None:
    told = [each.model_copy(update={"prompt_tokens": 10}) for each in GOOD]
    assert of(judge(history(requests=told)).summaries, "all").tokens_in == 3000
    told[7] = told[7].model_copy(update={"prompt_tokens": None})
    assert of(judge(history(requests=told)).summaries, "all").tokens_in is None
    failed = [*GOOD[:5], request(LOAD_AT + 1, "timeout")]
    assert of(judge(history(requests=failed)).summaries, "all").tokens_out == 25, "of answers alone"


def test_every_tag_with_several_values_has_figures_of_its_own_phase_by_phase() -> None:
    tags = [{"tenant": "ab"[n % 2], "model": "m", "profile": "chat-short"} for n in range(300)]
    tagged = [each.model_copy(update={"tags": tag}) for each, tag in zip(GOOD, tags, strict=True)]
    summaries = judge(history(requests=tagged)).summaries
    assert {tuple(each.tags.items()) for each in summaries} == {(), (("tenant", "a"),), (("tenant", "b"),)}
    phases = {each.phase for each in summaries if each.tags == {"tenant": "a"}}
    assert phases == {"all", "baseline", "fault", "recovery"}
    parts = [of(summaries, phase, tenant="a").requests for phase in ("baseline", "fault", "recovery")]
    assert sum(parts) == of(summaries, "all", tenant="a").requests == 150
    one = judge(history(requests=[each.model_copy(update={"tags": {"tenant": "a"}}) for each in GOOD])).summaries
    assert not any(each.tags for each in one), "one tenant is all of them"


def test_a_locustfile_that_names_every_request_differently_does_not_fill_the_report() -> None:
    tagged = [each.model_copy(update={"tags": {"profile": f"/item/{n}"}}) for n, each in enumerate(GOOD)]
    tagged += [request(LOAD_AT + 30, tags={"profile": "/item/299"})]
    summaries = summarise(metrics.record(history(requests=tagged, faults=[])))
    told = [each.tags["profile"] for each in summaries if each.tags]
    assert (len(told), "/item/299" in told) == (20, True)


def test_columns_hold_what_requests_say() -> None:
    rows = [
        request(LOAD_AT, took=1.0, tags={"tenant": "a"}),
        request(LOAD_AT + 5, "timeout"),
        request(LOAD_AT + 9.8, took=0.5, tags={"tenant": "b", "number": "7"}),
        request(LOAD_AT + 20, tags={"tenant": "a"}).model_copy(update={"tokens": None, "chunks": 0, "last": None}),
    ]
    table = Table(rows)
    assert list(table.ended("timeout")) == [False, True, False, False]
    assert not table.ended("dropped").any()
    assert list(table.tagged({"tenant": "a"})) == [True, False, False, True]
    assert not table.tagged({"tenant": "c"}).any()
    assert list(np.isnan(table.latency("ttft"))) == [False, True, False, False]
    assert list(np.isnan(table.latency("ntpot"))) == [False, True, False, True], "no token, no time per token"
    windows = metrics.record([*history(), *fault("started", "injected", "healed", at=20.0)]).windows
    phases = {name: list(table.in_phase(name, windows)) for name in ("baseline", "fault", "recovery")}
    assert phases["baseline"] == [True, True, False, False]
    assert phases["fault"] == [False, False, True, False], "in flight when it struck"
    assert phases["recovery"] == [False, False, False, True]


def test_a_hundred_thousand_requests_are_judged_in_seconds() -> None:
    slo = {"ttft{phase:fault}": ["p(50)<=1s"], "icl": ["p(99)<=1s"], "good_request_fraction": ["rate>=0.9"]}
    gaps = [0.02] * 50
    requests = [request(LOAD_AT + n * 0.0003).model_copy(update={"gaps": gaps}) for n in range(100_000)]
    events = history(spec={**SCENARIO, "slo": slo}, requests=requests)
    begun = time.process_time()
    assert judge(events).verdict == "pass"
    assert time.process_time() - begun < 20
