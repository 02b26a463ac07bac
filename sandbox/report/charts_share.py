"""Latencies as distributions: what share of the requests of each phase took at most how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sandbox.report import series
from sandbox.report.drawing import CUT, DASHES, WIDTH, Chart, legend, phase_colour, spec, svg, time_axis
from sandbox.report.series import Curve, Load
from sandbox.report.text import enough, one_line, seconds, share
from sandbox.spec.results import Window

_AXES = {
    "ttft_intended": "time to first token, from the scheduled send",
    "tpot": "time per token, within an answer",
    "e2e": "time to the whole answer, from its send",
}
_HEADS = {"ttft_intended": "first token", "tpot": "per token", "e2e": "whole answer"}
_GAP = 60  # between two panels: room for the axis of the second


def distribution(found: Load, windows: Sequence[Window]) -> Chart | None:
    """First-token and per-token times per phase as cumulative shares; whole answers where nothing was streamed.

    None without an answered request.
    """
    metrics = ("ttft_intended", "tpot") if found.streamed else ("e2e",)
    drawn = {metric: curves for metric in metrics if (curves := series.distribution(found, windows, metric))}
    if not drawn:
        return None
    names = list(dict.fromkeys(name for curves in drawn.values() for name in curves))
    width = (WIDTH - _GAP * (len(drawn) - 1)) // len(drawn)
    panels = [_panel(metric, curves, names, width, first=not n) for n, (metric, curves) in enumerate(drawn.items())]
    told = [
        f"{_HEADS[metric].capitalize()}, {name}: {_reached(curve)}"
        for metric, curves in drawn.items()
        for name, curve in curves.items()
    ]
    return Chart(
        title="Latency distribution by phase",
        svg=svg({"hconcat": [spec(panel) for panel in panels], "spacing": 24}, _values(drawn)),
        says="Latency distribution by phase. Share of requests answered in time. " + "; ".join(told) + ".",
        caption=_caption(drawn),
        head=[
            "what, of which phase",
            "requests",
            "half within",
            "90 % within",
            "95 % within",
            "99 % within",
            "answered",
        ],
        rows=[
            [
                f"{_HEADS[metric]}, {name}",
                f"{curve.of:,}",
                *(_within(curve, percent) for percent in (50, 90, 95, 99)),
                share(curve.points[-1].y),
            ]
            for metric, curves in drawn.items()
            for name, curve in curves.items()
        ],
    )


def _values(drawn: dict[str, dict[str, Curve]]) -> dict[str, list[dict[str, Any]]]:
    return {
        metric: [
            {"x": point.x, "y": point.y, "s": one_line(name, CUT)}
            for name, curve in curves.items()
            for point in curve.points
        ]
        for metric, curves in drawn.items()
    }


def _panel(metric: str, curves: dict[str, Curve], names: list[str], width: int, *, first: bool) -> Any:
    low = min(point.x for curve in curves.values() for point in curve.points) / 1.1
    high = max(point.x for curve in curves.values() for point in curve.points) * 1.1
    shown = [one_line(name, CUT) for name in names]
    axis = time_axis(low, high)
    axis.labelOverlap, axis.labelSeparation = "greedy", 12
    return (
        alt.Chart(alt.NamedData(name=metric))
        .mark_line(interpolate="step-after", strokeWidth=2, aria=False)
        .encode(
            x=alt.X("x:Q", title=_AXES[metric], axis=axis).scale(type="log", nice=False, domain=[low, high]),
            y=alt.Y(
                "y:Q",
                title="share of requests" if first else None,
                axis=alt.Axis(format="%", tickCount=5),
            ).scale(domain=[0, 1]),
            color=legend("s:N", shown, [phase_colour(name) for name in names]),
            strokeDash=alt.StrokeDash("s:N", title=None).scale(
                domain=shown, range=[DASHES.get(name, [1, 0]) for name in names]
            ),
        )
        .properties(width=width, height=220)
    )


def _caption(drawn: dict[str, dict[str, Curve]]) -> str:
    told = "The steeper and the further left, the better. Failed requests count as attempted: a curve that ends below "
    told += "100 % lost the rest."
    if "tpot" in drawn:
        told += " Time per token is of answers with two tokens or more."
    return told


def _within(curve: Curve, percent: int) -> str:
    """The time within which so many were answered; a dash of too few to say it of."""
    if not enough(curve.of, percent):
        return seconds(None)
    return next((seconds(point.x) for point in curve.points if point.y >= percent / 100), "never")


def _reached(curve: Curve) -> str:
    told = [f"{'half' if p == 50 else f'{p} %'} within {_within(curve, p)}" for p in (50, 99) if enough(curve.of, p)]  # noqa: PLR2004
    return ", ".join([*told, f"{share(curve.points[-1].y)} answered"])
