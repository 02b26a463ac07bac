"""Faults: each was begun, was seen to happen from outside, and healed, in this order and once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandbox.spec.results import Check, Status
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Event, FaultEvent

_WHOLE = ["started", "injected", "proven", "healed"]


def fault_checks(scenario: Scenario, timeline: Sequence[Event]) -> list[Check]:
    """One check for each fault of the scenario."""
    lives: dict[int, list[FaultEvent]] = {}
    for event in timeline:
        if isinstance(event, FaultEvent):
            lives.setdefault(event.index, []).append(event)
    return [_check(index, use.name, lives.get(index, [])) for index, use in enumerate(scenario.faults)]


def _check(index: int, name: str, life: Sequence[FaultEvent]) -> Check:
    status, reason = _judged(life)
    return Check(
        id=f"fault/{index}/{name}",
        group="fault",
        title=f"{name} happened and healed",
        status=status,
        observed=", ".join(f"{event.state} at {event.t:.2f}s" for event in life) or "nothing",
        expected="injected, proven from outside, healed",
        reason=reason,
        evidence=[f"t={event.t:.2f}s {event.state}: {event.detail} {_flat(event.evidence)}".rstrip() for event in life],
    )


def _judged(life: Sequence[FaultEvent]) -> tuple[Status, str]:
    states: dict[str, FaultEvent] = {event.state: event for event in life}
    told: list[str] = [event.state for event in life]
    if "no_target" in states:
        return "invalid", f"matched nothing, so nothing happened: {states['no_target'].detail}"
    if told == [*_WHOLE[:-1], "not_healed"]:
        return "fail", f"did not heal: {states['not_healed'].detail}"
    if told == _WHOLE:
        return "pass", ""
    return "invalid", _missing(states, told)


def _missing(states: Mapping[str, FaultEvent], told: Sequence[str]) -> str:
    if "failed" in states:
        return states["failed"].detail
    if "proven" not in states:
        return "no evidence from outside that it happened"
    if told == _WHOLE[:-1]:
        return "the run ended before it could be seen to heal"
    return f"what is told of it cannot be: {', '.join(told)}"


def _flat(evidence: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in evidence.items())
