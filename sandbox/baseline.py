"""An earlier run that a run is held against: what it measured, for the thresholds that ask for it."""

from __future__ import annotations

from pathlib import Path

from sandbox import metrics
from sandbox.errors import UsageError
from sandbox.judge import judge
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import parse_expression, parse_selector
from sandbox.timeline import BaselineSamples, Event, RunStarted, read

_FIX = "give the folder of a run that passed, such as runs/<id>"
# What has to be the same, else the difference would be that of two loads: (keys below `load`, what it is).
_SAME = ("profile", "mix", "locustfile", "arrivals", "duration", "good", "keepAlive")


def asked(scenario: Scenario) -> list[str]:
    """The selectors that a scenario's thresholds hold against a baseline."""
    return [
        text
        for text, thresholds in scenario.slo.items()
        if any(parse_expression(each.threshold, parse_selector(text).metric).relative for each in thresholds)
    ]


def samples_for(scenario: Scenario, folder: Path) -> list[BaselineSamples]:
    """Return what the run in `folder` measured of everything that `scenario` holds against a baseline, at t=0.

    Raises:
        UsageError: there is no run, it did not pass, or its load was another one.
    """
    path = folder / "timeline.jsonl"
    if not path.is_file():
        raise UsageError("holds no timeline.jsonl", where=str(folder), fix=_FIX)
    try:
        events = list(read(path))
        results = judge(events)
    except ValueError as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), fix=_FIX) from error
    if results.verdict == "fail" or any(c.status != "pass" for c in results.checks if c.group in {"validity", "phase"}):
        raise UsageError(f"is no baseline: {results.headline}", where=str(folder), fix=_FIX)
    begun = next(event for event in events if isinstance(event, RunStarted))
    earlier = Scenario.model_validate(begun.scenario)
    _same_load(scenario, earlier, folder)
    return [_of(text, scenario, events, begun.run_id, folder) for text in asked(scenario)]


def _same_load(scenario: Scenario, earlier: Scenario, folder: Path) -> None:
    now, before = (
        each.load.model_dump(mode="json", by_alias=True) if each.load else {} for each in (scenario, earlier)
    )
    if other := [key for key in _SAME if now.get(key) != before.get(key)]:
        details = [f"load.{key}: {now.get(key)} here, {before.get(key)} there" for key in other]
        raise UsageError("is another load, and cannot be compared", where=str(folder), details=details, fix=_FIX)


def _of(text: str, scenario: Scenario, events: list[Event], run_id: str, folder: Path) -> BaselineSamples:
    selector = parse_selector(text)
    limits = {str(name): limit for name, limit in scenario.load.good.items()} if scenario.load else {}
    expression = next(
        found for each in scenario.slo[text] if (found := parse_expression(each.threshold, selector.metric)).relative
    )
    samples = metrics.samples(metrics.record(events, limits), selector, expression)
    return BaselineSamples(t=0.0, run_id=run_id, source=str(folder), selector=str(selector), samples=samples)
