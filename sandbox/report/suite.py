"""Several runs seen together: one table, one JUnit file, one page that links to each report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sandbox.report import terminal
from sandbox.report.files import HTML, INDEX, JUNIT, write_atomic
from sandbox.report.html import environment
from sandbox.report.junit import write_suites
from sandbox.report.text import one_line, plural, seconds, urgency
from sandbox.report.write import Written, write_each
from sandbox.spec.results import Results, Status, worst


@dataclass(frozen=True)
class Row:
    """One run in the index; `link` is empty where no report lies."""

    results: Results
    link: str


def write_suite(runs: list[Results], folder: Path, reports: Mapping[str, Path] | None = None) -> Written:
    """Write `index.html` and a `junit.xml` with a suite per run into `folder`.

    `reports`: run id -> its folder or its report.html; without it, `folder/<run id>/report.html`.
    """
    rows = [Row(results, _link(results, folder, reports or {})) for results in _sorted(runs)]
    page = environment().get_template("index.html.j2")
    content = page.render(rows=rows, verdict=_verdict(runs), tally=_tally(runs))
    return write_each(
        {
            folder / JUNIT: lambda path: write_suites(runs, path),
            folder / INDEX: lambda path: write_atomic(path, content),
        }
    )


def render_suite(runs: list[Results], console: Console, folder: Path | None = None) -> None:
    """Print one table over all runs, the worst first; `folder`: where `write_suite` wrote its page."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for name in ("  verdict", "scenario", "checks", "took"):
        table.add_column(name, no_wrap=name != "scenario", justify="right" if name in {"checks", "took"} else "left")
    for results in _sorted(runs):
        what = Text(one_line(results.scenario, 80), style="bold")
        if results.verdict != "pass":
            what.append(f"\n{one_line(results.headline, 200)}", style="not bold")
        mark = Text("  ").append_text(terminal.label(results.verdict))
        table.add_row(mark, what, f"{results.count('pass')}/{len(results.checks)}", seconds(results.duration))
    total = Text("  ").append_text(terminal.label(_verdict(runs))).append(f"  {_tally(runs)}")
    parts: list[Text | Table] = [Text(), table, Text(), total]
    if folder:
        parts.append(Text(f"  report  {one_line(str(folder / INDEX))}", style="dim"))
    terminal.show(console, Group(*parts, Text()))


def _sorted(runs: list[Results]) -> list[Results]:
    return sorted(runs, key=lambda results: urgency(results.verdict))


def _verdict(runs: list[Results]) -> Status:
    return worst(results.verdict for results in runs)


def _tally(runs: list[Results]) -> str:
    counts = {status: sum(results.verdict == status for results in runs) for status in ("pass", "fail", "invalid")}
    told = f"{counts['pass']} passed, {counts['fail']} failed, {counts['invalid']} could not be proven"
    return f"{plural(len(runs), 'scenario')}: {told}; {seconds(sum(results.duration for results in runs))} in all"


def _link(results: Results, folder: Path, reports: Mapping[str, Path]) -> str:
    report = reports.get(results.run_id, folder / results.run_id)
    if report.is_dir():
        report /= HTML
    if not report.is_file():
        return ""
    return quote(os.path.relpath(report.resolve(), folder.resolve()).replace(os.sep, "/"))
