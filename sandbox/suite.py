"""Several runs one after the other, on clusters they share; and what is shown of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sandbox import cluster, errors, recorded
from sandbox.cluster import Owner, record
from sandbox.errors import SandboxError
from sandbox.plan import Plan
from sandbox.progress import say
from sandbox.report import github, suite, terminal
from sandbox.report.files import INDEX, RESULTS, read_results
from sandbox.report.write import Written, write_all
from sandbox.run import Options, Outcome, execute
from sandbox.spec.results import Results, Status

VERDICT_CODES: dict[Status, int] = {
    "pass": errors.EXIT_PASS,
    "fail": errors.EXIT_FAIL,
    "invalid": errors.EXIT_INVALID,
}
# The worst first; an interrupted suite says so, whatever its runs found until then.
_ORDER = (
    errors.EXIT_INTERRUPTED,
    errors.EXIT_FAIL,
    errors.EXIT_ENVIRONMENT,
    errors.EXIT_USAGE,
    errors.EXIT_INVALID,
    errors.EXIT_PASS,
)


def execute_all(plans: Sequence[Plan], options: Options) -> list[Outcome]:
    """Run every plan; those of one shape one after the other on a cluster they share, which goes away after the last.

    An interrupt ends the suite after the run it struck.

    Raises:
        UsageError: one is to run on a cluster of a name that none can have; nothing was run.
    """
    outcomes: list[Outcome] = []
    names = [plan.shape and (options.cluster_name or plan.shape) for plan in plans]
    for name in filter(None, names):
        record.check_name(name)
    # shape by shape: an idle cluster takes its share of the machine from what is measured on another
    turns = sorted(zip(plans, names, strict=True), key=lambda turn: names.index(turn[1]))
    names = [name for _, name in turns]
    with ExitStack() as undo:
        for position, (plan, name) in enumerate(turns):
            undo.callback(_end, name)  # where an interrupt keeps the last of its runs from doing so
            outcome = execute(plan, replace(options, keep_cluster=name in names[position + 1 :]))
            outcomes.append(outcome)
            if isinstance(outcome.error, KeyboardInterrupt):
                break
    return outcomes


def _end(name: str) -> None:
    """Release a cluster; that it stays was an error of its last run, and hides no verdict."""
    try:
        release(name)
    except SandboxError as error:
        say(str(error))


def release(name: str) -> None:
    """End a cluster if it is this process's; one that was there before, or is kept, stays."""
    known = record.find(name) if name else None
    if known is not None and known.owner == Owner.me():
        cluster.release(name)


def leave(name: str) -> None:
    """Leave a cluster that is this process's to whoever comes: it stays until `down`."""
    known = record.find(name)
    if known is not None and known.owner == Owner.me():
        record.save(replace(known, owner=None))


def exit_code(outcomes: Sequence[Outcome], published: Written | None = None) -> int:
    """The worst of all, a file over several runs that could not be written included; of no run at all, `invalid`."""
    codes = {outcome.exit_code for outcome in outcomes}
    codes |= {errors.EXIT_ENVIRONMENT} if published and published.missing else set()
    return next((code for code in _ORDER if code in codes), errors.EXIT_INVALID)


def publish(outcomes: Sequence[Outcome], runs: Path) -> Written:
    """Write what stands over several runs, and tell a CI system where there is one; what could not be is said."""
    results = [outcome.results for outcome in outcomes]
    published = Written({}, [])
    if len(results) > 1:
        published = suite.write_suite(results, runs, {each.results.run_id: each.folder for each in outcomes})
    try:
        github.announce(results, sys.stderr)
    except OSError as error:
        published.missing.append(f"the step summary, {error.filename}: {error.strerror}")
    for line in published.missing:
        say(f"could not be written: {line}")
    return published


def show(outcomes: Sequence[Outcome], console: Console, runs: Path, published: Written) -> None:
    """Tell a person what came of it, and where it lies."""
    for outcome in outcomes:
        show_one(outcome.results, console, outcome.folder)
    if len(outcomes) > 1:
        folder = runs if INDEX in published.files else None
        suite.render_suite([outcome.results for outcome in outcomes], console, folder)


def show_one(results: Results, console: Console, folder: Path) -> None:
    """Show one run."""
    terminal.render(results, console, folder)


def replay(folder: Path) -> tuple[Results, Written]:
    """Judge a run from its timeline and write its files anew.

    Raises:
        UsageError: there is no timeline in `folder`, or it cannot be trusted.
    """
    events, results = recorded.judged(folder)
    return results, write_all(results, events, folder)


def rewrite(folder: Path) -> Written:
    """Write a run's files from its results as they are; judge first where there are none.

    Raises:
        UsageError: as `replay`.
    """
    if not (folder / RESULTS).is_file():
        return replay(folder)[1]
    return write_all(read_results(folder / RESULTS), recorded.events_of(folder), folder)
