"""The figures of a load for people and programs: of all of it, of each phase, and of each part of a mixed one."""

from __future__ import annotations

import numpy as np

from sandbox.metrics import Record, rate, span
from sandbox.metrics.table import REQUEST_TAGS, Floats, Mask, Table
from sandbox.spec.results import Summary

_TRENDS = ("ttft", "ttft_intended", "tpot", "ntpot", "icl", "e2e", "sched_lag")
_PERCENTS = (50, 90, 95, 99)
_MOST_VALUES = 20  # of one tag: a locustfile may name every request differently


def summarise(rec: Record) -> list[Summary]:
    """Figures of the whole load, of each phase, and of each tenant, model and profile where there are several.

    Those of a tag are told phase by phase too where there are several phases; of a tag with more than twenty values
    the twenty of most requests.
    """
    if rec.load_started is None:
        return []
    windows = rec.windows
    everything = np.ones(len(rec.table), dtype=bool)
    names = [window.name for window in windows if window.kind == "phase"]
    phases = {"all": everything, **{name: rec.table.in_phase(name, windows) for name in names}}
    found = [_summary(rec, name, chosen, {}) for name, chosen in phases.items()]
    told = phases if len(names) > 1 else {"all": everything}
    for tag in REQUEST_TAGS:
        values = rec.table.values(tag)
        for value in sorted(values[:_MOST_VALUES]) if len(values) > 1 else ():
            inside = rec.table.tagged({tag: value})
            found += [_summary(rec, name, chosen & inside, {tag: value}) for name, chosen in told.items()]
    return found


def _summary(rec: Record, phase: str, chosen: Mask, tags: dict[str, str]) -> Summary:
    seconds = span(rec, None if phase == "all" else phase)
    table, many = rec.table, int(chosen.sum())
    answered = chosen & table.ended("ok")
    return Summary(
        phase=phase,
        tags=tags,
        requests=many,
        outcomes=table.outcomes(chosen),
        good_fraction=float(table.good(rec.limits)[chosen].mean()) if many else None,
        request_rate=rate(table, chosen, "request_rate", seconds),
        token_rate=rate(table, chosen, "token_rate", seconds),
        tokens_in=_prompts(table, answered),
        tokens_out=int(table.tokens[answered].sum()),
        percentiles={metric: _figures(table.samples(metric, chosen)) for metric in _TRENDS},
    )


def _prompts(table: Table, answered: Mask) -> int | None:
    """Tokens of the prompts that were answered; None where the server did not say it of all: a part is no sum."""
    told = table.prompt_tokens[answered]
    return int(told.sum()) if len(told) and (told >= 0).all() else None


def _figures(values: Floats) -> dict[str, float | None]:
    figures: dict[str, float | None] = {"count": float(len(values))}
    if not len(values):
        return figures | dict.fromkeys(("max", "min", "mean", "std", *(f"p{n}" for n in _PERCENTS)))
    figures |= {"max": float(values.max()), "min": float(values.min())}
    figures |= {"mean": float(values.mean()), "std": float(values.std())}
    return figures | {f"p{n}": float(v) for n, v in zip(_PERCENTS, np.percentile(values, _PERCENTS), strict=True)}
