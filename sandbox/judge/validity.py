"""What makes a measurement valid: the defaults of a load, as far as the scenario loosened them, and what it adds."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox.metrics import Record
from sandbox.spec.results import Check
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import Slo, Threshold, parse_selector
from sandbox.spec.vacuous import vacuous
from sandbox.spec.validity import DEFAULT_VALIDITY, loosened
from sandbox.timeline import Event, LoadStarted


def validity_of(scenario: Scenario, timeline: Sequence[Event], rec: Record) -> Slo:
    """Every threshold that is held, by selector: the defaults first, then the scenario's own beside them."""
    held: Slo = {}
    for name in _defaults(scenario, timeline, rec):
        default = loosened(name, scenario.loosen)
        own = scenario.validity.get(name, [])
        held[name] = [] if any(_covers(each, default) for each in own) else [default]
    for text, thresholds in scenario.validity.items():
        held[text] = [*held.get(text, []), *thresholds]
    return held


def _covers(own: Threshold, default: Threshold) -> bool:
    """Whether it asks for the same, perhaps to end the load: one check is enough."""
    same = own.threshold.replace(" ", "") == default.threshold.replace(" ", "")
    return same and own.min_samples in {None, default.min_samples}


def _defaults(scenario: Scenario, timeline: Sequence[Event], rec: Record) -> list[str]:
    """What holds for this load. A client that was to be calibrated and was not is no pass; older ones never were.

    Of a client that says how late each reading may be they prove nothing: each figure is judged by its interval, and
    by whether the load was offered. Only what the scenario itself sets is still held.
    """
    if scenario.load is None:
        return []
    if rec.table.timed:
        return [name for name in DEFAULT_VALIDITY if name in scenario.loosen]
    asked = next((event.asked for event in timeline if isinstance(event, LoadStarted)), {})
    left_out = set()
    if not asked.get("calibrated") and not any(beat.calibrated for beat in rec.beats):
        left_out.add("client_added")
    if scenario.load.locustfile is not None:  # it has no schedule but its own
        left_out.add("sched_lag")
    return [name for name in DEFAULT_VALIDITY if name not in left_out]


def shown_as_loosened(check: Check, text: str, scenario: Scenario) -> Check:
    """Say in its title, which every report shows, that a check is not the default."""
    own = scenario.loosen.get(text)
    if own is None and text in DEFAULT_VALIDITY and text in scenario.validity and check.status != "pass":
        if check.expected == DEFAULT_VALIDITY[text].threshold:
            words = f"`validity` adds to this default; to have another in its place write `loosen: {{{text}: …}}`"
            return check.model_copy(update={"reason": f"{check.reason}; {words}"})
        return check
    if own is None or own.threshold != check.expected:
        return check
    words = f"loosened from {DEFAULT_VALIDITY[text].threshold} to {own.threshold}"
    return check.model_copy(update={"title": f"{text} {words}", "evidence": [f"{text}: {words}", *check.evidence]})


def loosening_notes(scenario: Scenario) -> list[str]:
    """What a reader has to know of the defaults: which the scenario loosened, and which an older version replaced."""
    notes = [
        f"warning: {name} was loosened by the scenario, from {DEFAULT_VALIDITY[name].threshold} to {own.threshold}"
        for name, own in scenario.loosen.items()
    ]
    if "loosen" not in scenario.model_fields_set:  # recorded before there was such a key
        for text in scenario.validity:
            default = DEFAULT_VALIDITY.get(parse_selector(text).metric)
            words = "recorded by an older version, in which its `validity` stood in place of the default"
            notes += [f"warning: {text}: {words}, {default.threshold}; it is judged by both"] if default else []
    return notes


def unfailing(scenario: Scenario) -> list[Check]:
    """What of a recorded scenario could not fail, which `lint` refuses today: nothing is proven by that."""
    found = vacuous(scenario.model_dump(mode="json", by_alias=True))
    return [
        Check(
            id=f"validity/scenario/{'.'.join(map(str, keys))}",
            group="validity",
            title=f"{'.'.join(map(str, keys))} can fail",
            status="invalid",
            observed="it could not",
            expected="a check that something could break",
            reason=words,
        )
        for keys, words in found
    ]
