"""Validity of the client, abort on fail, and comparison with an earlier run, on hand-written histories."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
from test_judge import GOOD, LOAD_AT, check, history, request, scenario
from whole_runs import keep

from sandbox import baseline
from sandbox.errors import UsageError
from sandbox.judge import regression
from sandbox.judge import weigh as judge
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import check_slo, parse_expression
from sandbox.timeline import (
    EMPTY,
    EMPTY_ALLOWED,
    BaselineSamples,
    ClientBeat,
    Event,
    LoadAborted,
    LoadFinished,
    LoadStarted,
    Timeline,
    read,
)
from sandbox.watch import Watch

QUIET: dict[str, Any] = {**scenario(), "faults": []}
TENANTS = {
    "mix": [{"profile": "chat-short", "tenant": "a"}, {"profile": "chat-tiny", "tenant": "b"}],
    "arrivals": {"rate": 10},
    "duration": "30s",
}


def quiet(slo: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**QUIET, "slo": slo, **more}


def beats(**changes: Any) -> list[Event]:
    told = {"lag": [0.001] * 20, "beats": 100, "cpu": 0.2, "in_flight": 3, "added": [0.001] * 20, "calibrated": 200}
    return [ClientBeat(t=LOAD_AT + n, **{**told, **changes}) for n in range(1, 31)]


def calibrated(events: list[Event], replaced: list[Event]) -> list[Event]:
    """The history with a client that was calibrated, and with these beats."""
    kept = [event for event in events if not isinstance(event, ClientBeat)]
    told = [e.model_copy(update={"asked": {"calibrated": True}}) if isinstance(e, LoadStarted) else e for e in kept]
    place = next(n for n, event in enumerate(told) if isinstance(event, LoadFinished))
    return [*told[:place], *replaced, *told[place:]]


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, ""),
        ({"added": [0.02] * 20}, "validity/client_added"),
        ({"calibrated": 0, "added": []}, "validity/client_added"),
        ({"lag": [0.05] * 20}, "validity/client_lag"),
        ({"cpu": 0.99}, "validity/client_cpu"),
    ],
)
def test_a_client_that_was_the_bottleneck_makes_a_run_invalid(changes: dict[str, Any], broken: str) -> None:
    slo = {"ttft": ["p(90)<=1s"]}
    results = judge(calibrated(history(spec=quiet(slo), faults=[]), beats(**changes)))
    assert results.verdict == ("invalid" if broken else "pass"), results.headline
    wrong = [each for each in results.checks if each.status != "pass"]
    assert [each.id.rpartition("/")[0] for each in wrong] == ([broken] if broken else [])
    if changes.get("calibrated") != 0:
        assert all("lower the rate" in each.reason for each in wrong)


def test_what_a_client_that_was_the_bottleneck_saw_broken_is_no_failure() -> None:
    slo = {"ttft": ["p(90)<=1ms"], "http_error": ["count>=1"]}
    fit = judge(calibrated(history(spec=quiet(slo), faults=[]), beats()))
    assert fit.verdict == "fail"
    unfit = judge(calibrated(history(spec=quiet(slo), faults=[]), beats(lag=[0.05] * 20)))
    assert unfit.verdict == "invalid"
    for name in ("slo/ttft", "slo/http_error"):
        assert check(unfit, name).status == "invalid"
        assert "too slow to tell (client_lag p(99)<=10ms: 50.0 ms)" in check(unfit, name).reason
    few = judge(calibrated(history(spec=quiet(slo), faults=[]), beats(beats=1, lag=[0.05])))
    assert few.verdict == "fail", "too few beats show no bottleneck"


def test_answers_that_say_nothing_are_not_good_unless_their_profile_allows_it() -> None:
    """An older client called them `ok`: what its timeline tells of them is enough to know."""
    spec = quiet({"ttft": ["p(50)<=1s"]})
    for outcome, detail in (("empty", EMPTY), ("ok", EMPTY), ("ok", EMPTY_ALLOWED)):
        some = [each.model_copy(update={"outcome": outcome, "detail": detail}) for each in GOOD[:4]]
        results = judge(history(spec=spec, requests=[*some, *GOOD[4:]], faults=[]))
        if detail == EMPTY_ALLOWED:
            assert results.verdict == "pass"
            assert results.notes == ["warning: 4 of 300 answers said nothing; they are ok, for their profile allows it"]
        else:
            assert (results.verdict, results.notes) == ("invalid", [])
            assert check(results, "validity/answered").observed == "4 of 300 not good: 4 empty"
            assert check(results, "slo/ttft").samples == 296, "what said nothing has no time that counts"
    assert judge(history(spec=spec, faults=[])).notes == []


def test_requests_begun_late_make_a_run_invalid() -> None:
    late = [each.model_copy(update={"sent": each.scheduled + 0.08}) for each in GOOD]
    results = judge(history(spec=quiet({"requests": ["count>=1"]}), requests=late, faults=[]))
    assert check(results, "validity/sched_lag").status == "invalid"


def test_a_validity_of_one_model_whose_name_has_a_slash_is_told_like_any_other() -> None:
    late = [each.model_copy(update={"sent": each.scheduled + 0.08, "tags": {"model": "org/name"}}) for each in GOOD]
    spec = quiet({"requests": ["count>=1"]}, validity={"sched_lag{model:org/name}": ["p(90)<=50ms"]})
    found = check(judge(history(spec=spec, requests=late, faults=[])), "validity/sched_lag{")
    assert (found.status, found.id) == ("invalid", "validity/sched_lag{model:org/name}/p(90)<=50ms")
    assert "did not begin requests when they were due" in found.reason


def test_the_worst_twenty_of_a_second_are_enough_for_a_p99() -> None:
    """3 late tokens of 200 a second: p99 is one of them. 1 of 200: it is not."""
    for late, status in ((3, "invalid"), (1, "pass")):
        shown = [0.03] * late + [0.001] * (20 - late)
        results = judge(calibrated(history(spec=quiet({"ttft": ["p(90)<=1s"]}), faults=[]), beats(added=shown)))
        assert check(results, "validity/client_added").status == status


def test_each_tenant_has_promises_of_its_own() -> None:
    requests = [
        request(LOAD_AT + n / 10, ttft=0.1 if n % 2 else 0.4, tags={"tenant": "a" if n % 2 else "b"})
        for n in range(300)
    ]
    slo = {
        "ttft{tenant:a}": ["p(90)<=200ms"],
        "ttft{tenant:b}": ["p(90)<=200ms"],
        "ttft{phase:baseline,tenant:a}": ["max<=200ms"],
    }
    results = judge(history(spec=quiet(slo, load=TENANTS), requests=requests, faults=[]))
    assert check(results, "slo/ttft{tenant:a}").status == "pass"
    assert check(results, "slo/ttft{tenant:b}").status == "fail"
    assert check(results, "slo/ttft{phase:baseline,tenant:a}").samples == 150
    rows = {tuple(each.tags.items()): each.requests for each in results.summaries if each.tags}
    assert rows == {(("tenant", "a"),): 150, (("tenant", "b"),): 150}


# abort on fail

SLOW = {"ttft": [{"threshold": "p(50)<=50ms", "abortOnFail": True, "delayAbortEval": "2s"}]}


def watching(
    tmp_path: Path, slo: dict[str, Any], events: list[Event], elapsed: float
) -> tuple[Watch, list[str], Timeline]:
    timeline = Timeline(tmp_path / "timeline.jsonl")
    timeline.epoch_ns -= int((LOAD_AT + elapsed) * 1e9)
    for event in events:
        timeline.append(event)
    ended: list[str] = []
    return Watch(Scenario.model_validate(quiet(slo)), timeline, lambda: ended.append("ended")), ended, timeline


BEGUN: list[Event] = [LoadStarted(t=LOAD_AT, url="http://127.0.0.1:1", model="m", profile="chat-short", asked={})]


def test_a_broken_threshold_ends_the_load_once_and_is_the_failure(tmp_path: Path) -> None:
    watch, ended, timeline = watching(tmp_path, SLOW, [*BEGUN, *GOOD[:20]], 3.0)
    watch.run(threading.Event())
    assert (ended, watch.aborted) == (["ended"], True)
    (told,) = [event for event in read(timeline.path) if isinstance(event, LoadAborted)]
    timeline.close()
    slo = {**SLOW, "tpot": ["p(50)<=1ms"]}
    results = judge(
        history(spec=quiet(slo), requests=GOOD[:20], faults=[], extra=[told], aborted="asked to end (SIGTERM)")
    )
    assert results.verdict == "fail"
    broken = check(results, "slo/ttft")
    assert (broken.status, broken.observed) == ("fail", "100.0 ms")
    assert "abortOnFail" in broken.reason
    assert check(results, "slo/tpot").status == "invalid", "the figure of a load that was cut short"
    assert check(results, "validity/load-client").status == "pass"


@pytest.mark.parametrize(
    ("many", "elapsed", "why"),
    [(6, 3.0, "too few samples prove nothing"), (20, 1.0, "it is not looked at yet")],
)
def test_what_is_not_proven_ends_no_load(tmp_path: Path, many: int, elapsed: float, why: str) -> None:
    watch, ended, timeline = watching(tmp_path, SLOW, [*BEGUN, *GOOD[:many]], elapsed)
    assert not watch.look(), why
    assert not ended
    for event in GOOD[many:30]:
        timeline.append(event)
    timeline.epoch_ns -= int(5e9)
    assert watch.look(), "the same load, when there is enough of it"
    timeline.close()


def test_half_a_line_is_not_read_until_it_is_whole(tmp_path: Path) -> None:
    holds = {"ttft": [{"threshold": "p(50)<=5s", "abortOnFail": True}]}
    watch, _, timeline = watching(tmp_path, holds, BEGUN, 3.0)
    lines = b"".join(each.model_dump_json().encode() + b"\n" for each in GOOD[:20])
    with timeline.path.open("ab") as file:
        file.write(lines[: len(lines) - 50])
        file.flush()
        watch.look()
        assert len(watch.record.table) == 19
        file.write(lines[len(lines) - 50 :])
        file.flush()
        watch.look()
    assert len(watch.record.table) == 20
    timeline.close()


def test_nothing_to_look_at_is_nothing_to_do(tmp_path: Path) -> None:
    watch, ended, timeline = watching(tmp_path, {"ttft": ["p(50)<=1ms"]}, [*BEGUN, *GOOD], 9.0)
    watch.run(threading.Event())
    assert not ended
    timeline.close()


@pytest.mark.parametrize("text", ["requests", "ok", "request_rate", "token_rate"])
def test_what_is_known_in_the_end_only_cannot_end_a_load(text: str) -> None:
    with pytest.raises(ValueError, match="known when all has ended"):
        check_slo(Scenario.model_validate(quiet({text: [{"threshold": "value>=1", "abortOnFail": True}]})).slo)


# against an earlier run


def samples(center: float, many: int, seed: int) -> list[float]:
    dice = random.Random(seed)  # noqa: S311 - reproducible on purpose
    return [dice.lognormvariate(0, 0.3) * center for _ in range(many)]


@pytest.mark.parametrize(
    ("factor", "many", "status"),
    [(1.0, 2000, "pass"), (1.05, 4000, "pass"), (1.25, 2000, "fail"), (1.1, 100, "invalid"), (0.5, 2000, "pass")],
)
@pytest.mark.parametrize("figure", ["med", "p(50)", "avg"])
def test_a_time_is_held_against_an_earlier_runs(factor: float, many: int, status: str, figure: str) -> None:
    expression = parse_expression(f"{figure}<=baseline+10%", "ttft")
    found = regression.compare("ttft", expression, samples(0.1 * factor, many, 1), samples(0.1, many, 2), 0.95)
    assert found is not None
    assert found.status == status, found
    assert found.low <= found.change <= found.high
    assert "Mann-Whitney" in found.evidence[0]
    assert found == regression.compare("ttft", expression, samples(0.1 * factor, many, 1), samples(0.1, many, 2), 0.95)


def test_the_interval_is_as_sure_as_it_says() -> None:
    """Of two runs of the same server, hardly any is called a regression: at most one in forty by the interval."""
    expression = parse_expression("p(50)<=baseline+0%", "ttft")
    found = [
        regression.compare("ttft", expression, samples(0.1, 200, 2 * n), samples(0.1, 200, 2 * n + 1), 0.95)
        for n in range(120)
    ]
    wrong = sum(each is not None and each.status == "fail" for each in found)
    assert wrong <= 9  # 3 expected; P(more than 9) < 0.1 %


@pytest.mark.parametrize(
    ("now", "before", "status"),
    [((995, 1000), (995, 1000), "pass"), ((950, 1000), (999, 1000), "fail"), ((98, 100), (100, 100), "invalid")],
)
def test_a_share_is_held_against_an_earlier_runs(now: tuple[int, int], before: tuple[int, int], status: str) -> None:
    expression = parse_expression("rate>=baseline-1%", "good_request_fraction")
    shares = [[1.0] * good + [0.0] * (of - good) for good, of in (now, before)]
    found = regression.compare("good_request_fraction", expression, *shares, 0.95)
    assert found is not None
    assert found.status == status, found


def test_a_run_without_a_baseline_or_with_too_few_samples_proves_nothing() -> None:
    spec = quiet({"ttft": ["p(50)<=baseline+10%"]})
    alone = check(judge(history(spec=spec, faults=[])), "slo/ttft")
    assert (alone.status, "--baseline" in alone.reason) == ("invalid", True)
    few: list[Event] = [BaselineSamples(t=0, run_id="r0", source="runs/r0", selector="ttft", samples=[0.1] * 5)]
    assert check(judge(history(spec=spec, faults=[], extra=few)), "slo/ttft").status == "invalid"


def test_an_earlier_runs_samples_come_along_in_the_timeline(tmp_path: Path) -> None:
    slow = [request(LOAD_AT + n / 10, ttft=0.1 + n % 7 / 100) for n in range(300)]
    slo = {"ttft": ["p(50)<=baseline+10%", "p(50)<=1s"], "good_request_fraction": ["rate>=baseline-2%"]}
    wanted = Scenario.model_validate(quiet(slo))
    folder = keep(tmp_path, history(spec=quiet({"ttft": ["p(50)<=1s"]}), requests=slow, faults=[]))
    found = baseline.samples_for(wanted, folder)
    assert [(each.selector, len(each.samples)) for each in found] == [("ttft", 300), ("good_request_fraction", 300)]
    same = judge(history(spec=quiet(slo), requests=slow, faults=[], extra=list(found)))
    assert same.verdict == "pass", same.headline
    slower = [each.model_copy(update={"first": (each.first or 0) + 0.1}) for each in slow]
    worse = judge(history(spec=quiet(slo), requests=slower, faults=[], extra=list(found)))
    assert check(worse, "slo/ttft/p(50)<=baseline").status == "fail"
    assert check(worse, "slo/good_request_fraction").status == "pass"


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    wanted = Scenario.model_validate(quiet({"ttft": ["p(50)<=baseline+10%"]}))
    with pytest.raises(UsageError, match=r"holds no timeline\.jsonl"):
        baseline.samples_for(wanted, tmp_path)
    late = keep(tmp_path, history(spec=quiet({"ttft": ["p(50)<=1ms"]}), faults=[]))
    with pytest.raises(UsageError, match="is no baseline"):
        baseline.samples_for(wanted, late)
    (tmp_path / "timeline.jsonl").unlink()
    other = {**QUIET["load"], "arrivals": {"process": "constant", "rate": 11}}
    elsewhere = keep(tmp_path, history(spec=quiet({"ttft": ["p(50)<=1s"]}, load=other), faults=[]))
    with pytest.raises(UsageError) as caught:
        baseline.samples_for(wanted, elsewhere)
    assert "load.arrivals" in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "text", "said"),
    [
        ("ttft", "p(50)<=baseline+10ms", "in per cent"),
        ("ttft", "p(50)<=baseline-10%", "write it as <=baseline"),
        ("ttft", "p(50)==baseline+10%", "write it as <=baseline"),
        ("ttft", "count<=baseline+10%", "is not held against a baseline"),
        ("request_rate", "value>=baseline-5%", "only times and shares"),
        ("client_lag", "p(99)<=baseline+5%", "only times and shares"),
        ("truncated", "count<=baseline+5%", "only times and shares"),
    ],
)
def test_what_a_baseline_cannot_say_is_refused(metric: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_expression(text, metric)


def test_samples_of_an_outcome_are_ones_and_zeros() -> None:
    expression = parse_expression("rate<=baseline+1%", "truncated")
    assert (expression.relative, expression.bound) == (True, 0.01)
