"""The steady state: every probe held in as many looks in a row as were asked for, before the load and after it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from sandbox.spec.results import Check, Status
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Event, Probed, RunStarted

_SHOWN = 4  # looks before the last ones in a row
_OLDER = "; the run is of a version that looked once"


def steady_state_checks(scenario: Scenario, timeline: Sequence[Event]) -> list[Check]:
    """One check for each probe before the load and one after it. One yes is a moment, so it is no steady state."""
    looks = [event for event in timeline if isinstance(event, Probed)]
    begun = next((event for event in timeline if isinstance(event, RunStarted)), None)
    needed = scenario.steady.looks if begun is None or "steady" in begun.scenario else 1
    return [
        _check(scenario, when, position, needed, [p for p in looks if p.when == when and p.index == position])
        for when in ("before", "after")
        for position in range(len(scenario.steady_state))
    ]


def _check(scenario: Scenario, when: str, position: int, needed: int, looks: Sequence[Probed]) -> Check:
    name = scenario.steady_state[position].name
    held = len(list(takewhile(lambda each: each.ok, reversed(looks))))
    status, reason = _judged(scenario, when, held, needed, looks)
    return Check(
        id=f"steady-state/{when}/{position}/{name}",
        group="steady-state",
        title=f"{name} {when} the load" if scenario.load else f"{name} ({when})",
        status=status,
        observed=f"{looks[-1].detail}; {_counted(held, looks)}" if looks else "nothing",
        expected=f"holds in {needed} looks in a row" if needed > 1 else f"holds{_OLDER}",
        samples=len(looks),
        reason=reason,
        evidence=[f"t={each.t:.2f}s {each.detail}" for each in looks[-(held + _SHOWN) :]],
    )


def _judged(scenario: Scenario, when: str, held: int, needed: int, looks: Sequence[Probed]) -> tuple[Status, str]:
    if not looks:
        return "invalid", "the probe was never made"
    last = looks[-1]
    if last.ok is None:
        return "invalid", f"the probe itself failed: {last.detail}"
    if held >= needed:
        return "pass", ""
    if when == "before" and scenario.faults:
        return "invalid", "the steady state did not hold before the first fault: nothing can be said of the fault"
    if last.ok:
        return "invalid", f"{held} looks in a row are a moment, and {needed} were asked for: it may not be steady"
    return "fail", f"the steady state does not hold: {last.detail}"


def _counted(held: int, looks: Sequence[Probed]) -> str:
    before = len(looks) - held
    words = f"held in {held} looks in a row" if held else "does not hold"
    return words + (f", after {before} in which it did not always" if held and before else "")
