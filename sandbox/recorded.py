"""A run that is over, as it lies in its folder: read and judged again, or refused in words."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from sandbox.errors import UsageError
from sandbox.judge import judge
from sandbox.spec.results import Results
from sandbox.timeline import Event, read

FOLDER = "give the folder of a run, such as runs/<id>"
_AGAIN = "judge it with the version that wrote it, or run the scenario again"
_MISTAKES = 5


def events_of(folder: Path, fix: str = FOLDER) -> list[Event]:
    """Return the events of the run in a folder; `fix`: what to say where there is none.

    Raises:
        UsageError: there is no timeline, or one that this version cannot read: torn, or of another grammar.
    """
    path = folder / "timeline.jsonl"
    if not path.is_file():
        raise UsageError("holds no timeline.jsonl", where=str(folder), fix=fix)
    try:
        return list(read(path))
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        raise UsageError(f"cannot be judged: {what}", where=where, fix=_AGAIN) from error


def judged(folder: Path, fix: str = FOLDER) -> tuple[list[Event], Results]:
    """Return the events of the run in a folder, and what they prove.

    Raises:
        UsageError: as `events_of`; or it tells of no run, or of one whose scenario this version does not know.
    """
    events, path = events_of(folder, fix), str(folder / "timeline.jsonl")
    try:
        return events, judge(events)
    except ValidationError as error:
        details = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:_MISTAKES]]
        what = "cannot be judged: its scenario has what this version does not know"
        raise UsageError(what, where=path, details=details, fix=_AGAIN) from error
    except ValueError as error:
        raise UsageError(f"cannot be judged: {error}", where=path, fix=_AGAIN) from error
