"""Timeline + SLOs -> verdict. Pure: no clock, no files, no cluster, so any run can be judged again.

`invalid` means it could not be proven either way: a fault that did not demonstrably happen, a window
with no samples, a probe that errored, a load client that was itself the bottleneck. No data is never
a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sandbox import metrics
from sandbox.judge.answered import answered_checks
from sandbox.judge.attacks import attack_checks
from sandbox.judge.faults import fault_checks
from sandbox.judge.integrity import in_order, timeline_check
from sandbox.judge.steady_state import steady_state_checks
from sandbox.judge.thresholds import threshold_checks
from sandbox.judge.users import user_checks
from sandbox.judge.validity import loosening_notes, unfailing
from sandbox.judge.workloads import workload_checks
from sandbox.metrics import pods
from sandbox.metrics.summary import summarise
from sandbox.spec.results import Check, Results, Status, worst
from sandbox.spec.scenario import Scenario
from sandbox.timeline import EMPTY_ALLOWED, Event, Fact, Note, PhaseChanged, Request, RunStarted


def judge(events: Iterable[Event]) -> Results:
    """Judge one run: what its timeline says, and whether it is whole.

    Raises:
        ValueError: the timeline does not begin with a run, so there is nothing to judge it against.
    """
    timeline = list(events)
    scenario, _ = _asked(timeline)
    ordered = in_order(timeline)
    return weigh(ordered, timeline_check(scenario, timeline, ordered))


def weigh(timeline: Sequence[Event], *others: Check) -> Results:
    """Judge what events say, without asking whether they are all; `others`: checks that were made of them already.

    Raises:
        ValueError: they do not tell of a run, so there is nothing to judge them against.
    """
    scenario, begun = _asked(timeline)
    limits = {str(name): limit for name, limit in scenario.load.good.items()} if scenario.load else {}
    workloads = {each.name: each.because or "" for each in scenario.workloads}
    rec = metrics.record(timeline, limits, workloads, metrics.Rules.of(scenario.load))
    checks = [
        *_phases(timeline),
        *steady_state_checks(scenario, timeline),
        *fault_checks(scenario, timeline),
        *threshold_checks(scenario, timeline, rec),
        *answered_checks(scenario, rec),
        *user_checks(scenario, timeline),
        *workload_checks(scenario, rec.pods),
        *attack_checks(scenario, timeline),
        *unfailing(scenario),
    ]
    checks = [*_reached(timeline, checks), *others]
    verdict = worst(check.status for check in checks)
    return Results(
        run_id=begun.run_id,
        scenario=scenario.metadata.name,
        source=begun.source,
        description=scenario.metadata.description,
        started=begun.wall,
        duration=rec.end,
        verdict=verdict,
        headline=_headline(verdict, checks),
        checks=checks,
        windows=rec.windows,
        summaries=summarise(rec),
        workloads=pods.summarise(rec.pods),
        time_to_recover=_finite(metrics.time_to_recover(rec)),
        facts={event.about: event.values for event in timeline if isinstance(event, Fact)},
        notes=[
            *(f"{event.level}: {event.message}" for event in timeline if isinstance(event, Note)),
            *_empty(timeline),
            *loosening_notes(scenario),
        ],
    )


def _asked(timeline: Sequence[Event]) -> tuple[Scenario, RunStarted]:
    """What a run was to show."""
    begun = next((event for event in timeline if isinstance(event, RunStarted)), None)
    if begun is None:
        raise ValueError("the timeline holds no run.started event: there is nothing to judge")
    return Scenario.model_validate(begun.scenario), begun


def _empty(timeline: Sequence[Event]) -> list[str]:
    """How many answers said nothing, where a profile allows that; the others are `empty`, and not good."""
    answered = [event for event in timeline if isinstance(event, Request) and event.outcome == "ok"]
    empty = sum(event.detail == EMPTY_ALLOWED for event in answered)
    return (
        [f"warning: {empty} of {len(answered)} answers said nothing; they are ok, for their profile allows it"]
        if empty
        else []
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _headline(verdict: Status, checks: Sequence[Check]) -> str:
    if verdict == "pass":
        return f"Everything that was promised held: {len(checks)} checks passed."
    first = next((check for check in checks if check.status == verdict), None)
    if first is None:
        return "Nothing was checked, so nothing was proven."
    others = sum(check.status == verdict for check in checks) - 1
    more = f" ({others} more)" if others else ""
    word = "Did not hold" if verdict == "fail" else "Could not be proven"
    return f"{word}: {first.title}: {first.reason or first.observed}{more}"


def _phases(timeline: Sequence[Event]) -> list[Check]:
    """A run that was cut short proves nothing about what it did not come to."""
    changes = [event for event in timeline if isinstance(event, PhaseChanged)]
    checks = [
        Check(
            id=f"phase/{event.name}",
            group="phase",
            title=f"phase {event.name}",
            status="invalid",
            observed="stopped",
            expected="runs to its end",
            reason=event.detail,
            evidence=[f"t={event.t:.2f}s {event.detail}"],
        )
        for event in changes
        if event.status == "failed"
    ]
    done = {event.name for event in changes if event.status == "ok"}
    if not checks and "recover" not in done:
        checks.append(
            Check(
                id="phase/recover",
                group="phase",
                title="the run came to its end",
                status="invalid",
                observed=f"last phase that ended well: {changes[-1].name if changes else 'none'}",
                expected="all phases to and with recover",
                reason="the harness was stopped half-way; what follows is judged as far as it got",
            )
        )
    return checks


def _reached(timeline: Sequence[Event], checks: list[Check]) -> list[Check]:
    """Where the run stopped before its load, say once that nothing else was come to, not once per check."""
    begun = {event.name for event in timeline if isinstance(event, PhaseChanged)}
    stopped = any(isinstance(event, PhaseChanged) and event.status == "failed" for event in timeline)
    if not stopped or "exercise" in begun:
        return checks
    told = [check for check in checks if check.evidence]
    if missed := len(checks) - len(told):
        reason = f"the run stopped before it came to {missed} other checks"
        told.append(
            Check(
                id="phase/not-reached",
                group="phase",
                title="everything else",
                status="invalid",
                observed="not reached",
                expected="checked",
                reason=reason,
            )
        )
    return told
