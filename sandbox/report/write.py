"""All files of a run's report, each on its own: one that fails takes none of the others with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from sandbox.errors import EnvironmentMissing
from sandbox.report.files import HTML, JUNIT, LOAD, METRICS, RESULTS, write_results
from sandbox.report.html import write_html
from sandbox.report.junit import write_junit
from sandbox.report.load import write_load
from sandbox.report.openmetrics import write_metrics
from sandbox.spec.results import Results
from sandbox.timeline import Event, LoadStarted, Request


class Written(NamedTuple):
    """What lies there now, by name, and what was to lie there and does not: a line with the reason of each."""

    files: dict[str, Path]
    missing: list[str]

    def missed(self, folder: Path) -> EnvironmentMissing | None:
        """The error that it is where a file of the run in `folder` is missing; None where all are there."""
        if not self.missing:
            return None
        fix = f"mend what is named, then write them anew from the timeline: sandbox judge {folder}"
        many = f"{len(self.missing)} report file{'s' if len(self.missing) != 1 else ''} could not be written"
        return EnvironmentMissing(many, details=self.missing, fix=fix)


def write_all(results: Results, events: Iterable[Event], folder: Path, *, html: bool = True) -> Written:
    """Write `results.json`, `junit.xml`, `metrics.om`, `report.html` and, of a load, `load.json` into `folder`."""
    timeline = list(events)
    writers: dict[str, Callable[[Path], object]] = {
        RESULTS: lambda path: write_results(results, path),
        JUNIT: lambda path: write_junit(results, path),
        METRICS: lambda path: write_metrics(results, timeline, path),
    }
    if html:
        writers[HTML] = lambda path: write_html(results, timeline, path)
    if any(isinstance(event, LoadStarted | Request) for event in timeline):
        writers[LOAD] = lambda path: write_load(results, timeline, path)
    return write_each({folder / name: write for name, write in writers.items()})


def write_each(writers: Mapping[Path, Callable[[Path], object]]) -> Written:
    """Write each file, whatever becomes of the others."""
    written = Written({}, [])
    for path, write in writers.items():
        try:
            write(path)
            written.files[path.name] = path
        except Exception as error:  # noqa: BLE001 - whatever broke one file must not cost the others
            older = "; what lies there is older" if path.is_file() else ""
            written.missing.append(f"{path}: {_reason(error)}{older}")
    return written


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
