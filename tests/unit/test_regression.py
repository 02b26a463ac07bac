"""Two runs held against each other: how many samples it takes, and which runs can be compared."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_judge import GOOD, LOAD_AT, SCENARIO, check, history, request, scenario
from whole_runs import keep

from sandbox import baseline
from sandbox.errors import UsageError
from sandbox.judge import judge, regression
from sandbox.spec.results import Check
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import parse_expression
from sandbox.timeline import BaselineSamples, Event, LoadAborted

LATER = {"ttft": ["p(50)<=baseline+10%"]}


def spread(many: int, seed: int, center: float = 0.1) -> list[float]:
    dice = random.Random(seed)  # noqa: S311 - reproducible on purpose
    return [center * dice.lognormvariate(0, 0.3) for _ in range(many)]


def quiet(slo: dict[str, Any], **more: Any) -> dict[str, Any]:
    return scenario(faults=[], slo=slo, **more)


def held(threshold: Any, now: list[float], before: list[float], metric: str = "ttft") -> Check:
    """The check of one threshold, of a run with these first tokens and a baseline with those."""
    requests = [request(LOAD_AT + n / 100, took=20.0, ttft=value) for n, value in enumerate(now)]
    samples = BaselineSamples(t=0, run_id="r0", source="runs/r0", selector=metric, samples=before)
    spec = quiet({metric: [threshold]})
    return check(judge(history(spec=spec, requests=requests, faults=[], extra=[samples])), f"slo/{metric}")


@pytest.mark.parametrize(
    ("many", "text", "status"),
    [
        (19, "p(50)<=baseline+500%", "invalid"),
        (20, "p(50)<=baseline+500%", "pass"),
        (458, "p(99)<=baseline+500%", "invalid"),
        (459, "p(99)<=baseline+500%", "pass"),
    ],
)
def test_a_percentile_needs_as_many_samples_of_both_runs_as_of_one(many: int, text: str, status: str) -> None:
    enough = spread(600, 1)
    for now, before in ((spread(many, 2), enough), (enough, spread(many, 3))):
        found = held(text, now, before)
        assert found.status == status, found.reason
        assert ("needs" in found.reason) == (status == "invalid")


def test_min_samples_replaces_what_a_percentile_needs() -> None:
    text = {"threshold": "p(99)<=baseline+900%", "minSamples": 100}
    assert held(text, spread(100, 2), spread(100, 3)).status == "pass"
    assert held({**text, "minSamples": 101}, spread(100, 2), spread(100, 3)).status == "invalid"


def test_the_confidence_is_stated_and_decides() -> None:
    """A median about a tenth higher, 60 samples each: four in five sure of it, not 999 in a thousand."""
    now, before = spread(60, 2, 0.115), spread(60, 3, 0.1)
    bold = held({"threshold": "p(50)<=baseline+0%", "confidence": 0.8}, now, before)
    careful = held({"threshold": "p(50)<=baseline+0%", "confidence": 0.999}, now, before)
    assert (bold.status, careful.status) == ("fail", "invalid")
    assert "80.0% confidence" in bold.expected
    assert "99.9% confidence" in careful.expected
    assert "cannot tell" in careful.reason
    assert any("Mann-Whitney" in line for line in bold.evidence)
    assert any("run r0" in line for line in bold.evidence)


@pytest.mark.parametrize("bounds", [{"low": [0.1] * 300}, {"high": [0.1] * 300}, {}])
def test_a_baseline_that_tells_one_bound_only_is_taken_as_it_was_measured(bounds: dict[str, list[float]]) -> None:
    requests = [request(LOAD_AT + n / 100, took=20.0) for n in range(300)]
    before = BaselineSamples(t=0, run_id="r0", source="runs/r0", selector="ttft", samples=[0.1] * 300, **bounds)
    spec = quiet({"ttft": ["p(50)<=baseline+10%"]})
    found = check(judge(history(spec=spec, requests=requests, faults=[], extra=[before])), "slo/ttft")
    assert found.status == "pass", found.reason


def test_nothing_is_a_share_of_nothing() -> None:
    assert "is 0" in held("p(50)<=baseline+10%", spread(100, 1), [0.0] * 100).reason


def test_runs_without_any_spread_are_compared_too() -> None:
    assert held("p(50)<=baseline+10%", [0.105] * 100, [0.1] * 100).status == "pass"
    assert held("p(50)<=baseline+10%", [0.12] * 100, [0.1] * 100).status == "fail"


def test_more_samples_than_are_drawn_give_the_same_answer_each_time() -> None:
    expression = parse_expression("p(50)<=baseline+10%", "ttft")
    now, before = spread(20_000, 1, 0.12), spread(20_000, 2)
    found = regression.compare("ttft", expression, now, before, 0.95)
    assert found is not None
    assert found.status == "fail"
    assert found == regression.compare("ttft", expression, now, before, 0.95)


@pytest.mark.parametrize(("many", "drawn"), [(49, 49), (50, 50), (51, 50), (90, 50)])
def test_of_more_samples_than_are_drawn_each_is_drawn_once_at_the_most(
    many: int, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[Any, Any], dict[str, Any]]] = []

    def bootstrap(data: tuple[Any, Any], _: Any, **keys: Any) -> Any:
        asked.append((data, keys))
        return SimpleNamespace(confidence_interval=SimpleNamespace(low=0.0, high=0.0))

    monkeypatch.setattr(regression, "_MOST", 50)
    monkeypatch.setattr(regression.stats, "bootstrap", bootstrap)
    now, before = spread(many, 1), spread(many, 2)
    regression.compare("ttft", parse_expression("p(50)<=baseline+10%", "ttft"), now, before, 0.9)
    ((new, old), keys) = asked[0]
    for found, of in ((new, now), (old, before)):
        assert len(found) == len(set(found)) == drawn
        assert set(found) <= set(of)
        assert many > drawn or list(found) == of
    assert {key: keys[key] for key in ("vectorized", "method", "confidence_level", "n_resamples")} == {
        "vectorized": True, "method": "percentile", "confidence_level": 0.9, "n_resamples": 2000,
    }  # fmt: skip


@pytest.mark.parametrize(("left", "change"), [("med", 0.0), ("avg", 0.5), ("p(75)", 0.6)])
def test_each_aggregation_of_times_is_compared_by_itself(left: str, change: float) -> None:
    found = regression.compare(
        "ttft", parse_expression(f"{left}<=baseline+10%", "ttft"), [1.0, 2.0, 6.0], [1.0, 2.0, 3.0], 0.95
    )
    assert found is not None
    assert found.change == pytest.approx(change)


def test_the_interval_of_a_share_is_as_wide_as_the_confidence_asks() -> None:
    """Newcombe's of 90 of 100 against 80 of 100, by hand."""
    expression = parse_expression("rate>=baseline-5%", "ok")
    now, before = [1.0] * 90 + [0.0] * 10, [1.0] * 80 + [0.0] * 20
    found = {sure: regression.compare("ok", expression, now, before, sure) for sure in (0.8, 0.95)}
    widths = {sure: (round(each.low, 3), round(each.high, 3)) for sure, each in found.items() if each}
    assert widths == {0.8: (0.035, 0.165), 0.95: (0.0, 0.199)}


