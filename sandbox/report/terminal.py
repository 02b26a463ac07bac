"""The summary on the terminal: the verdict first, then what went wrong and why, then the rest in few lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sandbox.report import pods
from sandbox.report.files import HTML
from sandbox.report.github import commands_stopped
from sandbox.report.text import (
    MARK,
    MEANING,
    emulated,
    labelled,
    machine,
    one_line,
    percentile,
    plain,
    plural,
    rate,
    recovered,
    seconds,
    share,
    urgency,
    worth_showing,
)
from sandbox.spec.results import Check, Results, Status, Summary, WorkloadSummary

STYLE: dict[Status, str] = {"pass": "green", "fail": "red", "invalid": "yellow"}
_EVIDENCE = 3
_SHOWN = 12  # failed checks told in full; more would push the verdict off the screen
_GROUPS = ("slo", "workload", "fault", "attack", "steady-state", "phase", "validity")
_WIDE_ONLY = ("lost", "GPUs", "p99")
_NARROW = 100
_ASCII = str.maketrans({"✓": "+", "✗": "x", "…": "...", "–": "-", "µ": "u"})  # noqa: RUF001 - an en dash is meant


def render(results: Results, console: Console, folder: Path | None = None) -> None:
    """Print the summary of one run. `folder`: where its files lie (`runs/<id>` if not given)."""
    folder = folder or Path("runs") / results.run_id
    bad = sorted((check for check in results.checks if check.status != "pass"), key=lambda c: urgency(c.status))
    parts: list[Text | Table | Padding] = [Text(), _verdict(results)]
    parts += [Padding(_failed(check), (1, 0, 0, 2)) for check in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        parts.append(Text(f"\n  … and {len(bad) - _SHOWN} more; all are in the report"))
    parts += [Text(), _held(results)]
    if results.summaries:
        parts += [Text(), figures(results.summaries, narrow=console.width < _NARROW)]
    if results.workloads:
        parts += [Text(), placed(results.workloads, narrow=console.width < _NARROW)]
    if results.time_to_recover is not None:
        told = recovered(results.time_to_recover)
        parts.append(Text(f"  recovered in {told}" if results.time_to_recover else f"  {told}"))
    notes = [note for note in results.notes if note.startswith(("warning", "error"))]
    parts += [Text(f"  {one_line(note)}", style="yellow") for note in notes[:5]]
    parts.append(Text())
    show(console, Group(*parts), whole=[*_next(results, folder), Text()])


def show(console: Console, what: Group, whole: Sequence[Text] = ()) -> None:
    """Print `what` wrapped at the console's width, then the lines of `whole` as they are, to be copied.

    Nothing in it can act as a GitHub workflow command.
    """
    stream: TextIO = console.file  # type: ignore[assignment]
    with console.capture() as captured:
        console.print(what, soft_wrap=False, highlight=False)
        for line in whole:
            console.print(line, soft_wrap=True, highlight=False)
    encoding = console.encoding
    with commands_stopped(stream):
        text = captured.get()
        if not encoding.startswith("utf"):
            text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
        stream.write(text)
        stream.flush()


def label(status: Status) -> Text:
    """Mark and word, so that colour is never the only sign."""
    return Text(f"{MARK[status]} {status.upper()}", style=f"bold {STYLE[status]}")


def figures(summaries: list[Summary], *, narrow: bool) -> Table:
    """Key figures, one row per phase, and per tenant, model or profile where there are several.

    The narrow form fits 80 columns. A percentile of too few samples is a dash.
    """
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim", caption_justify="left")
    table.caption = Text("  TTFT is ttft_intended: from when a request was due", style="dim not italic")
    table.add_column("  phase")
    columns = ["requests", "good", "req/s", "tok/s", "TTFT p50", "TTFT p99", "e2e p99"]
    columns += [] if narrow else ["TTFT p95", "TPOT p50", "TPOT p99"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for summary in worth_showing(summaries):
        wanted = [("ttft_intended", 50), ("ttft_intended", 99), ("e2e", 99)]
        wanted += [] if narrow else [("ttft_intended", 95), ("tpot", 50), ("tpot", 99)]
        table.add_row(
            Text(f"  {one_line(labelled(summary), 20 if narrow else 40)}"),
            f"{summary.requests:,}",
            share(summary.good_fraction),
            rate(summary.request_rate),
            rate(summary.token_rate),
            *(percentile(summary, metric, percent) for metric, percent in wanted),
        )
    return table


def placed(workloads: list[WorkloadSummary], *, narrow: bool) -> Table:
    """What became of the pods, one row per workload; the narrow form fits 80 columns."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    kept = [n for n, name in enumerate(pods.COLUMNS) if not (narrow and name in _WIDE_ONLY)]
    for number in kept:
        name = pods.COLUMNS[number]
        table.add_column(name if number else f"  {name}", justify="right" if number else "left", no_wrap=True)
    for row in pods.rows(workloads):
        table.add_row(Text(f"  {one_line(row[0], 20)}"), *(row[number] for number in kept[1:]))
    return table


