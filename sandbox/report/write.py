"""All files of a run's report, each on its own: one that fails takes none of the others with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sandbox.progress import say
from sandbox.report.files import HTML, JUNIT, LOAD, METRICS, RESULTS, write_results
from sandbox.report.html import write_html
from sandbox.report.junit import write_junit
from sandbox.report.load import write_load
from sandbox.report.openmetrics import write_metrics
from sandbox.spec.results import Results
from sandbox.timeline import Event, LoadStarted, Request


def write_all(results: Results, events: Iterable[Event], folder: Path) -> dict[str, Path]:
    """Write `results.json`, `junit.xml`, `metrics.om`, `report.html` and, of a load, `load.json` into `folder`.

    Returns name -> path of what was written; a name that is missing failed, and was said on stderr.
    """
    timeline = list(events)
    writers: dict[str, Callable[[Path], Path]] = {
        RESULTS: lambda path: write_results(results, path),
        JUNIT: lambda path: write_junit(results, path),
        METRICS: lambda path: write_metrics(results, timeline, path),
        HTML: lambda path: write_html(results, timeline, path),
    }
    if any(isinstance(event, LoadStarted | Request) for event in timeline):
        writers[LOAD] = lambda path: write_load(results, timeline, path)
    written: dict[str, Path] = {}
    for name, write in writers.items():
        try:
            written[name] = write(folder / name)
        except Exception as error:  # noqa: BLE001 - whatever broke one file must not cost the others
            say(f"{folder / name} could not be written: {type(error).__name__}: {error}")
    return written
