"""An earlier run that a run is held against: what it measured, for the thresholds that ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox import metrics
from sandbox.errors import UsageError
from sandbox.judge.against import samples_needed
from sandbox.recorded import judged
from sandbox.spec.inputs import Inputs, inputs_of, is_hash
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import Expression, Selector, Threshold, parse_expression, parse_selector
from sandbox.timeline import BaselineSamples, Event, LoadStarted, RunStarted

_FIX = "give the folder of a run that passed, such as runs/<id>"
# What has to be the same, else the difference would be that of two loads; seed and duration need not be.
_SAME = ("profile", "mix", "locustfile", "arrivals", "keepAlive")
_FILES = ("profile", "locustfile", "trace")  # compared by what they hold
_MAY_DIFFER = ("seed", "maxInFlight", "apiKeyEnv", "headers")
# Whatever these say, it was not measured well. A threshold may be `invalid`: it had no baseline yet.
_MUST_PASS = ("phase", "steady-state", "fault", "validity")
_FEW = 5


def asked(scenario: Scenario) -> Iterator[tuple[Selector, Expression, Threshold]]:
    """Yield the thresholds of a scenario that are held against a baseline."""
    for slo in (scenario.slo, scenario.validity):
        for text, thresholds in slo.items():
            selector = parse_selector(text)
            for each in thresholds:
                expression = parse_expression(each.threshold, selector.metric)
                if expression.relative:
                    yield selector, expression, each


def samples_for(scenario: Scenario, folder: Path) -> list[BaselineSamples]:
    """Return what the run in `folder` measured of everything that `scenario` holds against a baseline, at t=0.

    Raises:
        UsageError: nothing asks for a baseline; there is no run, it did not pass or could not be believed, its load
            was another one, or it has too few samples.
    """
    wanted = list(asked(scenario))
    if not wanted:
        fix = "write one such as ttft: ['p(50)<=baseline+10%'], or leave the baseline out"
        raise UsageError("no threshold is held against a baseline", where=str(folder), fix=fix)
    events, results = judged(folder, _FIX)
    broken = [check for check in results.checks if check.group in _MUST_PASS and check.status != "pass"]
    if results.verdict == "fail" or broken:
        details = [f"{each.title}: {each.reason or each.observed}" for each in broken[:_FEW]]
        raise UsageError(f"is no baseline: {results.headline}", where=str(folder), fix=_FIX, details=details)
    if other := _differences(scenario, events, wanted):
        raise UsageError("is another load, and cannot be compared", where=str(folder), details=other, fix=_FIX)
    return _samples(scenario, folder, events, wanted)


def _begun(events: list[Event]) -> RunStarted:
    return next(event for event in events if isinstance(event, RunStarted))  # the judge has seen it


def _earlier(events: list[Event]) -> Scenario:
    return Scenario.model_validate(_begun(events).scenario)


def _differences(
    scenario: Scenario, events: list[Event], wanted: list[tuple[Selector, Expression, Threshold]]
) -> list[str]:
    """Everything in which the two loads differ and that their figures depend on."""
    earlier, held = _earlier(events), _begun(events).inputs
    if held is None:
        fix = f"run it again with this version: sandbox run {_begun(events).source}"
        return [f"an older version recorded it, which did not keep what its profile held; {fix}"]
    now, before = _essence(scenario, inputs_of(scenario.load)), _essence(earlier, held)
    found = [words for key in _SAME for words in _unlike(f"load.{key}", now[key], before[key])]
    served = next((event.model for event in events if isinstance(event, LoadStarted)), "")
    named = _named_model(scenario)
    if named is not None and named != served:
        found.append(f"model: {named} here, {served or 'none'} there")
    struck, then = ([use.model_dump(mode="json") for use in each.faults] for each in (scenario, earlier))
    if struck != then and any(selector.tags.get("phase") != "baseline" for selector, _, _ in wanted):
        found.append(f"faults: {_names(struck)} here, {_names(then)} there; {{phase:baseline}} alone can be compared")
    return found


def _essence(scenario: Scenario, inputs: Inputs) -> dict[str, Any]:
    """What of a load decides what is sent: its keys, and what the files that it names hold, whatever their names."""
    load = scenario.load.model_dump(mode="json", by_alias=True) if scenario.load else {}

    def shorn(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: item for key, item in value.items() if key not in _MAY_DIFFER and item is not None}
            return {key: _content(inputs, key, item) if key in _FILES else shorn(item) for key, item in kept.items()}
        return [shorn(item) for item in value] if isinstance(value, list) else value

    return {key: _content(inputs, key, load.get(key)) if key in _FILES else shorn(load.get(key)) for key in _SAME}


def _content(inputs: Inputs, key: str, name: str | None) -> Any:
    return None if name is None else inputs.get(f"{key} {name}", name)


def _unlike(keys: str, here: Any, there: Any) -> list[str]:
    """Where two of them differ, in words, each by its own keys."""
    if here == there:
        return []
    if isinstance(here, dict) and isinstance(there, dict):
        return [
            words
            for key in dict.fromkeys([*here, *there])
            for words in _unlike(f"{keys}.{key}", here.get(key), there.get(key))
        ]
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        pairs = enumerate(zip(here, there, strict=True))
        return [words for number, pair in pairs for words in _unlike(f"{keys}[{number}]", *pair)]
    if is_hash(here) and is_hash(there):
        return [f"{keys}: another text here than there"]
    told = ["a long text" if is_hash(each) else "none" if each is None else each for each in (here, there)]
    return [f"{keys}: {told[0]} here, {told[1]} there"]


def _named_model(scenario: Scenario) -> str | None:
    """The model that a scenario names; None: the one that is served."""
    if scenario.load is not None and scenario.load.endpoint is not None:
        return scenario.load.endpoint.model
    named = scenario.stack.values.get("model") if scenario.stack else None
    return named if isinstance(named, str) else None


def _names(uses: list[dict[str, Any]]) -> str:
    return ", ".join(f"{use['name']} {use['params']} at {use['at']}" for use in uses) or "none"


def _samples(
    scenario: Scenario, folder: Path, events: list[Event], wanted: list[tuple[Selector, Expression, Threshold]]
) -> list[BaselineSamples]:
    """Of each selector its samples, held to the limits of `good` that this scenario has."""
    limits = {str(name): limit for name, limit in scenario.load.good.items()} if scenario.load else {}
    rec = metrics.record(events, limits, rules=metrics.Rules.of(_earlier(events).load))
    run_id = _begun(events).run_id
    found: dict[str, BaselineSamples] = {}
    few: list[str] = []
    for selector, expression, threshold in wanted:
        name = str(selector)
        if name not in found:
            found[name] = _copied(run_id, folder, name, metrics.samples(rec, selector, expression))
        there, needed = len(found[name].samples), samples_needed(threshold, expression)
        if there < needed:
            few.append(f"{name} {threshold.threshold}: {there} samples, needs {needed}")
    if few:
        fix = "load for longer in the earlier run, or ask for a lower percentile"
        raise UsageError("has too few samples to be a baseline", where=str(folder), details=few, fix=fix)
    return list(found.values())


def _copied(run_id: str, folder: Path, name: str, found: metrics.Samples) -> BaselineSamples:
    """An earlier run's samples as this run's timeline keeps them; their bounds where they are others."""
    bounds = {"low": list(found.low), "high": list(found.high)} if found.uncertain else {}
    return BaselineSamples.model_validate(
        {"t": 0.0, "run_id": run_id, "source": str(folder), "selector": name, "samples": found.measured, **bounds}
    )
