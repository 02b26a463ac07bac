"""What every load has to prove of its own client, and how a scenario loosens that in the open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.spec.base import Mistakes, reach
from sandbox.spec.document import Problems
from sandbox.spec.slo import Expression, Threshold, parse_expression

# Held where the load client does not say how late each reading may be: that of a locustfile of one's own. `validity`
# adds to it, `loosen` puts a weaker bound in place of one of these.
DEFAULT_VALIDITY: dict[str, Threshold] = {
    "client_lag": Threshold(threshold="p(99)<=10ms"),
    "client_added": Threshold(threshold="p(99)<=5ms"),
    "sched_lag": Threshold(threshold="p(99)<=50ms", min_samples=1),
    "client_cpu": Threshold(threshold="value<=0.95"),
}


def loosened(metric: str, loosen: Mapping[str, Threshold]) -> Threshold:
    """The default of `metric`, or what stands in its place; it needs as many samples, unless it says how many."""
    default, own = DEFAULT_VALIDITY[metric], loosen.get(metric)
    if own is None:
        return default
    return own if own.min_samples else own.model_copy(update={"min_samples": default.min_samples})


def check_loosen(loosen: dict[str, Threshold]) -> dict[str, Threshold]:
    """Refuse what loosens nothing, or what nothing is known of, all at once."""
    found: Problems = []
    for name, threshold in loosen.items():
        default = DEFAULT_VALIDITY.get(name)
        if default is None:
            known = ", ".join(DEFAULT_VALIDITY)
            found.append(
                ((name,), f"there is no default of {name!r} to loosen; there are: {known}, each without a tag")
            )
            continue
        try:
            own = parse_expression(threshold.threshold, name)
        except ValueError as error:
            found.append(((name,), str(error)))
            continue
        if threshold.abort_on_fail:
            found.append(((name, "abortOnFail"), "a default ends no load; write one that does under `validity`"))
        if _same(own, threshold, default, name):
            found.append(((name,), f"is the default, {default.threshold}; leave it out"))
        elif not _weaker(own, parse_expression(default.threshold, name)):
            words = f"loosens nothing of the default, {default.threshold}: write a higher bound or a lower percentile"
            found.append(((name,), f"{threshold.threshold} {words}; a stricter one belongs under `validity`"))
    if found:
        raise Mistakes(found)
    return loosen


def needless(raw: Any) -> Problems:
    """Entries of `loosen` where no default holds, for the client says itself how late each reading may be."""
    loosen = raw.get("loosen")
    if not isinstance(loosen, dict) or reach(raw, "load", "locustfile"):
        return []
    words = (
        "no default holds for a load of profiles: each figure is judged by how late its reading may be; leave it out"
    )
    return [(("loosen", name), words) for name in loosen]


def _same(own: Expression, threshold: Threshold, default: Threshold, metric: str) -> bool:
    return own == parse_expression(default.threshold, metric) and threshold.min_samples in {None, default.min_samples}


def _weaker(own: Expression, default: Expression) -> bool:
    """Whether whatever keeps to the default keeps to `own` too."""
    if own.relative or own.operator != default.operator or own.bound < default.bound:
        return False
    if own.quantile is None or default.quantile is None:
        return own.aggregation == default.aggregation
    return own.quantile <= default.quantile
