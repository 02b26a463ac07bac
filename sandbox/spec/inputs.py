"""What the files that a load names hold: recorded with a run, so that another one can be compared by content."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from sandbox.spec import locustfile, profile, trace
from sandbox.spec.loadtest import Load

Inputs = dict[str, dict[str, str]]
_SHOWN = 120  # characters; of what is longer its hash stands
_HASH = "sha256:"
_OF_NO_REQUEST = {"api_version", "kind", "metadata", "source"}


def inputs_of(load: Load | None) -> Inputs:
    """`profile NAME`, `locustfile NAME` and `trace NAME`, each with its parts: key -> text, or the hash of a long one.

    Of a locustfile the parts are its own text and that of each module beside it that it imports.

    Raises:
        UsageError: one of them is not there, or has a mistake.
    """
    if load is None:
        return {}
    found = {f"profile {share.profile}": _profile(share.profile) for share in load.shares}
    if load.locustfile is not None:
        found[f"locustfile {load.locustfile}"] = dict(_modules(locustfile.locate(load.locustfile)))
    if load.arrivals.trace is not None:
        content = trace.locate(load.arrivals.trace).read_bytes()
        found[f"trace {load.arrivals.trace}"] = {"content": _hash(content)}
    return found


def is_hash(text: object) -> bool:
    """Whether it stands for a longer text."""
    return isinstance(text, str) and text.startswith(_HASH)


def _profile(name: str) -> dict[str, str]:
    """Every key of a profile that decides what is sent, its prompts and words read in."""
    said = profile.resolve(name).model_dump(mode="json", by_alias=True, exclude=_OF_NO_REQUEST)
    texts = {key: json.dumps(value, sort_keys=True) for key, value in said.items()}
    return {key: text if len(text) <= _SHOWN else _hash(text.encode()) for key, text in texts.items()}


def _modules(file: Path) -> Iterator[tuple[str, str]]:
    """A locustfile and what it imports from its own folder, from which Locust imports too."""
    home, todo, seen = file.parent, [file], {file}
    while todo:
        path = todo.pop()
        content = path.read_bytes()
        yield str(path.relative_to(home)), _hash(content)
        for name in _imported(content):
            there = home.joinpath(*name.split("."))
            top = home / name.partition(".")[0]
            beside = [there.with_name(f"{there.name}.py"), *sorted(top.rglob("*.py") if top.is_dir() else ())]
            new = [each for each in beside if each.is_file() and each not in seen]
            seen.update(new)
            todo += new


def _imported(content: bytes) -> set[str]:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # said where it is loaded
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            head = f"{node.module}." if node.module else ""
            names |= {*([node.module] if node.module else []), *(f"{head}{alias.name}" for alias in node.names)}
    return {name for name in names if "*" not in name}


def _hash(content: bytes) -> str:
    return f"{_HASH}{hashlib.sha256(content).hexdigest()}"
