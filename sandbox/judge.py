"""Timeline + SLOs -> verdict. Pure: no clock, no files, no cluster, so any run can be judged again.

`invalid` means it could not be proven either way: a fault that did not demonstrably happen, a window
with no samples, a probe that errored, a load client that was itself the bottleneck. No data is never
a pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from sandbox import metrics
from sandbox.metrics import Record
from sandbox.spec.attack import LAYERS
from sandbox.spec.results import Check, Results, Status, worst
from sandbox.spec.scenario import Named, Scenario
from sandbox.spec.slo import METRICS, Expression, Selector, Slo, Threshold, parse_expression, parse_selector
from sandbox.timeline import (
    AttackEvent,
    Event,
    Fact,
    FaultEvent,
    LoadFinished,
    Note,
    PhaseChanged,
    Probed,
    Request,
    RunStarted,
)

# Held against every run that has a load, unless the scenario's own `validity` names the metric.
DEFAULT_VALIDITY: Slo = {"client_lag": [Threshold(threshold="p(99)<=10ms")]}
_EVIDENCE_LINES = 8
_EVIDENCE_OF_A_PASS = 3


def judge(events: Iterable[Event]) -> Results:
    """Judge one run.

    Raises:
        ValueError: the timeline does not begin with a run, so there is nothing to judge it against.
    """
    timeline = list(events)
    begun = next((event for event in timeline if isinstance(event, RunStarted)), None)
    if begun is None:
        raise ValueError("the timeline holds no run.started event: there is nothing to judge")
    scenario = Scenario.model_validate(begun.scenario)
    limits = {str(name): limit for name, limit in scenario.load.good.items()} if scenario.load else {}
    rec = metrics.record(timeline, limits)
    checks = [
        *_phases(timeline),
        *_steady_state(scenario, timeline),
        *_faults(scenario, timeline),
        *_load(scenario, timeline, rec),
        *_attacks(scenario, timeline),
    ]
    checks = _reached(timeline, checks)
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
        summaries=metrics.summarise(rec),
        time_to_recover=_finite(metrics.time_to_recover(rec)),
        facts={event.about: event.values for event in timeline if isinstance(event, Fact)},
        notes=[f"{event.level}: {event.message}" for event in timeline if isinstance(event, Note)],
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


def _steady_state(scenario: Scenario, timeline: Sequence[Event]) -> list[Check]:
    probes = [event for event in timeline if isinstance(event, Probed)]
    checks = []
    for when in ("before", "after"):
        for position, use in enumerate(scenario.steady_state):
            seen = [p for p in probes if p.when == when and p.index == position]
            found = seen[-1] if seen else None
            checks.append(_probe_check(scenario, use, position, when, found))
    return checks


def _probe_check(scenario: Scenario, use: Named, position: int, when: str, found: Probed | None) -> Check:
    status: Status = "pass"
    reason = ""
    if found is None:
        status, reason = "invalid", "the probe was never made"
    elif found.ok is None:
        status, reason = "invalid", f"the probe itself failed: {found.detail}"
    elif not found.ok and when == "before" and scenario.faults:
        status, reason = (
            "invalid",
            "the steady state did not hold before the first fault: nothing can be said of the fault",
        )
    elif not found.ok:
        status, reason = "fail", f"the steady state does not hold: {found.detail}"
    return Check(
        id=f"steady-state/{when}/{position}/{use.name}",
        group="steady-state",
        title=f"{use.name} {when} the load" if scenario.load else f"{use.name} ({when})",
        status=status,
        observed=found.detail if found else "nothing",
        expected="holds",
        reason=reason,
        evidence=[f"t={found.t:.2f}s {found.detail}"] if found else [],
    )


def _faults(scenario: Scenario, timeline: Sequence[Event]) -> list[Check]:
    lives: dict[int, list[FaultEvent]] = {}
    for event in timeline:
        if isinstance(event, FaultEvent):
            lives.setdefault(event.index, []).append(event)
    return [_fault_check(index, use.name, lives.get(index, [])) for index, use in enumerate(scenario.faults)]


def _fault_check(index: int, name: str, life: list[FaultEvent]) -> Check:
    states = {event.state: event for event in life}
    status: Status = "pass"
    reason = ""
    if "no_target" in states:
        status, reason = "invalid", f"matched nothing, so nothing happened: {states['no_target'].detail}"
    elif "proven" not in states:
        status = "invalid"
        reason = states["failed"].detail if "failed" in states else "no evidence from outside that it happened"
    elif "not_healed" in states:
        status, reason = "fail", f"did not heal: {states['not_healed'].detail}"
    elif "healed" not in states:
        status = "invalid"
        reason = states["failed"].detail if "failed" in states else "the run ended before it could be seen to heal"
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


def _flat(evidence: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in evidence.items())


def _load(scenario: Scenario, timeline: Sequence[Event], rec: Record) -> list[Check]:
    if scenario.load is None:
        return []
    finished = next((event for event in timeline if isinstance(event, LoadFinished)), None)
    validity = {**{k: v for k, v in DEFAULT_VALIDITY.items() if k not in scenario.validity}, **scenario.validity}
    checks = []
    for is_validity, slo in ((False, scenario.slo), (True, validity)):
        for text, thresholds in slo.items():
            found = [_threshold_check(rec, text, threshold, validity=is_validity) for threshold in thresholds]
            checks += found if finished and not finished.aborted else [_cut_short(each) for each in found]
    return [*checks, _client_check(finished, len(rec.requests))]


def _cut_short(check: Check) -> Check:
    """A load that did not come to its planned end breaks no promise: its figures are those of another load."""
    if check.status != "fail":
        return check
    return check.model_copy(update={"status": "invalid", "reason": f"{check.reason}, in a load that was cut short"})


def _client_check(finished: LoadFinished | None, recorded: int) -> Check:
    """The load client came to its planned end and wrote down every request it attempted."""
    reason = ""
    if finished is None:
        reason = "the load client crashed or was killed; see load.log beside the timeline"
    elif finished.aborted:
        reason = f"the load was ended early: {finished.aborted}"
    elif finished.attempted != recorded:
        reason = f"it attempted {finished.attempted} requests and the timeline holds {recorded}: evidence is missing"
    return Check(
        id="validity/load-client",
        group="validity",
        title="the load client ran to its end",
        status="invalid" if reason else "pass",
        observed=f"{recorded} requests in the timeline" if finished else "it never said that it finished",
        expected="load.finished, and every request attempted in the timeline",
        samples=recorded,
        reason=reason,
        evidence=[f"t={finished.t:.2f}s load.finished, {finished.attempted} attempted"] if finished else [],
    )


def _threshold_check(rec: Record, text: str, threshold: Threshold, *, validity: bool) -> Check:
    selector = parse_selector(text)
    expression = parse_expression(threshold.threshold, selector.metric)
    seen = metrics.observe(rec, selector, expression)
    needed = threshold.min_samples or expression.samples_needed
    status: Status = "pass"
    reason = ""
    if seen.value is None:
        status, reason = "invalid", "there was nothing to measure: no sample fell into this window"
    elif seen.samples < needed:
        status = "invalid"
        reason = (
            f"{seen.samples} samples say nothing about {expression.aggregation} (needs {needed}); "
            "load for longer, ask for a lower percentile, or set minSamples"
        )
    elif math.isinf(seen.value) and (unseen := metrics.recovery_cut_off(rec, expression.bound)):
        status, reason = "invalid", f"{unseen}: load for longer, or strike earlier"
    elif not expression.holds(seen.value):
        status = "invalid" if validity else "fail"
        shown = _shown(seen.value, selector.metric, expression)
        reason = f"{expression.aggregation} is {shown}, asked for {threshold.threshold}"
        if validity:
            reason += "; the load client or its machine was the bottleneck: lower the rate, or give it more CPU"
    return Check(
        id=f"{'validity' if validity else 'slo'}/{selector}/{threshold.threshold.replace(' ', '')}",
        group="validity" if validity else "slo",
        title=f"{selector} {threshold.threshold}",
        status=status,
        observed="no data" if seen.value is None else _shown(seen.value, selector.metric, expression),
        expected=threshold.threshold,
        samples=seen.samples,
        reason=reason,
        evidence=_witnesses(rec, selector, _EVIDENCE_OF_A_PASS if status == "pass" else _EVIDENCE_LINES),
    )


def _shown(value: float, metric: str, expression: Expression) -> str:
    known = METRICS[metric]
    if math.isinf(value):
        return "never"
    if known.unit == "s" and expression.aggregation != "count":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    if known.kind == "rate" or expression.aggregation == "rate":
        text = f"{value:.2%}"
        return f"{value:.5%}" if text == "100.00%" and value < 1 else text
    return f"{value:g}{' ' + known.unit if known.unit else ''}"


def _witnesses(rec: Record, selector: Selector, most: int) -> list[str]:
    """The requests a reader wants to see first: of a latency the highest, else those not good, then the slowest."""
    known = METRICS[selector.metric]
    if selector.metric.startswith("client_") or known.kind == "value":  # not of single requests
        return []
    requests = metrics.select(rec, selector)
    if known.kind == "trend":
        measured = [(max(values), r) for r in requests if (values := metrics.trend([r], selector.metric))]
        worst_first = [request for _, request in sorted(measured, key=lambda pair: pair[0], reverse=True)]
    else:
        worst_first = sorted(
            requests,
            key=lambda r: (not metrics.is_good(r, rec.limits), r.outcome != "ok", r.t - r.scheduled),
            reverse=True,
        )
    return [*_tally(rec, requests), *(_told(rec, request) for request in worst_first[:most])]


def _tally(rec: Record, requests: Sequence[Request]) -> list[str]:
    """How many were not good, and why, in one line; nothing where all were."""
    late = sum(request.outcome == "ok" and not metrics.is_good(request, rec.limits) for request in requests)
    counts = Counter(request.outcome for request in requests if request.outcome != "ok")
    words = [f"{count} {outcome}" for outcome, count in counts.most_common()]
    words += [f"{late} ok but beyond a limit of `good`"] if late else []
    return [f"of {len(requests)} requests: {', '.join(words)}"] if words else []


def _told(rec: Record, request: Request) -> str:
    broken = metrics.broken_limits(request, rec.limits) if request.outcome == "ok" else []
    words = [
        f"t={request.t:.2f}s {request.outcome}{f' {request.status}' if request.status else ''}",
        f"scheduled={request.scheduled:.2f}s took={request.t - request.scheduled:.3f}s",
        *(f"{name} beyond {rec.limits[name]:g} s" for name in broken),
        request.detail,
    ]
    return " ".join(filter(None, words))


def _attacks(scenario: Scenario, timeline: Sequence[Event]) -> list[Check]:
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
    attempt = next((event for event in events if event.variant == "attempt"), None)
    twin = next((event for event in events if event.variant == "allowed"), None)
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


def _layer(letter: str) -> str:
    return LAYERS.get(letter, "nobody known")
