"""GitHub Actions: a step summary, annotations, and text that cannot be taken for a workflow command."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sandbox.report import pods
from sandbox.report.text import (
    EMULATED,
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
from sandbox.spec.results import Check, Results

_SUMMARY_LIMIT = 1_000_000  # GitHub refuses a step summary over 1 MiB
_ANNOTATIONS = 10  # GitHub shows no more of one kind per step
_FIELD = 300
_ENTITIES = {ord(char): f"&#{ord(char)};" for char in "\\`*_[]|~@<>&#!$"}


def announce(runs: list[Results], stream: TextIO) -> Path | None:
    """Append the step summary and print annotations, where this is a GitHub Actions step; otherwise do nothing.

    Returns the summary's path if one was written.
    """
    if os.environ.get("GITHUB_ACTIONS") == "true":
        stream.writelines(line + "\n" for line in annotation_lines(runs))
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target:
        return None
    path = Path(target)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\n".join(_limited(runs)))
    return path


def annotation_lines(runs: list[Results]) -> list[str]:
    """`::error` for each failed check, `::warning` for each that could not be proven; the worst first."""
    found: list[tuple[int, str]] = []
    for results in runs:
        bad = [check for check in results.checks if check.status != "pass"]
        found += [(urgency(check.status), _annotation(results, check)) for check in bad]
        if results.verdict != "pass" and not bad:
            kind = "error" if results.verdict == "fail" else "warning"
            found.append((urgency(results.verdict), _command(kind, results.scenario, results.headline)))
    ordered = [line for _, line in sorted(found, key=lambda item: item[0])]
    if len(ordered) <= _ANNOTATIONS:
        return ordered
    rest = len(ordered) - _ANNOTATIONS + 1
    return [*ordered[: _ANNOTATIONS - 1], _command("error", "sandbox", f"and {rest} more: see the report")]


def markdown(results: Results) -> str:
    """One run as GitHub-flavoured markdown: verdict, what went wrong, figures, the rest folded."""
    lines = [
        f"## {MARK[results.verdict]} {results.verdict.upper()} · {_text(results.scenario)}",
        "",
        f"**{_text(results.headline)}** ({MEANING[results.verdict]})",
        "",
        f"Run {_code(results.run_id)}, {seconds(results.duration)}, {_tally(results)}. {_recovered(results)}",
        "",
        *_ground(results),
    ]
    bad = sorted((check for check in results.checks if check.status != "pass"), key=lambda c: urgency(c.status))
    if bad:
        lines += ["| | check | observed | expected | why |", "|---|---|---|---|---|"]
        lines += [_row(check) for check in bad]
        lines.append("")
    if results.summaries:
        lines += _figures(results)
    if results.workloads:
        lines += _workloads(results)
    good = [check for check in results.checks if check.status == "pass"]
    if good:
        lines += ["<details><summary>" + plural(len(good), "check") + " held</summary>", ""]
        lines += [f"- {_text(check.title)}: {_code(check.observed)}" for check in good]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


@contextmanager
def commands_stopped(stream: TextIO) -> Iterator[None]:
    """Keep GitHub from obeying `::commands::` in what is printed meanwhile; a server's error may hold some."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        yield
        return
    token = secrets.token_hex(16)
    stream.write(f"::stop-commands::{token}\n")
    try:
        yield
    finally:
        stream.write(f"::{token}::\n")


def _limited(runs: list[Results]) -> Iterator[str]:
    used = 0
    for results in runs:
        part = markdown(results)
        used += len(part.encode("utf-8", "backslashreplace")) + 1
        if used > _SUMMARY_LIMIT:
            yield "\n*More runs were left out here: GitHub takes no more than 1 MiB. The report has them.*\n"
            return
        yield part
    yield ""


def _annotation(results: Results, check: Check) -> str:
    told = f"{check.title}: {check.observed}, expected {check.expected}. {check.reason}"
    return _command("error" if check.status == "fail" else "warning", f"{results.scenario}: {check.id}", told)


def _command(kind: str, title: str, message: str) -> str:
    """One workflow command, escaped as actions/toolkit does in `command.ts`."""
    head = _escaped(one_line(title, _FIELD)).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={head}::{_escaped(plain(message).strip())}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _text(text: str) -> str:
    """Markdown's and HTML's own characters as entities: they show, and mean nothing."""
    return one_line(text, _FIELD).translate(_ENTITIES)


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>" if text.strip() else ""


def _row(check: Check) -> str:
    cells = [f"{MARK[check.status]} {check.status}", _text(check.title), _code(check.observed), _code(check.expected)]
    return f"| {' | '.join(cells)} | {_text(check.reason)} |"


def _tally(results: Results) -> str:
    return f"{results.count('pass')} held, {results.count('fail')} failed, {results.count('invalid')} unproven"


def _recovered(results: Results) -> str:
    if results.time_to_recover is None:
        return ""
    told = recovered(results.time_to_recover)
    return f"Recovered in {told}." if results.time_to_recover else f"{told.capitalize()}."


def _ground(results: Results) -> list[str]:
    """What the figures were measured on, and whether it was the real thing."""
    lines = []
    if unreal := emulated(results.facts):
        lines += [f"> **Emulated: {_text('; '.join(unreal))}.** {EMULATED}", ""]
    if on := machine(results.facts):
        lines += [f"<sub>On {_text(on)}</sub>", ""]
    return lines


def _workloads(results: Results) -> list[str]:
    """What became of the pods, and why those wait that do."""
    lines = [f"| {' | '.join(pods.COLUMNS)} |", f"|---|{'--:|' * (len(pods.COLUMNS) - 1)}"]
    lines += [f"| {' | '.join([_text(row[0]), *row[1:]])} |" for row in pods.rows(results.workloads)]
    return [*lines, "", *(f"- {_text(line)}" for line in pods.said(results.workloads, 1)), ""]


def _figures(results: Results) -> list[str]:
    lines = [
        "| phase | requests | good | req/s | tokens/s | intended TTFT p50 | p99 | E2E p99 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for summary in worth_showing(results.summaries):
        cells = [
            _text(labelled(summary)),
            f"{summary.requests:,}",
            share(summary.good_fraction),
            rate(summary.request_rate),
            rate(summary.token_rate),
            *(percentile(summary, *which) for which in (("ttft_intended", 50), ("ttft_intended", 99), ("e2e", 99))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "<sub>TTFT: first token after the scheduled send. A dash: too few samples to say.</sub>", ""]
