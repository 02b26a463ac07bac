"""Thresholds: SLOs and what makes a measurement valid, each against the figures of the whole record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sandbox import metrics
from sandbox.judge.against import against
from sandbox.judge.offered import offered_checks
from sandbox.judge.validity import shown_as_loosened, validity_of
from sandbox.judge.witnesses import between, shown, witnesses
from sandbox.metrics import Observed, Record
from sandbox.spec.results import Check, Status
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import METRICS, Expression, Number, Selector, Threshold, parse_expression, parse_selector
from sandbox.timeline import BaselineSamples, Event, LoadAborted, LoadFinished

_EVIDENCE_LINES = 8
_EVIDENCE_OF_A_PASS = 3
_LIGHTER = "lower the rate, share the load among more `workers.processes`, or run it where cores are free"
# Where one of these is broken, whatever requests seem to show may be the client's doing.
_OF_THE_CLIENT = {
    "client_lag": f"the load client or its machine was the bottleneck: {_LIGHTER}",
    "client_added": f"the load client made tokens of known send time look so much later, and yours too: {_LIGHTER}",
    "sched_lag": f"the load client did not begin requests when they were due: {_LIGHTER}",
    "client_cpu": "a load process had no processor time to spare: share the load among more `workers.processes`, "
    "or lower the rate",
}
_OTHER_REMEDY = "what the run was to measure rests on it"
_NOTHING = {
    "requests": "there was nothing to measure: no sample fell into this window",
    "workloads": "there was nothing to measure: the pods were not watched to the end, or none came so far",
}
_NO_CLIENT = "the load client wrote nothing of itself; see load.log beside the timeline"


def threshold_checks(scenario: Scenario, timeline: Sequence[Event], rec: Record) -> list[Check]:
    """One check per threshold, and of a load whether its client came to its end."""
    finished = next((event for event in timeline if isinstance(event, LoadFinished)), None)
    aborted = next((event for event in timeline if isinstance(event, LoadAborted)), None)
    earlier = {event.selector: event for event in timeline if isinstance(event, BaselineSamples)}
    whole = finished is not None and not finished.aborted
    validity = validity_of(scenario, timeline, rec)
    checks: dict[bool, list[Check]] = {False: [], True: []}
    offered = offered_checks(scenario, timeline, rec)
    unfit = [f"{each.title}: {each.observed}" for each in offered if each.status != "pass"]
    for is_validity, slo in ((True, validity), (False, scenario.slo)):
        for text, thresholds in slo.items():
            metric = parse_selector(text).metric
            of_requests = METRICS[metric].of == "requests"
            if of_requests and scenario.load is None:
                continue
            found = [check_threshold(rec, text, each, earlier) for each in thresholds]
            if is_validity:
                unfit += [
                    f"{each.title}: {each.observed}"
                    for each in found
                    if each.status == "fail" and metric in _OF_THE_CLIENT
                ]
                found = [as_validity(each, metric) for each in found]
                found = [shown_as_loosened(each, text, scenario) for each in found]
            if of_requests:
                found = [_as_it_ended(each, aborted, whole=whole) for each in found]
                found = [_as_the_client_was(each, unfit) for each in found]
            checks[is_validity] += found
    of_the_load = [*offered, _client_check(finished, aborted, len(rec.table))] if scenario.load else []
    return [*checks[False], *checks[True], *of_the_load]


def check_threshold(
    rec: Record,
    text: str,
    threshold: Threshold,
    earlier: Mapping[str, BaselineSamples] | None = None,
) -> Check:
    """Hold one threshold of the selector `text` against a record; `earlier`: samples of a baseline, by selector."""
    selector = parse_selector(text)
    expression = parse_expression(threshold.threshold, selector.metric)
    if expression.relative:
        told = against(rec, selector, expression, threshold, (earlier or {}).get(str(selector)))
    else:
        told = _held(rec, selector, expression, threshold)
    return Check(
        id=f"slo/{selector}/{threshold.threshold.replace(' ', '')}",
        group="slo",
        title=f"{selector} {threshold.threshold}",
        status="invalid",
        observed="no data",
        expected=threshold.threshold,
    ).model_copy(update=told)


def _held(rec: Record, selector: Selector, expression: Expression, threshold: Threshold) -> dict[str, object]:
    """Return what a check says of it: this run's own figure, and whether all that it can be in truth holds."""
    seen = metrics.observe(rec, selector, expression)
    status, reason = _decided(rec, selector, expression, threshold, seen)
    most = _EVIDENCE_OF_A_PASS if status == "pass" else _EVIDENCE_LINES
    return {
        "status": status,
        "observed": between(seen, selector.metric, expression) if _is_there(seen) else "no data",
        "low": _finite(seen.low),
        "high": _finite(seen.high),
        "samples": seen.samples,
        "reason": reason,
        "evidence": witnesses(rec, selector, most),
    }


def _is_there(seen: Observed) -> bool:
    """There is a figure, or at least something that it cannot be."""
    return seen.value is not None or seen.low > 0


def _finite(value: Number) -> float | None:
    return float(value) if math.isfinite(value) else None


