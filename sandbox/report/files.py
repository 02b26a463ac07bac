"""`results.json` and how every file of a report is written: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import ValidationError

from sandbox.errors import EnvironmentMissing, UsageError
from sandbox.spec.results import Results

RESULTS, JUNIT, HTML, INDEX = "results.json", "junit.xml", "report.html", "index.html"
LOAD, METRICS = "load.json", "metrics.om"
_MODE = 0o644


def make_folder(folder: Path) -> Path:
    """Make a run's folder, which must not be there yet.

    Raises:
        EnvironmentMissing: it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        words = f"a run's folder cannot be made: {error.strerror}"
        raise EnvironmentMissing(words, where=str(folder), fix="name a folder you can write to: --runs DIR") from error
    return folder


def write_atomic(path: Path, content: str) -> Path:
    """Write UTF-8 text beside `path`, then rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(content)
        partial.chmod(_MODE)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_results(results: Results, path: Path) -> Path:
    """Write `results.json`, by alias, indented for people."""
    return write_atomic(path, results.model_dump_json(by_alias=True, indent=2) + "\n")


def read_results(path: Path) -> Results:
    """Read `results.json` (or the one in the folder given) and check it.

    Raises:
        UsageError: it cannot be read or is no Results; names every mistake.
    """
    if path.is_dir():
        path = path / RESULTS
    fix = f"judge the run again, no cluster needed: sandbox judge {path.parent}"
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or '(top)'}: {item['msg']}" for item in error.errors()]
        raise UsageError("is not the results of a run", where=str(path), details=problems, fix=fix) from error
