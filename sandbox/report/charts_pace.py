"""Requests per second over time: asked against achieved, and by how they ended above the tokens that came."""

from __future__ import annotations

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
    rate_axis,
    stretch,
    svg,
    told_windows,
)
from sandbox.report.series import Bin, Load, Pace
from sandbox.report.text import one_line, rate, seconds
from sandbox.spec.results import Window

_LINES = {
    "asked": ("var(--muted)", [2, 3]),
    "sent": ("var(--c-first)", [1, 0]),
    "answered": ("var(--p-recovery)", [7, 3]),
}
_ROOM = 1.2  # above the highest bar, for the names of fault windows


def pace(found: Load, windows: Sequence[Window]) -> Chart | None:
    """Requests per second as scheduled, sent and answered, and those dropped; None where the load has no length."""
    made = series.paces(found)
    if not made:
        return None
    lines = {name: values for name in _LINES if (values := _line(made, name))}
    dropped = [{"x": p.start, "x2": p.end, "y2": 0.0, "y": p.dropped, "s": "dropped"} for p in made if p.dropped]
    peak = max(value["y"] for values in lines.values() for value in values)
    names = [*lines, *(["dropped"] if dropped else [])]
    colours = [*(_LINES[name][0] for name in lines), *(["var(--o-dropped)"] if dropped else [])]
    layers = [*bands(found, windows), *([_dropped()] if dropped else [])]
    layers += [_paced(name, names, colours, peak) for name in reversed(lines)]  # asked over sent, with its gaps
    chart = layer(*layers, *labels(found, windows))
    return Chart(
        title="Rate asked and achieved",
        svg=svg(over_time(chart, found, 190), {**lines, "drops": dropped}),
        says=f"Rate asked and achieved. {_told(found, made)} {told_windows(found, windows)}",
        caption=_caption(found, made),
        head=["load second", *(f"{name}/s" for name in lines), "dropped/s"],
        rows=[[stretch(p.start, p.end), *(rate(getattr(p, name)) for name in (*lines, "dropped"))] for p in made],
    )


def throughput(found: Load, windows: Sequence[Window]) -> Chart | None:
    """Requests per second by outcome above tokens per second; None where the load has no length."""
    made = series.bins(found)
    if not made:
        return None
    outcomes = series.ordered({outcome for part in made for outcome in part.requests})
    counts = {name: sum(request.outcome == name for request in found.requests) for name in outcomes}
    shown = {name: f"{one_line(name, CUT)}: {counts[name]:,}" for name in outcomes}
    height, below = 190, 110
    peak = max(sum(part.requests.values()) for part in made)
    tokens = any(part.tokens for part in made)
    bars = layer(*bands(found, windows), _bars(shown, peak), *labels(found, windows))
    chart = over_time(bars, found, height, x_title=None) if tokens else over_time(bars, found, height)
    if tokens:
        line = layer(*bands(found, windows), _tokens())
        chart = {"vconcat": [chart, over_time(line, found, below)], "spacing": 14}
    steps = [{"x": part.start, "y": part.tokens} for part in made] + [{"x": made[-1].end, "y": made[-1].tokens}]
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    most = f"tokens at most {rate(max(part.tokens for part in made))} a second" if tokens else "no tokens came"
    return Chart(
        title="Throughput over time",
        svg=svg(chart, {"bars": _stacked(made, shown), "tokens": steps}),
        says=f"Throughput over time. Requests ended: {told}. Busiest: {rate(peak)} requests a second; {most}. "
        f"{told_windows(found, windows)}",
        caption="Requests count when they end, stacked by how they ended; tokens when they arrive. "
        f"One bar is {seconds(made[0].end - made[0].start)}.",
        head=["load second", *outcomes, "tokens/s"],
        rows=[
            [stretch(p.start, p.end), *(rate(p.requests.get(name, 0.0)) for name in outcomes), rate(p.tokens)]
            for p in made
        ],
    )


def _line(made: list[Pace], name: str) -> list[dict[str, Any]]:
    """Steps to draw; a sliver at the end, when nothing was due any more, would only draw a cliff."""
    whole = made[0].end - made[0].start
    drawn = [part for part in made if part.end - part.start >= whole / 2] or made
    steps = [{"x": part.start, "y": value, "s": name} for part in drawn if (value := getattr(part, name)) is not None]
    return [*steps, {**steps[-1], "x": drawn[-1].end}] if steps else []


def _paced(name: str, names: list[str], colours: list[str], peak: float) -> Any:
    return (
        alt.Chart(alt.NamedData(name=name))
        .mark_line(interpolate="step-after", strokeWidth=2, strokeDash=_LINES[name][1], aria=False)
        .encode(
            x="x:Q",
            y=alt.Y("y:Q", title="requests / s", axis=rate_axis(4)).scale(domain=[0, peak * _ROOM or 1.0]),
            color=legend("s:N", names, colours),
        )
    )


def _dropped() -> Any:
    return (
        alt.Chart(alt.NamedData(name="drops"))
        .mark_rect(opacity=0.7, aria=False)
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q", color="s:N")
    )


def _told(found: Load, made: list[Pace]) -> str:
    sent = sum(request.sent is not None for request in found.requests)
    counts = {"sent": sent, "answered": sum(request.outcome == "ok" for request in found.requests)}
    if not found.closed:
        counts = {"asked": len(found.requests), **counts}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    busiest = rate(max(part.sent for part in made))
    return f"Requests: {told}, {_dropped_in(found):,} dropped. At most {busiest} sent a second."


def _dropped_in(found: Load) -> int:
    return sum(request.outcome == "dropped" for request in found.requests)


def _caption(found: Load, made: list[Pace]) -> str:
    told = (
        "A closed loop: each user asks when its last answer has come, so nothing is asked of the client ahead of time."
        if found.closed
        else "Asked: what the schedule holds. Where sent lies below it, the load client was late, dropped requests or "
        "got no connection."
    )
    if not found.closed:
        told += " Where answered lies below sent, requests failed or queued."
    if _dropped_in(found):
        told += " Dropped: too many were in flight, so these were never sent."
    return f"{told} One step is {seconds(made[0].end - made[0].start)}."


def _stacked(made: list[Bin], shown: dict[str, str]) -> list[dict[str, Any]]:
    values = []
    for part in made:
        foot = 0.0
        for name, value in part.requests.items():
            values.append({"x": part.start, "x2": part.end, "y": foot, "y2": foot + value, "o": shown[name]})
            foot += value
    return values


def _bars(shown: dict[str, str], peak: float) -> Any:
    return (
        alt.Chart(alt.NamedData(name="bars"))
        .mark_rect(aria=False, stroke="var(--paper)", strokeWidth=0.75)
        .encode(
            x="x:Q",
            x2="x2:Q",
            y=alt.Y("y:Q", title="requests / s", axis=rate_axis(4)).scale(domain=[0, peak * _ROOM]),
            y2="y2:Q",
            color=legend("o:N", list(shown.values()), [outcome_colour(name) for name in shown]),
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
