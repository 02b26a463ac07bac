"""The catalogue of attempts: one YAML file each in `catalogue/`, base manifests in `catalogue/bases/`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sandbox.errors import UsageError
from sandbox.kube.manifests import put
from sandbox.kube.resources import Object
from sandbox.spec.attack import Attempt, Create
from sandbox.spec.loader import load

FOLDER = Path(__file__).parent / "catalogue"
_REFERENCE = re.compile(r"\$\(([A-Za-z]+)\)")


def attempts(names: Iterable[str] = ("all",), folder: Path = FOLDER) -> list[Attempt]:
    """The attempts of those ids, names or numbers, in the catalogue's order; `all` for every one.

    Raises:
        UsageError: an id is unknown (names those there are), or a file has mistakes.
    """
    known = sorted((load(file, Attempt).model for file in folder.glob("*.yaml")), key=lambda each: each.number)
    wanted = list(dict.fromkeys(str(name) for name in names))
    if "all" in wanted:
        return known
    chosen = [each for each in known if {each.id, each.metadata.name, str(each.number)} & set(wanted)]
    strange = set(wanted).difference(*({each.id, each.metadata.name, str(each.number)} for each in known))
    if strange:
        raise UsageError(
            f"unknown attempts: {', '.join(sorted(strange))}",
            where="attacks",
            fix=f"use all, or some of: {', '.join(each.id for each in known)}",
        )
    return chosen


def build(create: Create, variables: Mapping[str, str], folder: Path = FOLDER) -> Object:
    """The object that a `create` makes: its base with its changes, references filled in.

    Raises:
        UsageError: there is no such base, a pointer leads nowhere, or a reference is unknown.
    """
    file = folder / "bases" / f"{create.base}.yaml"
    if not file.is_file():
        there = ", ".join(sorted(each.stem for each in file.parent.glob("*.yaml")))
        raise UsageError(f"there is no base {create.base!r}", where=str(file.parent), fix=f"use one of: {there}")
    thing: Object = yaml.safe_load(file.read_text(encoding="utf-8"))
    for pointer, value in create.set.items():
        put(thing, pointer, value, where=str(file))
    filled: Object = fill(thing, variables)
    return filled


def fill(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with every `$(name)` in its strings replaced, at any depth.

    Raises:
        UsageError: a name is unknown; names those there are.
    """

    def one(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UsageError(
                f"unknown reference $({match[1]})", where="attacks", fix=f"use one of: {', '.join(sorted(variables))}"
            )
        return variables[match[1]]

    if isinstance(value, str):
        return _REFERENCE.sub(one, value)
    if isinstance(value, dict):
        return {key: fill(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, variables) for item in value]
    return value
