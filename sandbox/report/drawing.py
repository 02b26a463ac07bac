"""How every chart is drawn: axes, colours, fault windows, and the step from a spec to inline SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from sandbox.report.series import Load
from sandbox.report.text import one_line, plain
from sandbox.spec.results import Window
from sandbox.spec.slo import OUTCOMES

WIDTH = 900
CUT = 40  # characters of a name in a legend
DASHES = {"baseline": [1, 0], "fault": [6, 3], "recovery": [2, 2]}
# A phase narrower than this share of the load has no room for its name; the next one's would be written over it.
_NAMED = 0.06
_FAULT_ROW = 15
_TEN = 10
_NARROW = 4
_MOST_TICKS = 10
_VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])  # of Vega-Lite, as vl-convert names it
_SECONDS = (
    "datum.value == 0 ? '0' : datum.value < 0.001 ? format(datum.value * 1e6, '~r') + ' µs' : "
    "datum.value < 1 ? format(datum.value * 1e3, '~r') + ' ms' : format(datum.value, '~r') + ' s'"
)


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


# d3 gives a tick no more digits than its step has: of `format` alone 10 becomes 1e+1
_PLAIN = "format(datum.value, '~g')"


Spec = dict[str, Any]  # a part of a Vega-Lite specification
_OF_THE_WHOLE = {"$schema", "config"}
_CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "domainColor": "var(--faint)",
        "tickColor": "var(--faint)",
        "gridColor": "var(--grid)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titlePadding": 10,
    },
    "legend": {"labelColor": "var(--ink)", "labelFontSize": 12, "padding": 6},
    "text": {"fontSize": 12},
}


def spec(part: Any) -> Spec:
    """One chart of altair as a specification, or a specification as it is.

    Charts are put together as specifications: altair would copy each of them a dozen times, which takes seconds.
    """
    if isinstance(part, dict):
        return part
    with alt.data_transformers.enable(consolidate_datasets=False):
        return {key: value for key, value in part.to_dict().items() if key not in _OF_THE_WHOLE}


def layer(*parts: Any, independent: Sequence[str] = (), **properties: Any) -> Spec:
    """Charts over each other, the first beneath; `independent`: the scales that each has of its own."""
    scales = {"resolve": {"scale": dict.fromkeys(independent, "independent")}} if independent else {}
    return {"layer": [spec(part) for part in parts], **scales, **properties}


def over_time(chart: Spec, found: Load, height: int, x_title: str | None = "seconds since the load began") -> Spec:
    """Give a layered chart over time its size and its x axis."""
    length = found.length or 1.0
    axis = alt.Axis(title=x_title, grid=False, tickCount=10, labelExpr=_PLAIN, labels=x_title is not None)
    scaled = alt.X("x:Q", axis=axis).scale(domain=[0, length], nice=False)
    anchor = alt.Chart(alt.InlineData(values=[{"x": 0}])).mark_point(opacity=0, aria=False).encode(x=scaled)
    return layer(anchor, chart, independent=["color"], width=WIDTH, height=height)


def bands(found: Load, windows: Sequence[Window]) -> list[Any]:
    """Fault windows as shaded bands, phases as dashed borders; drawn beneath the figures."""
    faults, phases = _marks(found, windows)
    layers: list[Any] = []
    if faults:
        base = alt.Chart(alt.InlineData(values=faults)).encode(x="x:Q")
        edge: dict[str, Any] = {"color": "var(--band-edge)", "strokeWidth": 1.5, "aria": False}
        layers += [base.mark_rect(color="var(--band)", description="fault window").encode(x2="x2:Q")]
        layers += [base.mark_rule(**edge), base.mark_rule(**edge).encode(x="x2:Q")]
    if phases:
        base = alt.Chart(alt.InlineData(values=phases)).encode(x="x:Q")
        layers.append(base.mark_rule(color="var(--faint)", strokeDash=[3, 3], aria=False))
    return layers


def labels(found: Load, windows: Sequence[Window]) -> list[Any]:
    """Names of the fault windows inside the plot and of the phases above it; drawn over the figures."""
    faults, phases = _marks(found, windows)
    layers: list[Any] = []
    if faults:
        text = alt.Chart(alt.InlineData(values=faults)).encode(x="x:Q", y=alt.Y("row:Q", axis=None, scale=None))
        layers.append(text.mark_text(align="left", dx=5, color="var(--band-ink)", fontWeight=600).encode(text="name:N"))
    if phases:
        text = alt.Chart(alt.InlineData(values=phases)).encode(x="x:Q", y=alt.value(-8))
        layers.append(text.mark_text(align="left", dx=2, color="var(--muted)").encode(text="name:N"))
    return layers


def _marks(found: Load, windows: Sequence[Window]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    length = found.length or 1.0
    struck = [window for window in windows if window.kind == "fault"]
    faults = [
        {
            "x": _clamped(window.start - found.begun, length),
            "x2": _clamped(window.end - found.begun, length),
            "name": f"{one_line(window.name, 40)} {between(found, window)}",
            "row": _FAULT_ROW * (index % 5) + _FAULT_ROW,
        }
        for index, window in enumerate(struck)
    ]
    phases = [
        {
            "x": _clamped(window.start - found.begun, length),
            "name": one_line(window.name, 40) if window.end - window.start > _NAMED * length else "",
        }
        for window in windows
        if window.kind == "phase" and window.end > window.start
    ]
    return faults, phases


def legend(field: str, names: list[str], colours: list[str]) -> Any:
    """Colour by `field`, with a legend beneath the chart."""
    key = alt.Legend(
        title=None, orient="bottom", direction="horizontal", labelLimit=320, columnPadding=28, symbolOpacity=1
    )
    return alt.Color(field, legend=key).scale(domain=names, range=colours)


def rate_axis(ticks: int) -> Any:
    """Of one width in both panels, so that their seconds stand beneath each other."""
    return alt.Axis(tickCount=ticks, format="~s", minExtent=36, maxExtent=36)


def time_axis(lowest: float = 0.0, highest: float = 0.0) -> Any:
    """Ticks in readable units; where the axis is logarithmic at round steps of each decade, or of a narrow range."""
    if lowest <= 0:
        return alt.Axis(labelExpr=_SECONDS, tickCount=5)
    if highest / lowest < _NARROW:
        unit = 10.0 ** math.floor(math.log10(highest - lowest))
        step = next(unit * part for part in (0.2, 0.5, 1.0) if (highest - lowest) / (unit * part) <= _MOST_TICKS)
        multiples = range(math.ceil(lowest / step), math.floor(highest / step) + 1)
        return alt.Axis(labelExpr=_SECONDS, values=[float(f"{step * multiple:.6g}") for multiple in multiples])
    decades = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    steps = (1, 2, 5) if highest / lowest > _TEN else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return alt.Axis(labelExpr=_SECONDS, values=[tick for tick in ticks if lowest <= tick <= highest])


def outcome_colour(name: str) -> str:
    """The page's CSS variable for an outcome."""
    return f"var(--o-{name.replace('_', '-')})" if name in OUTCOMES else "var(--ink)"


