"""The charts, as inline SVG without script: they print, open offline, and take their colours from the page.

Vega-Lite draws them (altair writes the specs, vl-convert renders them in process). Colours are CSS
variables, so that light, dark and print are one file. Static rather than interactive: the bundle that
would make them live is 0.9 MB of script in every report, and needs a page that may run script.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from sandbox.report import series
from sandbox.report.drawing import (
    DASHES,
    WIDTH,
    bands,
    between,
    labels,
    legend,
    outcome_colour,
    over_time,
    phase_colour,
    rate_axis,
    svg,
    time_axis,
)
from sandbox.report.series import Load, Thinned
from sandbox.report.text import one_line, plain, plural, rate, seconds, share
from sandbox.spec.results import Window
from sandbox.spec.slo import OUTCOMES

_LOG_FROM = 20.0  # slowest / fastest beyond which a linear axis would hide the fast ones
_SHAPES = ("cross", "triangle-up", "diamond", "square", "triangle-down", "triangle-left", "triangle-right", "circle")


@dataclass(frozen=True)
class Chart:
    """One drawn chart.

    Attributes:
        title: what it shows.
        svg: an `<svg>` element, safe to inline.
        says: the figures in words, for those who do not see the picture.
        caption: how to read it, and what was left out.
        head, rows: the same as a table.
    """

    title: str
    svg: str
    says: str
    caption: str
    head: list[str]
    rows: list[list[str]]


def latency(found: Load, windows: Sequence[Window]) -> Chart | None:
    """First-token and whole-answer times over the load, with failures and fault windows; None without requests."""
    if not found.requests:
        return None
    first, whole = series.first_tokens(found), series.whole_answers(found)
    failed, failed_total = series.failures(found)
    values: list[dict[str, Any]] = [{"x": p.x, "y": max(p.y, 1e-6), "s": "whole answer"} for p in whole.points]
    values += [{"x": p.x, "y": max(p.y, 1e-6), "s": "first token"} for p in first.points]
    layers: list[Any] = [*bands(found, windows)]
    if values:
        layers.append(_points(values))
    rug = [{"x": failure.x, "o": one_line(failure.outcome, 40)} for failure in failed]
    if failed:
        layers.append(_failures(series.ordered({failure.outcome for failure in failed})))
    layers += labels(found, windows)
    chart = over_time(alt.layer(*layers).resolve_scale(color="independent", shape="independent"), found, 300)
    return Chart(
        title="Latency over time",
        svg=svg(chart, {"points": values, "rug": rug}),
        says=f"Latency over time. {_told(found, first, failed_total)} {_told_windows(found, windows)}",
        caption=_caption(first, len(failed), failed_total),
        head=["load second", "answered", "first token p50", "p99", "slowest", "failed"],
        rows=_latency_rows(found),
    )


def throughput(found: Load, windows: Sequence[Window]) -> Chart | None:
    """Requests per second by outcome above tokens per second; None where the load has no length."""
    made = series.bins(found)
    if not made:
        return None
    outcomes = series.ordered({outcome for part in made for outcome in part.requests})
    height, below = 190, 110
    peak = max(sum(part.requests.values()) for part in made)
    bars = alt.layer(*bands(found, windows), _bars(outcomes, peak), *labels(found, windows))
    line = alt.layer(*bands(found, windows), _tokens())
    upper, lower = over_time(bars, found, height, x_title=None), over_time(line, found, below)
    steps = [{"x": part.start, "y": part.tokens} for part in made] + [{"x": made[-1].end, "y": made[-1].tokens}]
    chart = alt.vconcat(upper, lower, spacing=14)
    width = made[0].end - made[0].start
    counts = {name: sum(request.outcome == name for request in found.requests) for name in outcomes}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return Chart(
        title="Throughput over time",
        svg=svg(chart, {"bars": _stacked(made), "tokens": steps}),
        says=f"Throughput over time. Requests ended: {told}. Busiest: {rate(peak)} requests a second; "
        f"tokens at most {rate(max(part.tokens for part in made))} a second. {_told_windows(found, windows)}",
        caption=f"Requests count when they end; tokens when they arrive. One bar is {seconds(width)}.",
        head=["load second", *outcomes, "tokens/s"],
        rows=[
            [_stretch(p.start, p.end), *(rate(p.requests.get(name, 0.0)) for name in outcomes), rate(p.tokens)]
            for p in made
        ],
    )


def distribution(found: Load, windows: Sequence[Window]) -> Chart | None:
    """First-token times per phase as cumulative shares; None without an answered request."""
    curves = series.distribution(found, windows)
    if not curves:
        return None
    names = list(curves)
    values = [
        {"x": point.x, "y": point.y, "s": one_line(name, 40)} for name, curve in curves.items() for point in curve
    ]
    low = min(point.x for curve in curves.values() for point in curve) / 1.1
    high = max(point.x for curve in curves.values() for point in curve) * 1.1
    dashes = [DASHES.get(name, [1, 0]) for name in names]
    shown = [one_line(name, 40) for name in names]
    chart = (
        alt.Chart(alt.NamedData(name="curves"))
        .mark_line(interpolate="step-after", strokeWidth=2, aria=False)
        .encode(
            x=alt.X("x:Q", title="time to first token, from the scheduled send", axis=time_axis(low, high)).scale(
                type="log", nice=False, domain=[low, high]
            ),
            y=alt.Y("y:Q", title="share of attempted requests", axis=alt.Axis(format="%", tickCount=5)).scale(
                domain=[0, 1]
            ),
            color=legend("s:N", shown, [phase_colour(name) for name in names]),
            strokeDash=alt.StrokeDash("s:N", title=None).scale(domain=shown, range=dashes),
        )
        .properties(width=WIDTH, height=220)
    )
    told = [f"{name}: {_reached(curve)}" for name, curve in curves.items()]
    return Chart(
        title="Latency distribution by phase",
        svg=svg(chart, {"curves": values}),
        says="Share of attempted requests that had their first token in time, by phase. " + "; ".join(told) + ".",
        caption="The steeper and the further left, the better. Failed requests count as attempted: "
        "a curve that ends below 100 % lost the rest.",
        head=["phase", "half within", "90 % within", "99 % within", "answered"],
        rows=[
            [name, *(_within(curve, q) for q in (0.5, 0.9, 0.99)), share(curve[-1].y)] for name, curve in curves.items()
        ],
    )


def _points(values: list[dict[str, Any]]) -> Any:
    lowest, highest = min(v["y"] for v in values), max(v["y"] for v in values)
    logarithmic = highest / lowest > _LOG_FROM
    names = ["first token", "whole answer"]
    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=True)
    axis = time_axis(lowest, highest) if logarithmic else time_axis()
    return (
        alt.Chart(alt.NamedData(name="points"))
        .mark_point(filled=True, size=16, opacity=0.75, aria=False)
        .encode(
            x="x:Q",
            y=alt.Y("y:Q", title="log scale" if logarithmic else None, scale=scale, axis=axis),
            color=legend("s:N", names, ["var(--c-first)", "var(--c-whole)"]),
            shape=alt.Shape("s:N", title=None).scale(domain=names, range=["circle", "triangle-up"]),
        )
    )


def _failures(names: list[str]) -> Any:
    """A rug along the foot of the plot, for a request without an answer has no height."""
    shapes = [_SHAPES[OUTCOMES.index(name) - 1 if name in OUTCOMES else -1] for name in names]
    shown = [one_line(name, 40) for name in names]
    return (
        alt.Chart(alt.NamedData(name="rug"))
        .mark_point(size=34, filled=True, aria=False)
        .encode(
            x="x:Q",
            y=alt.value(292),
            color=legend("o:N", shown, [outcome_colour(name) for name in names]),
            shape=alt.Shape("o:N", title=None).scale(domain=shown, range=shapes),
        )
    )


def _stacked(made: list[series.Bin]) -> list[dict[str, Any]]:
    values = []
    for part in made:
        foot = 0.0
        for name, value in part.requests.items():
            values.append({"x": part.start, "x2": part.end, "y": foot, "y2": foot + value, "o": one_line(name, 40)})
            foot += value
    return values


def _bars(outcomes: list[str], peak: float) -> Any:
    return (
        alt.Chart(alt.NamedData(name="bars"))
        .mark_rect(aria=False, stroke="var(--paper)", strokeWidth=0.75)
        .encode(
            x="x:Q",
            x2="x2:Q",
            y=alt.Y("y:Q", title="requests / s", axis=rate_axis(4)).scale(domain=[0, peak * 1.2]),
            y2="y2:Q",
            color=legend("o:N", [one_line(name, 40) for name in outcomes], [outcome_colour(name) for name in outcomes]),
        )
    )


def _tokens() -> Any:
    return (
        alt.Chart(alt.NamedData(name="tokens"))
        .mark_area(
            interpolate="step-after",
            aria=False,
            color="var(--c-tokens)",
            opacity=0.25,
            line={"color": "var(--c-tokens)"},
        )
        .encode(x="x:Q", y=alt.Y("y:Q", title="tokens / s", axis=rate_axis(3)))
    )


def _told(found: Load, first: Thinned, failed: int) -> str:
    values = [p.y for p in first.points]
    times = (
        f"First token after {seconds(series.percentile(values, 50))} in the middle, {seconds(max(values))} at worst."
        if values
        else "None was answered."
    )
    return f"{plural(len(found.requests), 'request')}, {failed:,} failed. {times}"


def _told_windows(found: Load, windows: Sequence[Window]) -> str:
    faults = [f"{plain(w.name)} from {between(found, w)}" for w in windows if w.kind == "fault"]
    return f"Fault windows: {', '.join(faults)}." if faults else "No fault window."


def _caption(first: Thinned, drawn: int, failed: int) -> str:
    told = "Each dot is a request, placed at the second it was scheduled to be sent."
    if failed:
        told += " Requests that failed stand along the foot."
    if not first.complete:
        told += (
            f" Of {first.total:,} answered requests {len(first.points):,} are drawn: of every few neighbours "
            "the slowest, the fastest and the median, so no peak is lost."
        )
    if drawn < failed:
        told += f" Of {failed:,} failures {drawn:,} are drawn, evenly."
    return told


def _latency_rows(found: Load) -> list[list[str]]:
    rows = []
    stretches = series.edges(found)
    starts = [bisect.bisect_left(found.requests, found.begun + x, key=lambda r: r.scheduled) for x, _ in stretches]
    ends = [*starts[1:], len(found.requests)]
    for (start, end), begin, stop in zip(stretches, starts, ends, strict=True):
        inside = found.requests[begin:stop]
        values = [r.first - r.scheduled for r in inside if r.outcome == "ok" and r.first is not None]
        figures = [series.percentile(values, 50), series.percentile(values, 99), max(values, default=None)]
        bad = sum(r.outcome != "ok" for r in inside)
        rows.append([_stretch(start, end), str(len(values)), *map(seconds, figures), str(bad)])
    return rows


def _stretch(start: float, end: float) -> str:
    return f"{start:g} to {round(end, 1):g}"


def _within(curve: list[series.Point], quantile: float) -> str:
    return next((seconds(point.x) for point in curve if point.y >= quantile), "never")


def _reached(curve: list[series.Point]) -> str:
    return f"half within {_within(curve, 0.5)}, 99 % within {_within(curve, 0.99)}, {share(curve[-1].y)} answered"
