"""Thresholds that hold a run against an earlier one: `ttft: ["p(50)<=baseline+10%"]`."""

from __future__ import annotations

from sandbox import metrics
from sandbox.metrics import Record
from sandbox.spec.slo import METRICS, Expression, Selector, Threshold
from sandbox.timeline import BaselineSamples

_FEWEST = 20


def samples_needed(threshold: Threshold, expression: Expression) -> int:
    """How many samples each of the two runs needs. Of fewer, an interval says nothing either."""
    return threshold.min_samples or max(_FEWEST, expression.samples_needed)


def against(
    rec: Record,
    selector: Selector,
    expression: Expression,
    threshold: Threshold,
    earlier: BaselineSamples | None,
) -> dict[str, object]:
    """Return what a check says of it: what two runs' samples prove, at the confidence that the threshold states."""
    told: dict[str, object] = {"expected": f"{threshold.threshold}, at {threshold.confidence:.1%} confidence"}
    if earlier is None:
        reason = "there is nothing to hold it against: give an earlier run's folder with --baseline"
        return {**told, "observed": "no baseline", "reason": reason}
    from sandbox.judge import regression  # noqa: PLC0415 - scipy takes most of a second to import

    now, before = metrics.samples(rec, selector, expression), _samples(earlier)
    evidence = [f"baseline: run {earlier.run_id} ({earlier.source}), {len(earlier.samples)} samples"]
    many_now = min(len(now.measured), len(now.low), len(now.high))
    told |= {"samples": many_now, "evidence": evidence}
    many = f"{many_now} samples, and {len(earlier.samples)} of the baseline"
    needed = samples_needed(threshold, expression)
    if min(many_now, len(earlier.samples)) < needed:
        hint = "load for longer, or ask for a lower percentile"
        reason = f"{many}, say nothing about {expression.aggregation} (each needs {needed}); {hint}"
        return {**told, "reason": reason}
    found = regression.between(selector.metric, expression, now, before, threshold.confidence)
    if found is None:
        reason = "the baseline's figure is 0, and nothing is a share of it; give a bound in figures"
        return {**told, "reason": reason}
    unit = "" if METRICS[selector.metric].kind == "trend" else " points"
    figure = f"{found.change:+.1%}{unit} (between {found.low:+.1%} and {found.high:+.1%})"
    reasons = {
        "pass": "",
        "fail": f"against the baseline it is off by more than is allowed: {figure}",
        "invalid": f"{many}, cannot tell: {figure}; load for longer, or allow more",
    }
    told |= {"observed": figure, "evidence": [*evidence, *found.evidence], "status": found.status}
    return {**told, "reason": reasons[found.status]}


def _samples(earlier: BaselineSamples) -> metrics.Samples:
    """Those of the earlier run; of an older timeline they are what was measured."""
    if not earlier.low or not earlier.high:
        return metrics.Samples.exactly(earlier.samples)
    return metrics.Samples(earlier.samples, earlier.low, earlier.high)
