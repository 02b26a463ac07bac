"""Attempts and their allowed twins: denied by the right layer, and nothing denied that must be allowed."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox.spec.attack import LAYERS
from sandbox.spec.results import Check, Status
from sandbox.spec.scenario import Scenario
from sandbox.timeline import AttackEvent, Event, Fact


def attack_checks(scenario: Scenario, timeline: Sequence[Event]) -> list[Check]:
    """One check per attempt that was planned or made."""
    tried = [event for event in timeline if isinstance(event, AttackEvent)]
    planned: list[str] = []
    for event in timeline:
        if isinstance(event, Fact) and event.about == "attacks":
            planned = list(event.values.get("planned", []))
    ids = list(dict.fromkeys([*planned, *(event.attempt for event in tried)]))
    if scenario.attacks and not ids:
        return [_attack_check(name, []) for name in scenario.attacks]
    return [_attack_check(name, [event for event in tried if event.attempt == name]) for name in ids]


def _attack_check(name: str, events: list[AttackEvent]) -> Check:
    attempt = _worst(events, "attempt", ("succeeded", "error"))
    twin = _worst(events, "allowed", ("denied", "error"))
    status: Status = "pass"
    reason = ""
    if attempt is None or twin is None:
        status, reason = "invalid", f"the {'attempt' if attempt is None else 'allowed twin'} was never made"
    elif attempt.outcome == "succeeded":
        status, reason = "fail", f"the attempt succeeded: {attempt.message}"
    elif twin.outcome == "denied":
        status, reason = "fail", f"what must be allowed was denied too, by {_layer(twin.by)}: {twin.message}"
    elif "error" in {attempt.outcome, twin.outcome}:
        broken = attempt if attempt.outcome == "error" else twin
        status, reason = "invalid", f"the {broken.variant} could not be made: {broken.message}"
    elif attempt.by != attempt.expected_by:
        status = "invalid"
        reason = f"denied by {_layer(attempt.by)}, not by {_layer(attempt.expected_by)}: that guardrail is not proven"
    return Check(
        id=f"attack/{name}",
        group="attack",
        title=attempt.title if attempt else name,
        status=status,
        observed="; ".join(f"{e.variant}: {e.outcome}{f' by {_layer(e.by)}' if e.by else ''}" for e in events)
        or "nothing",
        expected=f"attempt: denied by {_layer(attempt.expected_by)}; allowed: succeeded" if attempt else "an attempt",
        reason=reason,
        evidence=[f"t={event.t:.2f}s {event.variant}: {event.outcome} {event.message}" for event in events],
    )


def _worst(events: Sequence[AttackEvent], variant: str, bad: Sequence[str]) -> AttackEvent | None:
    """Of several tries of one variant, though there should be one: the first that came to the worst."""
    made = [event for event in events if event.variant == variant]
    worse = [event for outcome in bad for event in made if event.outcome == outcome]
    return next(iter([*worse, *made]), None)


def _layer(letter: str) -> str:
    return LAYERS.get(letter, "nobody known")