def test_a_share_is_compared_in_points_and_an_exact_test_stands_beside_it() -> None:
    expression = parse_expression("rate<=baseline+1%", "truncated")
    many = [1.0] * 60 + [0.0] * 940
    found = regression.compare("truncated", expression, many, [0.0] * 1000, 0.95)
    assert found is not None
    assert (found.status, found.change) == ("fail", pytest.approx(0.06))
    assert "Fisher" in found.evidence[0]
    same = regression.compare("truncated", expression, [0.0] * 1000, [0.0] * 1000, 0.95)
    assert same is not None
    assert same.status == "pass"
    assert same.high > 0, "a thousand without one do not prove that there never is one"


def test_a_regression_in_a_load_that_another_threshold_ended_is_not_proven() -> None:
    slo = {**LATER, "tpot": [{"threshold": "p(50)<=1ms", "abortOnFail": True}]}
    before: Event = BaselineSamples(t=0, run_id="r0", source="runs/r0", selector="ttft", samples=spread(300, 1, 0.01))
    told = LoadAborted(t=30, threshold="slo/tpot/p(50)<=1ms", observed="100.0 ms")
    whole = judge(history(spec=quiet(slo), faults=[], extra=[before]))
    assert check(whole, "slo/ttft").status == "fail"
    cut = judge(history(spec=quiet(slo), faults=[], extra=[before, told], aborted="asked to end (SIGTERM)"))
    assert check(cut, "slo/ttft").status == "invalid"
    assert check(cut, "slo/tpot").status == "fail"


# which runs


def refusal(tmp_path: Path, wanted: dict[str, Any], events: list[Event]) -> str:
    """Why it cannot be a baseline; empty where it can."""
    try:
        baseline.samples_for(Scenario.model_validate(wanted), keep(tmp_path, events))
    except UsageError as error:
        return str(error)
    return ""


def changed(**keys: Any) -> dict[str, Any]:
    return {**SCENARIO["load"], **keys}


