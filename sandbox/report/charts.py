"""Latency over time, as inline SVG without script: it prints, opens offline, and takes its colours from the page.

Vega-Lite draws the charts (altair writes the specs, vl-convert renders them in process). Colours are CSS
variables, so that light, dark and print are one file. Static rather than interactive: the bundle that
would make them live is 0.9 MB of script in every report, and needs a page that may run script.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import altair as alt

from sandbox.report import series
from sandbox.report.drawing import (
    CUT,
    Chart,
    bands,
    labels,
    layer,
    legend,
    outcome_colour,
    over_time,
    stretch,
    svg,
    time_axis,
    told_windows,
)
from sandbox.report.series import Load, Thinned
from sandbox.report.text import enough, one_line, plural, seconds
from sandbox.spec.results import Window
from sandbox.spec.slo import OUTCOMES

_LOG_FROM = 20.0  # slowest / fastest beyond which a linear axis would hide the fast ones
_SHAPES = (
    "cross",
    "triangle-up",
    "diamond",
    "square",
    "triangle-down",
    "triangle-left",
    "triangle-right",
    "wedge",
    "circle",
)
_SERIES = {
    "ttft_intended": ("first token", "var(--c-first)", "circle"),
    "e2e": ("whole answer", "var(--c-whole)", "triangle-up"),
    "tpot": ("time per token", "var(--c-per)", "circle"),
}
_TITLES = {"upper": "latency", "lower": "per token"}
_MARGIN = 1.3
_HEIGHT, _BELOW, _FOOT = 280, 120, 8


def latency(found: Load, windows: Sequence[Window]) -> Chart | None:
    """First-token and whole-answer times over the load, with failures and fault windows, above times per token.

    None without requests. A load that does not stream has whole answers alone.
    """
    if not found.requests:
        return None
    thinned = {metric: series.over_time(found, metric) for metric in _SERIES}
    failed, failed_total = series.failures(found)
    upper = [*_named("e2e", thinned["e2e"]), *_named("ttft_intended", thinned["ttft_intended"])]
    lower = _named("tpot", thinned["tpot"])
    layers: list[Any] = [*bands(found, windows)]
    if upper:
        layers.append(_points(upper, "upper", [m for m in ("ttft_intended", "e2e") if thinned[m].points]))
    if failed:
        layers.append(_failures(series.ordered({failure.outcome for failure in failed})))
    layers += labels(found, windows)
    chart = layer(*layers, independent=["color", "shape"])
    drawn = over_time(chart, found, _HEIGHT, x_title=None) if lower else over_time(chart, found, _HEIGHT)
    if lower:
        per_token = layer(*bands(found, windows), _points(lower, "lower", ["tpot"]))
        drawn = {"vconcat": [drawn, over_time(per_token, found, _BELOW)], "spacing": 14}
    rug = [{"x": failure.x, "o": one_line(failure.outcome, CUT)} for failure in failed]
    return Chart(
        title="Latency over time",
        svg=svg(drawn, {"upper": upper, "lower": lower, "rug": rug}),
        says=f"Latency over time. {_told(found, thinned, failed_total)} {told_windows(found, windows)}",
        caption=_caption(thinned, len(failed), failed_total),
        head=[
            "load second",
            "answered",
            "first token p50",
            "slowest",
            "per token p50",
            "slowest",
            "whole p50",
            "failed",
        ],
        rows=_rows(found),
    )


def _named(metric: str, found: Thinned) -> list[dict[str, Any]]:
    return [{"x": point.x, "y": max(point.y, 1e-6), "s": _SERIES[metric][0]} for point in found.points]


def _points(values: list[dict[str, Any]], data: str, metrics: list[str]) -> Any:
    lowest, highest = min(v["y"] for v in values), max(v["y"] for v in values)
    logarithmic = highest / lowest > _LOG_FROM
    lowest, highest = lowest / _MARGIN, highest * _MARGIN  # of a logarithmic axis: failures stand beneath the dots
    names, colours, shapes = (list(part) for part in zip(*(_SERIES[metric] for metric in metrics), strict=True))
    scale = alt.Scale(type="log", nice=False, domain=[lowest, highest]) if logarithmic else alt.Scale(zero=True)
    axis = time_axis(lowest, highest) if logarithmic else time_axis()
    axis.minExtent = axis.maxExtent = 52  # of both panels, so that their seconds stand beneath each other
    title = _TITLES[data] + (", log scale" if logarithmic else "")
    drawn = (
        alt.Chart(alt.NamedData(name=data))
        .mark_point(filled=True, size=16, opacity=0.75, aria=False)
        .encode(x="x:Q", y=alt.Y("y:Q", title=title, scale=scale, axis=axis))
    )
    if data == "lower":  # its axis says what it is
        return drawn.encode(color=alt.value(colours[0]))
    shape = alt.Shape("s:N", title=None).scale(domain=names, range=shapes)
    return drawn.encode(color=legend("s:N", names, colours), shape=shape)


def _failures(names: list[str]) -> Any:
    """A rug along the foot of the plot, for a request without an answer has no height."""
    shapes = [_SHAPES[OUTCOMES.index(name) - 1 if name in OUTCOMES else -1] for name in names]
    shown = [one_line(name, CUT) for name in names]
    return (
        alt.Chart(alt.NamedData(name="rug"))
        .mark_point(size=34, filled=True, aria=False)
        .encode(
            x="x:Q",
            y=alt.value(_HEIGHT - _FOOT),
            color=legend("o:N", shown, [outcome_colour(name) for name in names]),
            shape=alt.Shape("o:N", title=None).scale(domain=shown, range=shapes),
        )
    )


def _told(found: Load, thinned: dict[str, Thinned], failed: int) -> str:
    told = [f"{plural(len(found.requests), 'request')}, {failed:,} failed."]
    for metric, (name, *_) in _SERIES.items():
        if values := [point.y for point in thinned[metric].points]:
            middle = seconds(series.percentile(values, 50))
            told.append(f"{name.capitalize()}: {middle} in the middle, {seconds(max(values))} at worst.")
    return " ".join(told if len(told) > 1 else [*told, "None was answered."])


def _caption(thinned: dict[str, Thinned], drawn: int, failed: int) -> str:
    told = "Each dot is a request, placed at the second it was scheduled to be sent."
    if failed:
        told += " Requests that failed stand along the foot."
    whole = thinned["e2e"]
    if not thinned["ttft_intended"].points and whole.points:
        told += " Nothing was streamed, so there is no first token to time."
    if not whole.complete:
        told += (
            f" Of {whole.total:,} answered requests {len(whole.points):,} are drawn: of every few neighbours "
            "the slowest, the fastest and the median, so no peak is lost."
        )
    if drawn < failed:
        told += f" Of {failed:,} failures {drawn:,} are drawn, evenly."
    return told


def _rows(found: Load) -> list[list[str]]:
    rows = []
    stretches = series.edges(found)
    starts = [bisect.bisect_left(found.requests, found.begun + x, key=lambda r: r.scheduled) for x, _ in stretches]
    ends = [*starts[1:], len(found.requests)]
    for (start, end), begin, stop in zip(stretches, starts, ends, strict=True):
        inside = found.requests[begin:stop]
        first, per, whole = (series.samples(inside, metric) for metric in ("ttft_intended", "tpot", "e2e"))
        slowest = [seconds(max(values, default=None)) for values in (first, per)]
        bad = sum(request.outcome != "ok" for request in inside)
        cells = [_middle(first), slowest[0], _middle(per), slowest[1], _middle(whole)]
        rows.append([stretch(start, end), str(len(inside) - bad), *cells, str(bad)])
    return rows


def _middle(values: list[float]) -> str:
    return seconds(series.percentile(values, 50) if enough(len(values), 50) else None)
