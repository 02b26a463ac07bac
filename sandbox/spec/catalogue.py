"""Specs by name: a user's own `clusters/`, `scenarios/` and `loadtests/` come before the shipped ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel

from sandbox import paths
from sandbox.errors import UsageError
from sandbox.progress import say
from sandbox.spec.base import reach
from sandbox.spec.folder import yaml_files
from sandbox.spec.loader import Document, load

Model = TypeVar("Model", bound=BaseModel)


def find(room: str, name: str, model: type[Model], *, kind: str) -> Document[Model]:
    """Return the spec of that name as `model`; a path to a file is taken as it is.

    Raises:
        UsageError: as `locate`, or it has mistakes.
    """
    return load(Path(name) if Path(name).is_file() else locate(room, name, kind=kind), model)


def locate(room: str, name: str, *, kind: str) -> Path:
    """Return the file in `room` whose `metadata.name` is `name`; where none has it, the file `<name>.yaml`.

    Args:
        room: `clusters`, `scenarios` or `loadtests`, or a folder below one.
        name: as `names` shows it, or a file's stem.
        kind: what it is, for messages: "cluster".

    Raises:
        UsageError: there is none, or two files of one folder have that name.
    """
    there = files(room)
    found = [file for file in there if name_of(file) == name] or [file for file in there if file.stem == name]
    if not found:
        known = ", ".join(names(room)) or "none"
        raise UsageError(
            f"there is no {kind} {name!r}", where=f"{room}/", fix=f"use one of: {known}; or a path to a file"
        )
    first = [file for file in found if _home(room, file) == _home(room, found[0])]
    if len(first) > 1:
        raise UsageError(
            f"{len(first)} files are the {kind} {name!r}",
            where=str(first[0]),
            details=[str(file) for file in first],
            fix="give each a metadata.name of its own",
        )
    if len(found) > 1:
        _say_once(f"{kind} {name}: {found[0]} is used; it shadows {found[1]}")
    return found[0]


@cache  # a name is looked up when it is checked, and again when it is used
def _say_once(message: str) -> None:
    say(message)


def names(room: str) -> list[str]:
    """Every name of a room that `locate` takes and `sandbox list` shows, each once, in order."""
    return sorted({name_of(file) for file in files(room)})


def name_of(file: Path) -> str:
    """A spec's `metadata.name`; the file's stem where that cannot be read."""
    return _name_in(file, file.stat().st_mtime_ns)


@cache  # a folder is looked through once per name
def _name_in(file: Path, changed: int) -> str:  # noqa: ARG001 - `changed` makes it another question
    try:
        name = reach(yaml.safe_load(file.read_text(encoding="utf-8")), "metadata", "name")
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return file.stem
    return name if isinstance(name, str) else file.stem


def files(room: str) -> list[Path]:
    """Return every YAML file of a room, the user's own first."""
    return [
        file
        for folder in _folders(room)
        for file in yaml_files(folder)
        if "images" not in file.relative_to(folder).parts and "addons" not in file.relative_to(folder).parts
    ]


def _folders(room: str) -> list[Path]:
    top, _, below = room.partition("/")
    return [folder / below for folder in paths.catalogue(top)]


def _home(room: str, file: Path) -> Path:
    """The user's own folder or the shipped one, whichever holds the file."""
    return next(folder for folder in _folders(room) if file.is_relative_to(folder))