HELD = quiet({"ttft": ["p(50)<=1s"]})
POISSON = {"process": "poisson", "rate": 10}


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ({}, ""),
        (changed(duration="60s"), ""),
        (changed(good={"ttft": "1s"}), ""),
        (changed(arrivals={"process": "constant", "rate": 10, "seed": 7}), ""),
        (changed(arrivals=POISSON), "load.arrivals"),
        (changed(profile="chat-long"), "load.profile"),
        (changed(keepAlive=True), "load.keepAlive"),
        (changed(arrivals=POISSON, profile="chat-long"), "load.profile"),
    ],
)
def test_only_the_same_load_is_compared_but_it_may_be_longer(tmp_path: Path, load: dict[str, Any], said: str) -> None:
    found = refusal(tmp_path, quiet(LATER, **({"load": load} if load else {})), history(spec=HELD, faults=[]))
    assert said in found
    assert bool(found) == bool(said), found


def test_all_differences_are_said_at_once(tmp_path: Path) -> None:
    load = changed(arrivals=POISSON, profile="chat-long")
    found = refusal(tmp_path, quiet(LATER, load=load), history(spec=HELD, faults=[]))
    assert "load.arrivals" in found
    assert "load.profile" in found


@pytest.mark.parametrize(("model", "taken"), [("m", True), ("another", False), (None, True)])
def test_the_model_that_was_measured_has_to_be_the_one_that_is_named(
    tmp_path: Path,
    model: str | None,
    taken: bool,
) -> None:
    endpoint = {"url": "http://127.0.0.1:1", **({"model": model} if model else {})}
    wanted = quiet(LATER, load=changed(endpoint=endpoint))
    assert ("model: another here, m there" in refusal(tmp_path, wanted, history(spec=HELD, faults=[]))) is not taken


@pytest.mark.parametrize(("selector", "taken"), [("ttft", False), ("ttft{phase:baseline}", True)])
def test_other_faults_leave_only_the_baseline_phase_to_compare(tmp_path: Path, selector: str, taken: bool) -> None:
    spec = scenario(slo={selector: ["p(50)<=baseline+10%"]})
    assert ("faults:" in refusal(tmp_path, spec, history(spec=HELD, faults=[]))) is not taken
    assert not refusal(tmp_path, spec, history()), "the same faults"


def test_a_run_that_waited_for_its_first_baseline_can_be_it(tmp_path: Path) -> None:
    """Such a run is `invalid`, and there is no other way to begin."""
    first = history(spec=quiet(LATER), faults=[])
    assert judge(first).verdict == "invalid"
    assert not refusal(tmp_path, quiet(LATER), first)


@pytest.mark.parametrize(
    "events",
    [
        history(spec=HELD, faults=[], lag=0.5),
        history(spec=HELD, faults=[], finished=False),
        history(spec=HELD, faults=[], complete=False),
        history(spec=HELD, faults=[], before=False),
        history(spec=quiet({"ttft": ["p(50)<=1ms"]}), faults=[]),
    ],
    ids=["a late client", "a dead client", "cut short", "no steady state", "a broken promise"],
)
def test_a_run_that_was_not_measured_well_is_no_baseline(tmp_path: Path, events: list[Event]) -> None:
    assert "is no baseline" in refusal(tmp_path, quiet(LATER), events)


def test_a_baseline_with_too_few_samples_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    wanted = quiet({"ttft": [{"threshold": "p(99)<=baseline+10%"}]}, load=changed(duration="100s"))
    said = refusal(tmp_path, wanted, history(spec=HELD, faults=[]))
    assert "300 samples, needs 459" in said
    assert not refusal(tmp_path, quiet(LATER), history(spec=HELD, faults=[]))


def test_a_baseline_that_nothing_is_held_against_is_a_mistake(tmp_path: Path) -> None:
    assert "no threshold is held against a baseline" in refusal(tmp_path, HELD, history(spec=HELD, faults=[]))


def test_a_file_that_is_no_timeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "timeline.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="cannot be judged"):
        baseline.samples_for(Scenario.model_validate(quiet(LATER)), tmp_path)


def test_samples_are_those_of_the_tags_and_held_to_the_limits_of_this_run(tmp_path: Path) -> None:
    tagged = [each.model_copy(update={"tags": {"tenant": "ab"[n % 2]}}) for n, each in enumerate(GOOD)]
    mix = {key: value for key, value in SCENARIO["load"].items() if key != "profile"}
    mix["mix"] = [{"profile": "chat-short", "tenant": "a"}, {"profile": "chat-short", "tenant": "b"}]
    slo = {"ttft{tenant:a}": ["p(50)<=baseline+10%"], "good_request_fraction": ["rate>=baseline-1%"]}
    folder = keep(tmp_path, history(spec=quiet({"ttft": ["p(50)<=1s"]}, load=mix), requests=tagged, faults=[]))
    strict = Scenario.model_validate(quiet(slo, load={**mix, "good": {"ttft": "50ms"}}))
    found = {each.selector: each.samples for each in baseline.samples_for(strict, folder)}
    assert len(found["ttft{tenant:a}"]) == 150
    assert set(found["good_request_fraction"]) == {0.0}
