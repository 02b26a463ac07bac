"""`report.html`: one file, no script, no network; opens in ten years as it does today."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sandbox.report import pods, series, text
from sandbox.report.files import write_atomic
from sandbox.report.series import Load
from sandbox.spec.attack import LAYERS
from sandbox.spec.results import Check, Results, Status, Window
from sandbox.timeline import AttackEvent, Event, LoadStarted, PhaseChanged, RunStarted

if TYPE_CHECKING:
    from sandbox.report.drawing import Chart

_TEMPLATES = Path(__file__).parent / "templates"
_LINE_LIMIT = 1200  # characters of one line of evidence
_SAID = 3  # reasons shown per workload
_LINES = 60  # of evidence per check, and of notes
_GROUPS = {
    "slo": "Promises (SLOs)",
    "workload": "Workloads",
    "fault": "Faults",
    "attack": "Attacks",
    "steady-state": "Steady state",
    "phase": "Phases of the run",
    "validity": "Validity of the measurement",
}


@dataclass(frozen=True)
class Stretch:
    """One phase of the run: seconds since the run began; `end` None if it never ended."""

    name: str
    start: float
    end: float | None
    status: str
    detail: str


@dataclass(frozen=True)
class Attempt:
    """What a tenant tried and what it was allowed to, side by side."""

    name: str
    title: str
    expected_by: str
    attempt: AttackEvent | None
    allowed: AttackEvent | None
    status: Status


def write_html(results: Results, events: Iterable[Event], path: Path) -> Path:
    """Write the report of one run to `path`. A chart that cannot be drawn is said in its place."""
    timeline = list(events)
    found = series.load(timeline)
    drawn, problems = _charts(found, results.windows)
    causes, more_causes = series.causes(found)
    stretches = _stretches(timeline, results.duration)
    page = environment().get_template("report.html.j2")
    content = page.render(
        results=results,
        bad=sorted((c for c in results.checks if c.status != "pass"), key=lambda c: text.urgency(c.status)),
        groups=_grouped(results.checks),
        charts=drawn,
        chart_problems=problems,
        causes=causes,
        more_causes=more_causes,
        load_at=found.begun if found.requests else None,
        load=next((event for event in timeline if isinstance(event, LoadStarted)), None),
        stretches=stretches,
        length=max(
            [results.duration, *(each.end for each in stretches if each.end is not None)]
        ),  # it is still written
        attempts=_attempts(timeline, results.checks),
        source=results.source or next((event.source for event in timeline if isinstance(event, RunStarted)), ""),
        scenario=_scenario(timeline),
        versions=next((event.versions for event in timeline if isinstance(event, RunStarted)), {}),
        emulated=text.emulated(results.facts),
        machine=text.machine(results.facts),
        folder=str(path.parent),
        workload_columns=pods.COLUMNS,
        workload_rows=pods.rows(results.workloads),
        workload_words=pods.said(results.workloads, _SAID),
        summaries=text.worth_showing(results.summaries),
        overall=text.whole(results.summaries),
        lines=_LINES,
    )
    return write_atomic(path, content)


def environment() -> Environment:
    """Jinja with everything escaped, control characters made visible, and a typo in a template an error."""
    env = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "seconds": text.seconds,
        "share": text.share,
        "rate": text.rate,
        "percentile": text.percentile,
        "recovered": text.recovered,
        "labelled": text.labelled,
        "fact": text.fact,
        "asked": text.asked,
        "emulated": text.emulated,
        "cut": lambda value: text.plain(value)[:_LINE_LIMIT],
        "slug": lambda value: re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-"),
        "moment": _moment,
        "layer": lambda letter: LAYERS.get(letter, letter),
        "quoted": lambda value: shlex.quote(text.plain(value)),
        "svg": Markup,  # only ever put to drawing.Chart.svg
    }
    env.globals |= {"MARK": text.MARK, "MEANING": text.MEANING, "EMULATED": text.EMULATED, "plural": text.plural}
    return env


def _harmless(value: Any) -> Any:
    return text.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _charts(found: Load, windows: Sequence[Window]) -> tuple[list[Chart], list[str]]:
    # What draws takes tens of MiB: it comes once the load is over, not to sit beside it.
    from sandbox.report import charts, charts_pace, charts_share

    drawn: list[Chart] = []
    problems: list[str] = []
    makers: list[Callable[[Load, Sequence[Window]], Chart | None]] = [
        charts.latency,
        charts_share.distribution,
        charts_pace.pace,
        charts_pace.throughput,
    ]
    for make in makers:
        try:
            chart = make(found, windows)
        except Exception as error:  # noqa: BLE001 - a report without one chart beats no report
            problems.append(f"The {make.__name__} chart could not be drawn: {type(error).__name__}: {error}")
            continue
        if chart:
            drawn.append(chart)
    return drawn, problems


def _grouped(checks: Sequence[Check]) -> dict[str, list[Check]]:
    groups = {title: [c for c in checks if c.group == key] for key, title in _GROUPS.items()}
    return {
        title: sorted(found, key=lambda check: text.urgency(check.status)) for title, found in groups.items() if found
    }


def _stretches(timeline: Sequence[Event], duration: float) -> list[Stretch]:
    begun: dict[str, float] = {}
    made: list[Stretch] = []
    for event in timeline:
        if not isinstance(event, PhaseChanged):
            continue
        if event.status == "started":
            begun[event.name] = event.t
        else:
            start = begun.pop(event.name, event.t)
            made.append(Stretch(event.name, start, event.t, event.status, event.detail))
    made += [Stretch(name, start, None, "did not end", "") for name, start in begun.items() if start <= duration]
    return sorted(made, key=lambda stretch: stretch.start)


def _attempts(timeline: Sequence[Event], checks: Sequence[Check]) -> list[Attempt]:
    """Attempts with the judge's verdict on each; one that was never judged proves nothing."""
    judged = {check.id: check.status for check in checks}
    tried: dict[str, dict[str, AttackEvent]] = {}
    for event in timeline:
        if isinstance(event, AttackEvent):
            tried.setdefault(event.attempt, {}).setdefault(event.variant, event)
    return [
        Attempt(
            name=name,
            title=next(iter(variants.values())).title,
            expected_by=next(iter(variants.values())).expected_by,
            attempt=variants.get("attempt"),
            allowed=variants.get("allowed"),
            status=judged.get(f"attack/{name}", "invalid"),
        )
        for name, variants in tried.items()
    ]


def _scenario(timeline: Sequence[Event]) -> str:
    begun = next((event for event in timeline if isinstance(event, RunStarted)), None)
    return json.dumps(begun.scenario, indent=2, ensure_ascii=False) if begun else ""


def _moment(stamp: str) -> str:
    parsed = text.moment(stamp)
    return parsed.strftime("%d %b %Y, %H:%M:%S UTC").lstrip("0") if parsed else stamp
