"""The probe that asks Prometheus."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from sandbox.probes import promql
from sandbox.probes.base import PROBES, Context, Seen

STACK = "prometheus"
_NAMED = 5  # samples that a report names
_KEEPS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "equal to": operator.eq,
}


@PROBES.register("prometheus.query")
def holds(
    ctx: Context,
    query: str,
    at_least: float | None = None,
    at_most: float | None = None,
    equals: float | None = None,
) -> Seen:
    """A query to the required stack `prometheus` gives a sample, and every one it gives keeps to the bounds."""
    bounds = {"at least": at_least, "at most": at_most, "equal to": equals}
    samples = promql.query(ctx.urls[STACK], query)
    if not samples:
        return Seen(ok=False, detail=f"no sample: nothing matches {query!r} now")
    wrong = [
        f"{_series(labels)} is {value:g}, not {words} {bound:g}"
        for labels, value in samples
        for words, bound in bounds.items()
        if bound is not None and not _KEEPS[words](value, bound)  # not: a NaN keeps to nothing
    ]
    values = [value for _, value in samples]
    many = f"{len(values)} samples of {query!r}" if len(values) > 1 else repr(query)
    span = f"{min(values):g}" + (f" to {max(values):g}" if min(values) != max(values) else "")
    return Seen(
        ok=not wrong,
        detail=f"{query!r}: {'; '.join(wrong[:_NAMED])}" if wrong else f"{many}: {span}",
        evidence={"samples": [{"labels": labels, "value": repr(value)} for labels, value in samples[:_NAMED]]},
    )


def _series(labels: Mapping[str, str]) -> str:
    """A series as Prometheus writes it."""
    inner = ", ".join(f'{name}="{value}"' for name, value in labels.items() if name != "__name__")
    return f"{labels.get('__name__', '')}{{{inner}}}" if labels else "it"