def phase_colour(name: str) -> str:
    """The page's CSS variable for a phase of the load."""
    return f"var(--p-{name})" if name in DASHES else "var(--c-first)"


def svg(chart: Any, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Render a chart; `rows`: the data its `NamedData` names."""
    whole = {"$schema": alt.SCHEMA_URL, "config": _CONFIG, "datasets": rows, **spec(chart)}
    drawn = plain(vl_convert.vegalite_to_svg(whole, vl_version=_VERSION))
    size = re.search(r'width="(\d+)" height="(\d+)"', drawn)
    drawn = drawn.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    if size:  # the page decides how wide; the viewBox keeps the shape
        drawn = drawn.replace(size.group(0), "", 1)
    return drawn


def _clamped(x: float, length: float) -> float:
    return min(max(x, 0.0), length)


def told_windows(found: Load, windows: Sequence[Window]) -> str:
    """When faults acted, in words."""
    faults = [f"{plain(w.name)} from {between(found, w)}" for w in windows if w.kind == "fault"]
    return f"Fault windows: {', '.join(faults)}." if faults else "No fault window."


def stretch(start: float, end: float) -> str:
    """Seconds of the load that a row of a table is about."""
    return f"{start:g} to {round(end, 1):g}"


def between(found: Load, window: Window) -> str:
    """A window in seconds of the load."""
    return f"{window.start - found.begun:.1f} to {window.end - found.begun:.1f} s"
