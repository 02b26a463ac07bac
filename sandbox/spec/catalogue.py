"""Specs by name: a user's own `clusters/`, `scenarios/` and `loadtests/` come before the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from sandbox import paths
from sandbox.errors import UsageError
from sandbox.progress import say
from sandbox.spec.loader import Document, load

Model = TypeVar("Model", bound=BaseModel)


def find(room: str, name: str, model: type[Model], *, kind: str) -> Document[Model]:
    """Return `<room>/**/<name>.yaml` as `model`; a path to a file is taken as it is.

    Args:
        room: `clusters`, `scenarios` or `loadtests`, or a folder below one.
        name: the file's stem, or a path.
        model: the spec it is.
        kind: what it is, for messages: "cluster".

    Raises:
        UsageError: there is none, two folders of one catalogue hold it, or it has mistakes.
    """
    if Path(name).is_file():
        return load(Path(name), model)
    found = [file for file in files(room) if file.stem == name]
    if not found:
        known = ", ".join(sorted({file.stem for file in files(room)})) or "none"
        raise UsageError(
            f"there is no {kind} {name!r}", where=f"{room}/", fix=f"use one of: {known}; or a path to a file"
        )
    if len(found) > 1:
        say(f"{kind} {name}: {found[0]} is used; it shadows {found[1]}")
    return load(found[0], model)


def files(room: str) -> list[Path]:
    """Return every YAML file of a room, the user's own first."""
    top, _, below = room.partition("/")
    folders = [folder / below for folder in paths.catalogue(top)]
    return [
        file
        for folder in folders
        for file in sorted(folder.rglob("*.yaml"))
        if "images" not in file.relative_to(folder).parts and "addons" not in file.relative_to(folder).parts
    ]
