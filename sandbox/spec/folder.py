"""Folders of scenarios: which files lie there, and whether a YAML file is meant as a scenario, mistakes and all."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import yaml

from sandbox.errors import UsageError
from sandbox.spec.base import API_VERSION

KIND = "Scenario"
_GROUP = "sandbox/"
_MOST = 1 << 20  # characters; no scenario has so many
OTHER_KINDS = ("Cluster", "Stack", "Guardrail", "Attempt", "Profile", "Results")
Meant = Literal["scenario", "another kind", "something else"]
_SUFFIXES = frozenset({".yaml", ".yml"})
_NEAR = 0.75
_TELLING = frozenset(
    {"slo", "steadyState", "load", "workloads", "guardrails", "attacks", "faults", "validity", "stack"}
)
_ENOUGH = 3  # of those keys, in a document that says of no kind that it is it
# Where YAML breaks off: what is left of it to read.
_WORDS = re.compile(r"""\bsandbox/v1\b|^[\s{"']*kind["']?\s*:\s*["']?Scenario\b""", re.MULTILINE | re.IGNORECASE)
# Without one of these it is not worth parsing: other people's repositories hold thousands of YAML files.
_HINT = re.compile(r"kind|apiversion|scenario|sandbox|slo|steadystate", re.IGNORECASE)
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def is_yaml(path: Path) -> bool:
    """Whether a file's name ends as YAML's do, in whatever case."""
    return path.suffix.lower() in _SUFFIXES


def yaml_files(folder: Path) -> list[Path]:
    """Every YAML file below a folder, in order; links are followed, and one that leads nowhere is a file too.

    Raises:
        UsageError: a folder below it cannot be read.
    """

    def unread(error: OSError) -> None:
        fix = "give yourself the right to read it, or name the files"
        raise UsageError(f"cannot be read: {error.strerror}", where=str(error.filename), fix=fix) from error

    found: list[Path] = []
    seen: set[Path] = set()
    for at, below, names in os.walk(folder, onerror=unread, followlinks=True):
        real = Path(at).resolve()
        if real in seen:  # a link back to a folder above it
            below.clear()
            continue
        seen.add(real)
        found += [Path(at) / name for name in names if is_yaml(Path(name))]
    return sorted(found)


def meant_as(path: Path) -> Meant:
    """What the author of a YAML file had in mind, as far as its kind and apiVersion, or else its keys, tell.

    A typo in either is no other thing: `kind: Senario`, `sandbox/v2`. A whole apiVersion of somebody else's is.

    Raises:
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8", "replace")
    if not _HINT.search(text):
        return "something else"
    said: set[Meant] = set()
    whole = len(text) <= _MOST  # else it is too long to be parsed in passing
    try:
        for node in _documents(text) if whole else ():
            said.add(_meant(node))
    except (yaml.YAMLError, RecursionError, ValueError):
        whole = False
    if not whole and _WORDS.search(text):
        return "scenario"
    return "scenario" if "scenario" in said else "another kind" if "another kind" in said else "something else"


def refuse_stranger(path: Path, folder: str) -> None:
    """Every YAML file of a folder is run or is an error: one that is left out would look like one that passed.

    Raises:
        UsageError: it is something else than a scenario.
    """
    with suppress(OSError):  # said where it is loaded
        if not path.read_bytes().strip() or (meant := meant_as(path)) == "scenario":
            return
        what = "is of another kind than Scenario" if meant == "another kind" else "is no scenario"
        fix = f"move it out of {folder}, or name the scenarios one by one"
        words = (
            "; meant as one, it needs `apiVersion: sandbox/v1` and `kind: Scenario`" if meant != "another kind" else ""
        )
        raise UsageError(what, where=str(path), fix=f"{fix}{words}")


def _documents(text: str) -> Iterator[yaml.Node]:
    """Each document as nodes: a tag that only its own program knows stops nobody."""
    loader = _LOADER(text)
    try:
        while loader.check_node():
            yield loader.get_node()
    finally:
        loader.dispose()


def _meant(node: yaml.Node) -> Meant:
    if not isinstance(node, yaml.MappingNode):
        return "something else"
    values = {key.value: value.value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    version, kind = (_said(values, name) for name in ("apiVersion", "kind"))
    ours = version is not None and version.lower().startswith(_GROUP)
    nearly = kind is not None and _near(kind, KIND)
    if ours:
        return "another kind" if kind in OTHER_KINDS else "scenario"
    if version is None and kind is None:
        return "scenario" if len(_TELLING & values.keys()) >= _ENOUGH else "something else"
    if version is None or "/" not in version or _near(version, API_VERSION):  # no group of somebody else's
        return (
            "scenario"
            if nearly or (kind is None and version is not None and _near(version, API_VERSION))
            else "something else"
        )
    return "something else"


def _said(values: dict[str, object], name: str) -> str | None:
    """The value of a key, or of the one that is nearly called so."""
    key = name if name in values else next(iter(difflib.get_close_matches(name, values, n=1, cutoff=_NEAR)), None)
    value = values.get(key) if key else None
    return value.strip() if isinstance(value, str) else None


def _near(word: str, wanted: str) -> bool:
    return difflib.SequenceMatcher(None, word.lower(), wanted.lower()).ratio() >= _NEAR