def _verdict(results: Results) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    name = Text(one_line(results.scenario, 120), style="bold")
    name.append(f"  {seconds(results.duration)}", style="dim")
    table.add_row(label(results.verdict), name)
    table.add_row("", Text(plain(results.headline)))
    if results.verdict == "invalid":  # the one verdict that needs a word of explanation
        table.add_row("", Text(MEANING["invalid"], style="dim"))
    if ground := _ground(results):
        table.add_row("", ground)
    return table


def _ground(results: Results) -> Text:
    """What the figures were measured on, and whether it was the real thing."""
    ground = Text(style="dim")
    if unreal := emulated(results.facts):
        ground.append(f"EMULATED {one_line('; '.join(unreal), 120)}", style=f"bold {STYLE['invalid']}")
    if on := machine(results.facts):
        ground.append(f"{', on' if unreal else 'on'} {one_line(on, 160)}")
    return ground


def _failed(check: Check) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    mark = Text(f"{MARK[check.status]} {check.status}", style=STYLE[check.status])
    table.add_row(mark, Text(one_line(check.title), style="bold"))
    table.add_row(Text("observed", style="dim"), Text(one_line(check.observed)))
    table.add_row(Text("expected", style="dim"), Text(one_line(check.expected)))
    if check.reason:
        table.add_row(Text("why", style="dim"), Text(one_line(check.reason)))
    further = [line for line in check.evidence if line not in check.reason]
    for line in further[:_EVIDENCE]:
        table.add_row("", Text(one_line(line, 200), style="dim"))
    if len(further) > _EVIDENCE:
        more = plural(len(further) - _EVIDENCE, "more line")
        table.add_row("", Text(f"… {more} of evidence in the report", style="dim"))
    return table


def _held(results: Results) -> Table:
    """What held, a line or two per group."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for group in _GROUPS:
        good = [check for check in results.checks if check.group == group and check.status == "pass"]
        if good:
            names = ", ".join(one_line(_promise(check), 80) for check in good)
            head = Text(f"  {MARK['pass']} {group} {len(good)}", style=STYLE["pass"])
            table.add_row(head, Text(one_line(names, 500)))
    if not results.checks:
        table.add_row(Text("  nothing was checked", style=STYLE["invalid"]), "")
    return table


def _promise(check: Check) -> str:
    """Its name; of a promise with the figure, which is what was asked for."""
    return f"{check.title}: {check.observed}" if check.group == "slo" else check.title


def _next(results: Results, folder: Path) -> list[Text]:
    if results.verdict == "pass":
        told = ("judge", str(folder), "judges the same run again, no cluster needed")
    elif not results.source or Path(results.source).suffix:
        told = ("run", results.source or results.scenario, "after changing what is named above")
    else:  # typed as options: there is no file to run
        told = ("judge", str(folder), "tells it all again; or the same command, with what is named above changed")
    command, target, why = told
    there = [("report", str(folder / HTML))] if (folder / HTML).is_file() else []
    rows = [*there, ("next", f"sandbox {command} {shlex.quote(plain(target))}"), ("", why)]
    return [
        Text.assemble((f"  {head:<6}  ", "dim"), (plain(text).replace("\n", " "), "" if head else "dim"))
        for head, text in rows
    ]
