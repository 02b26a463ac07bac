"""What a reader of a threshold's check wants to see first, and how a figure is written."""

from __future__ import annotations

import math

import numpy as np

from sandbox import metrics
from sandbox.judge.workloads import witnesses as pod_witnesses
from sandbox.metrics import Mask, Observed, Record
from sandbox.spec.slo import METRICS, Expression, Number, Selector
from sandbox.timeline import ClientBeat


def witnesses(rec: Record, selector: Selector, most: int) -> list[str]:
    """The worst `most` lines behind a figure.

    Of a latency the highest; of counts and shares the requests that were not good, then the slowest; of the load
    client its worst seconds. Nothing where the record keeps no requests.
    """
    known = METRICS[selector.metric]
    if known.of == "workloads":
        return pod_witnesses(rec.pods, selector, most)
    if selector.metric.startswith("client_"):
        return _seconds(rec, selector.metric, most)
    if known.kind == "value" or not rec.requests:  # not of single requests
        return []
    chosen, table = metrics.select(rec, selector), rec.table
    good = table.good(rec.limits)
    if known.kind == "trend":
        figures = table.greatest(selector.metric)
        rows = np.flatnonzero(chosen & ~np.isnan(figures))
        order = rows[np.argsort(-figures[rows], kind="stable")]
    else:
        rows = np.flatnonzero(chosen)
        took = (table.time("t") - table.time("scheduled"))[rows]
        order = rows[np.lexsort((-took, table.ended("ok")[rows], good[rows]))]
    return [*_tally(rec, chosen, good), *(_told(rec, int(row), selector.metric) for row in order[:most])]


def _tally(rec: Record, chosen: Mask, good: Mask) -> list[str]:
    """How many were not good, and why, in one line; nothing where all were."""
    late = int((chosen & rec.table.ended("ok") & ~good).sum())
    counts = {name: count for name, count in rec.table.outcomes(chosen).items() if name != "ok"}
    words = [f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])]
    words += [f"{late} ok but beyond a limit of `good`"] if late else []
    return [f"of {int(chosen.sum())} requests: {', '.join(words)}"] if words else []


def _told(rec: Record, row: int, metric: str) -> str:
    request, limits = rec.requests[row], rec.limits
    answered = request.outcome == "ok"
    broken = [name for name, limit in limits.items() if answered and not rec.table.within(name, limit)[row]]
    words = [
        f"t={request.t:.2f}s {request.outcome}{f' {request.status}' if request.status else ''}",
        f"scheduled={request.scheduled:.2f}s took={request.t - request.scheduled:.3f}s",
        *([f"{metric}={rec.table.greatest(metric)[row]:.3f}s"] if METRICS[metric].kind == "trend" else []),
        *(f"{name} beyond {limits[name]:g} s" for name in broken),
        request.detail,
    ]
    return " ".join(filter(None, words))


def _seconds(rec: Record, metric: str, most: int) -> list[str]:
    """The load client's worst seconds, with the process where there are several."""

    def figure(beat: ClientBeat) -> float:
        return {"client_cpu": beat.cpu, "client_lag": max(beat.lag, default=0.0)}.get(
            metric, max(beat.added, default=0.0)
        )

    return [
        f"t={beat.t:.2f}s {f'process {beat.worker} ' if beat.worker else ''}"
        f"lag={max(beat.lag, default=0.0) * 1e3:.1f}ms "
        f"{f'added={max(beat.added) * 1e3:.1f}ms ' if beat.added else ''}"
        f"cpu={beat.cpu:.0%} in_flight={beat.in_flight}"
        for beat in sorted(rec.beats, key=figure, reverse=True)[:most]
    ]


def shown(value: Number, metric: str, expression: Expression) -> str:
    """A figure with its unit, as a person reads it."""
    known = METRICS[metric]
    if math.isinf(value):
        return "never" if metric == "time_to_recover" else "unlimited"
    if known.unit == "s" and expression.aggregation != "count":
        return f"{float(value) * 1000:.1f} ms" if value < 1 else f"{float(value):.2f} s"
    if known.kind == "rate" or expression.aggregation == "rate":
        text = f"{float(value):.2%}"
        return f"{float(value):.5%}" if text == "100.00%" and value < 1 else text
    return f"{float(value):g}{' ' + known.unit if known.unit else ''}"


def between(seen: Observed, metric: str, expression: Expression) -> str:
    """A figure with what it can be in truth, where that is more than one: `140.2 ms (112.0 ms to 140.2 ms)`."""
    low, high = (shown(each, metric, expression) for each in (seen.low, seen.high))
    told = "no data" if seen.value is None else shown(seen.value, metric, expression)
    known = seen.low == seen.high or low == high == told or (seen.value is not None and math.isinf(seen.value))
    return told if known else f"{told} ({low} to {high})"