def _decided(
    rec: Record, selector: Selector, expression: Expression, threshold: Threshold, seen: Observed
) -> tuple[Status, str]:
    """The status of a figure, and why it is not `pass`."""
    needed = threshold.min_samples or expression.samples_needed
    if not _is_there(seen):
        missing = _NO_CLIENT if selector.metric.startswith("client_") else _NOTHING[METRICS[selector.metric].of]
        return "invalid", seen.why or missing
    if seen.samples < needed:
        few = f"{seen.samples} samples say nothing about {expression.aggregation} (needs {needed})"
        more = f"; {seen.why}" if seen.why else ""
        return "invalid", f"{few}; load for longer, ask for a lower percentile, or set minSamples{more}"
    holds = expression.decided(seen.low, seen.high)
    if holds:
        return "pass", ""
    if holds is None:
        return "invalid", _cannot_tell(selector.metric, expression, threshold, seen)
    figure = (
        f"{expression.aggregation} is {between(seen, selector.metric, expression)}, asked for {threshold.threshold}"
    )
    of_requests = METRICS[selector.metric].of == "requests"
    others = (
        f"; all but the load client used {rec.machine:.0%} of the machine"
        if of_requests and rec.machine is not None
        else ""
    )
    if seen.low == seen.high:
        return "fail", f"{figure}{others}"
    end = "most" if expression.operator in {">=", ">"} else "least"
    bound = shown(seen.high if end == "most" else seen.low, selector.metric, expression)
    late = f" even if the client read late{others}" if of_requests else f"; {seen.why}"
    return "fail", f"{figure}: at the {end} it is {bound}{late}"


def _cannot_tell(metric: str, expression: Expression, threshold: Threshold, seen: Observed) -> str:
    """By how much it could not be told."""
    low, high, bound = (shown(each, metric, expression) for each in (seen.low, seen.high, expression.exact))
    lies = f"in truth {expression.aggregation} lies between {low} and {high}"
    if math.isinf(seen.high):
        told = f"{lies}, and {bound} lies in it"
        if metric == "time_to_recover" and not seen.why:
            told += ": users were not seen to be answered again; load for longer, or strike earlier"
    else:
        width, inside = (
            shown(each, metric, expression) for each in (seen.high - seen.low, abs(expression.bound - seen.low))
        )
        told = f"{lies}, {width} apart, and the limit {bound} lies {inside} above the least of it"
    why = seen.why or (
        "" if math.isinf(seen.high) else "the load client may have read so late; give it more of the machine"
    )
    return f"cannot tell whether {threshold.threshold} holds: {told}{f'; {why}' if why else ''}"


def as_validity(check: Check, metric: str) -> Check:
    """A breach is no failure of what was tested: it makes the measurement worthless. Say what to change."""
    told: dict[str, object] = {"id": f"validity/{check.id.removeprefix('slo/')}", "group": "validity"}
    if check.status == "fail":
        remedy = _OF_THE_CLIENT.get(metric, _OTHER_REMEDY)
        told |= {"status": "invalid", "reason": f"{check.reason}; {remedy}"}
    return check.model_copy(update=told)


def _as_it_ended(check: Check, aborted: LoadAborted | None, *, whole: bool) -> Check:
    """A load that did not come to its planned end breaks no promise: its figures are those of another load.

    But for the threshold that ended it: that was broken, and was meant to end it.
    """
    if aborted is not None and check.id == aborted.threshold:
        moment = f"t={aborted.t:.2f}s load.aborted: {aborted.observed}"
        return check.model_copy(
            update={
                "status": "fail" if check.group == "slo" else "invalid",
                "observed": aborted.observed,
                "reason": f"was {aborted.observed} at {aborted.t:.1f} s, and ended the load (abortOnFail)",
                "evidence": [moment, *check.evidence],
            }
        )
    if whole or check.status != "fail":
        return check
    return check.model_copy(update={"status": "invalid", "reason": f"{check.reason}, in a load that was cut short"})


def _as_the_client_was(check: Check, unfit: Sequence[str]) -> Check:
    """What a client that was itself the bottleneck saw breaks no promise of the server's."""
    if check.status != "fail" or not unfit:
        return check
    reason = f"{check.reason}, seen by a load client that was itself too slow to tell ({'; '.join(unfit)})"
    return check.model_copy(update={"status": "invalid", "reason": reason})


def _client_check(finished: LoadFinished | None, aborted: LoadAborted | None, recorded: int) -> Check:
    """The load client came to its end, planned or asked for, and wrote down every request it attempted."""
    reason = ""
    if finished is None:
        reason = "the load client crashed or was killed; see load.log beside the timeline"
    elif finished.aborted and aborted is None:
        reason = f"the load was ended early: {finished.aborted}"
    elif finished.attempted != recorded:
        reason = f"it attempted {finished.attempted} requests and the timeline holds {recorded}: evidence is missing"
    observed = f"{recorded} requests in the timeline" if finished else "it never said that it finished"
    evidence = [f"t={aborted.t:.2f}s load.aborted by {aborted.threshold}"] if aborted else []
    evidence += [f"t={finished.t:.2f}s load.finished, {finished.attempted} attempted"] if finished else []
    return Check(
        id="validity/load-client",
        group="validity",
        title="the load client ran to its end" if aborted is None else "the load client ended when a threshold did so",
        status="invalid" if reason else "pass",
        observed=f"{observed}, ended by {aborted.threshold}" if aborted else observed,
        expected="load.finished, and every request attempted in the timeline",
        samples=recorded,
        reason=reason,
        evidence=evidence,
    )
