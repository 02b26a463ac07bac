"""Where a locustfile lies that a load names."""

from __future__ import annotations

from pathlib import Path

from sandbox import paths
from sandbox.errors import UsageError

_ROOM = "loadtests"


def locate(name: str) -> Path:
    """Return the file: `name` as a path, as `locust -f` takes it; else one of `loadtests/`, with or without that word.

    Raises:
        UsageError: there is no such file.
    """
    given = Path(name)
    inside = given.relative_to(_ROOM) if given.parts[:1] == (_ROOM,) else given
    folders = [] if given.is_absolute() or ".." in given.parts else paths.catalogue(_ROOM)
    try:
        for file in (given, *(folder / inside for folder in folders)):
            if file.is_file():
                return file.resolve()
    except OSError:  # no name of a file at all: too long
        pass
    beside = sorted({file.name for folder in paths.catalogue(_ROOM) for file in folder.glob("*.py")})
    raise UsageError(
        f"there is no locustfile {name!r}",
        where=str(Path.cwd()),
        fix=f"give a path, or one of {_ROOM}/: {', '.join(beside) or 'none is there'}",
    )
