"""Thresholds: SLOs and what makes a measurement valid, each against the figures of the whole record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from sandbox import metrics
from sandbox.judge.workloads import witnesses as pod_witnesses
from sandbox.metrics import Record
from sandbox.spec.results import Check, Status
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import METRICS, Expression, Selector, Slo, Threshold, parse_expression, parse_selector
from sandbox.timeline import BaselineSamples, Event, LoadAborted, LoadFinished, LoadStarted, Request

# Held against every run that has a load, unless the scenario's own `validity` names the metric.
DEFAULT_VALIDITY: Slo = {
    "client_lag": [Threshold(threshold="p(99)<=10ms")],
    "client_added": [Threshold(threshold="p(99)<=5ms")],
    "sched_lag": [Threshold(threshold="p(99)<=50ms", min_samples=1)],
    "client_cpu": [Threshold(threshold="value<=0.95")],
}
_EVIDENCE_LINES = 8
_EVIDENCE_OF_A_PASS = 3
_BOTTLENECK = {
    "requests": "; the load client or its machine was the bottleneck: lower the rate, share the load among more "
    "`workers.processes`, or run it where cores are free",
    "workloads": "; what the run was to measure rests on it",
}
_NOTHING = {
    "requests": "there was nothing to measure: no sample fell into this window",
    "workloads": "there was nothing to measure: the pods were not watched to the end, or none came so far",
}


def threshold_checks(scenario: Scenario, timeline: Sequence[Event], rec: Record) -> list[Check]:
    """One check per threshold, and of a load whether its client came to its end."""
    finished = next((event for event in timeline if isinstance(event, LoadFinished)), None)
    aborted = next((event for event in timeline if isinstance(event, LoadAborted)), None)
    earlier = {event.selector: event for event in timeline if isinstance(event, BaselineSamples)}
    whole = finished is not None and not finished.aborted
    defaults = _defaults(timeline) if scenario.load else {}
    validity = {**{k: v for k, v in defaults.items() if k not in scenario.validity}, **scenario.validity}
    checks = []
    for is_validity, slo in ((False, scenario.slo), (True, validity)):
        for text, thresholds in slo.items():
            found = [check_threshold(rec, text, each, earlier, validity=is_validity) for each in thresholds]
            of_requests = METRICS[parse_selector(text).metric].of == "requests"
            if of_requests and scenario.load is None:
                continue
            checks += [_cut_short(each, aborted) for each in found] if of_requests and not whole else found
    return [*checks, *([_client_check(finished, aborted, len(rec.requests))] if scenario.load else [])]


def _defaults(timeline: Sequence[Event]) -> Slo:
    """Those of before the client was calibrated in every run are judged without it; else no figure is no pass."""
    started = next((event for event in timeline if isinstance(event, LoadStarted)), None)
    calibrated = started is None or started.asked.get("calibrated", False)
    return {name: slo for name, slo in DEFAULT_VALIDITY.items() if calibrated or name != "client_added"}


def check_threshold(
    rec: Record,
    text: str,
    threshold: Threshold,
    earlier: Mapping[str, BaselineSamples] | None = None,
    *,
    validity: bool = False,
) -> Check:
    """Hold one threshold of the selector `text` against a record; `earlier`: samples of a baseline, by selector."""
    selector = parse_selector(text)
    expression = parse_expression(threshold.threshold, selector.metric)
    if expression.relative:
        return _regression_check(rec, selector, expression, threshold, (earlier or {}).get(str(selector)))
    return _threshold_check(rec, selector, expression, threshold, validity=validity)


def _cut_short(check: Check, aborted: LoadAborted | None) -> Check:
    """A load that did not come to its planned end breaks no promise: its figures are those of another load.

    But for the threshold that ended it: that was broken, and was meant to end it.
    """
    if aborted is not None and check.id == aborted.threshold:
        reason = f"was {aborted.observed} at {aborted.t:.1f} s, and ended the load (abortOnFail)"
        return check.model_copy(update={"status": "fail", "observed": aborted.observed, "reason": reason})
    if check.status != "fail":
        return check
    return check.model_copy(update={"status": "invalid", "reason": f"{check.reason}, in a load that was cut short"})


def _client_check(finished: LoadFinished | None, aborted: LoadAborted | None, recorded: int) -> Check:
    """The load client came to its planned end and wrote down every request it attempted."""
    reason = ""
    if finished is None:
        reason = "the load client crashed or was killed; see load.log beside the timeline"
    elif finished.aborted and aborted is None:
        reason = f"the load was ended early: {finished.aborted}"
    elif finished.attempted != recorded:
        reason = f"it attempted {finished.attempted} requests and the timeline holds {recorded}: evidence is missing"
    return Check(
        id="validity/load-client",
        group="validity",
        title="the load client ran to its end" if aborted is None else "the load client ended when it was told to",
        status="invalid" if reason else "pass",
        observed=f"{recorded} requests in the timeline" if finished else "it never said that it finished",
        expected="load.finished, and every request attempted in the timeline",
        samples=recorded,
        reason=reason,
        evidence=[f"t={finished.t:.2f}s load.finished, {finished.attempted} attempted"] if finished else [],
    )


def _regression_check(
    rec: Record, selector: Selector, expression: Expression, threshold: Threshold, earlier: BaselineSamples | None
) -> Check:
    """This run against an earlier one, with a stated confidence."""
    check = Check(
        id=threshold_id(selector, threshold),
        group="slo",
        title=f"{selector} {threshold.threshold}",
        status="invalid",
        observed="no baseline",
        expected=f"{threshold.threshold}, {threshold.confidence:.0%} confidence",
        reason="there is nothing to hold it against: give an earlier run's folder with --baseline",
    )
    if earlier is None:
        return check
    from sandbox.judge import regression  # noqa: PLC0415 - scipy takes most of a second to import

    now = metrics.samples(rec, selector, expression)
    found = regression.compare(selector.metric, expression, now, earlier.samples, threshold.confidence)
    evidence = [f"baseline: run {earlier.run_id}, {len(earlier.samples)} samples", *(found.evidence if found else [])]
    many = f"{len(now)} samples, and {len(earlier.samples)} of the baseline,"
    if found is None:
        reason = f"{many} are too few to compare: load for longer"
        return check.model_copy(update={"observed": "no data", "samples": len(now), "reason": reason})
    unit = "" if METRICS[selector.metric].kind == "trend" else " points"
    shown = f"{found.change:+.1%}{unit} (between {found.low:+.1%} and {found.high:+.1%})"
    reasons = {
        "pass": "",
        "fail": f"worse than the baseline by more than is allowed: {shown}",
        "invalid": f"{many} cannot tell: {shown}; load for longer, or allow more",
    }
    told = {"status": found.status, "observed": shown, "samples": len(now), "evidence": evidence}
    return check.model_copy(update={**told, "reason": reasons[found.status]})


def threshold_id(selector: Selector, threshold: Threshold, *, validity: bool = False) -> str:
    """What a threshold's check is called."""
    return f"{'validity' if validity else 'slo'}/{selector}/{threshold.threshold.replace(' ', '')}"


def _threshold_check(
    rec: Record, selector: Selector, expression: Expression, threshold: Threshold, *, validity: bool
) -> Check:
    seen = metrics.observe(rec, selector, expression)
    needed = threshold.min_samples or expression.samples_needed
    status: Status = "pass"
    reason = ""
    if seen.value is None:
        status, reason = "invalid", _NOTHING[METRICS[selector.metric].of]
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
            reason += _BOTTLENECK[METRICS[selector.metric].of]
    return Check(
        id=threshold_id(selector, threshold, validity=validity),
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
    if known.of == "workloads":
        return pod_witnesses(rec.pods, selector, most)
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
