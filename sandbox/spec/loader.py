"""YAML in, model out; every mistake at once, each with `file:line:column` and its key path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sandbox.errors import UsageError
from sandbox.spec.base import KeyPath, Mistakes

Model = TypeVar("Model", bound=BaseModel)
_MERGE = "tag:yaml.org,2002:merge"
# What a model alone cannot see, such as a name that nothing has: (value as read) -> (keys, message) of each mistake.
More = Callable[[Any], list[tuple[KeyPath, str]]]


@dataclass(frozen=True)
class Document(Generic[Model]):
    """A loaded spec that still knows where each key stood.

    Attributes:
        model: the validated model.
        path: the file it came from.
        lines: key path -> (line, column), both counted from 1.
    """

    model: Model
    path: Path
    lines: dict[KeyPath, tuple[int, int]]

    def problem(self, keys: KeyPath, message: str) -> str:
        """One line naming file, line, column and key path, for a mistake that only a later check can see."""
        return _line(self.path, self.lines, keys, message)


def load(path: Path, model: type[Model], *, more: More | None = None) -> Document[Model]:
    """Read one YAML file as `model`; `more` is asked whether that breaks or not, so that all mistakes are said at once.

    So is the model's own `contradictions(value)`, where it has one.

    Raises:
        UsageError: the file cannot be read, is not YAML, or breaks the model; lists every mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot be read: {error}", where=str(path), fix="check the path with: sandbox list"
        ) from error
    return load_text(text, path, model, more=more)


def load_text(text: str, path: Path, model: type[Model], *, more: More | None = None) -> Document[Model]:
    """As `load`, for text already in hand; `path` is used in messages only."""
    lines: dict[KeyPath, tuple[int, int]] = {}
    problems: list[str] = []
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise UsageError("is empty", where=str(path), fix=f"write a {model.__name__} spec into it")
        _walk(root, (), lines, problems, path)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _not_yaml(error, path) from error
    except RecursionError as error:
        raise UsageError(
            "is nested too deeply, or holds itself", where=str(path), fix="write it without anchors"
        ) from error
    parsed: Model | None = None
    try:
        parsed = model.model_validate(value)
    except ValidationError as error:
        problems += [_line(path, lines, _keys(keys, lines), words) for keys, words in _mistakes(error)]
    for check in (more, getattr(model, "contradictions", None)):  # a model's own finds what its broken keys would hide
        problems += [_line(path, lines, keys, words) for keys, words in check(value)] if check else []
    problems = list(dict.fromkeys(problems))
    if problems or parsed is None:
        raise UsageError(
            f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in this {model.__name__}",
            where=str(path),
            details=problems,
            fix="mend the lines named, then type the same again",
        )
    return Document(parsed, path, lines)


def _not_yaml(error: yaml.YAMLError, path: Path) -> UsageError:
    """The parser's words, at the place they are about."""
    mark = getattr(error, "problem_mark", None)
    if "single document" in str(getattr(error, "context", "")):
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        return UsageError("holds several documents, and a file is one", where=where, fix="make a file of each")
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    words = [getattr(error, "context", None), getattr(error, "problem", None)]
    return UsageError(
        f"is not valid YAML: {', '.join(filter(None, words)) or error}", where=where, fix="mend the YAML there"
    )


def _walk(
    node: yaml.Node,
    keys: KeyPath,
    lines: dict[KeyPath, tuple[int, int]],
    problems: list[str],
    path: Path,
) -> None:
    lines.setdefault(keys, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            here = (*keys, name)
            lines[here] = (key.start_mark.line + 1, key.start_mark.column + 1)
            if name in seen:  # PyYAML keeps the last one in silence
                problems.append(_line(path, lines, here, "this key stands twice"))
            seen.add(name)
            _walk(value, here, lines, problems, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*keys, index), lines, problems, path)


def _keys(location: tuple[Any, ...], lines: dict[KeyPath, tuple[int, int]]) -> KeyPath:
    """Pydantic's location without the names of union members and validators, which no user wrote."""
    keys: KeyPath = ()
    for position, part in enumerate(location):
        candidate = (*keys, part)
        if candidate in lines or position == len(location) - 1:
            keys = candidate
    return keys


def _line(path: Path, lines: dict[KeyPath, tuple[int, int]], keys: KeyPath, message: str) -> str:
    known = keys
    while known and known not in lines:
        known = known[:-1]
    line, column = lines.get(known, (1, 1))
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "(top)"
    return f"{path}:{line}:{column}: {dotted}: {message}"


def _mistakes(error: ValidationError) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where each mistake is and what it is; a check that found several gives each its own place."""
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Mistakes):
            yield from (((*item["loc"], *keys), words) for keys, words in cause.found)
        else:
            yield item["loc"], _message(item)


def _message(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "is missing"
    message: str = item["msg"]
    return message.removeprefix("Value error, ")
