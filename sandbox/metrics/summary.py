"""The figures of a load for people and programs: of all of it, of each phase, and of each part of a mixed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sandbox.metrics import Record, good_fraction, phase_of, rate, span, trend
from sandbox.spec.results import Summary
from sandbox.timeline import Request

_TRENDS = ("ttft", "ttft_intended", "tpot", "ntpot", "icl", "e2e", "sched_lag")
_TAGS = ("tenant", "model", "profile")


def summarise(rec: Record) -> list[Summary]:
    """Figures of the whole load, of each phase, and of each tenant, model and profile where there are several."""
    if rec.load_started is None:
        return []
    windows = rec.windows
    names = [window.name for window in windows if window.kind == "phase"]
    phases = {name: [each for each in rec.requests if phase_of(each, windows) == name] for name in names}
    found = [_summary(rec, name, requests) for name, requests in [("all", rec.requests), *phases.items()]]
    for tag in _TAGS:
        values = sorted({each.tags[tag] for each in rec.requests if tag in each.tags})
        for value in values if len(values) > 1 else ():
            inside = [each for each in rec.requests if each.tags.get(tag) == value]
            found.append(_summary(rec, "all", inside, {tag: value}))
    return found


def _summary(rec: Record, phase: str, requests: Sequence[Request], tags: dict[str, str] | None = None) -> Summary:
    seconds = span(rec, None if phase == "all" else phase)
    return Summary(
        phase=phase,
        tags=tags or {},
        requests=len(requests),
        outcomes=dict(Counter(request.outcome for request in requests)),
        good_fraction=good_fraction(requests, rec.limits),
        request_rate=rate(requests, "request_rate", seconds),
        token_rate=rate(requests, "token_rate", seconds),
        percentiles={metric: _figures(trend(requests, metric)) for metric in _TRENDS},
    )


def _figures(values: Sequence[float]) -> dict[str, float | None]:
    figures: dict[str, float | None] = {"count": float(len(values))}
    if not values:
        return figures | dict.fromkeys(("max", "min", "mean", "std", "p50", "p90", "p95", "p99"))
    taken = np.asarray(values)
    figures |= {"max": float(taken.max()), "min": float(taken.min()), "mean": float(taken.mean())}
    figures["std"] = float(taken.std())
    percents = (50, 90, 95, 99)
    return figures | {f"p{n}": float(v) for n, v in zip(percents, np.percentile(taken, percents), strict=True)}
