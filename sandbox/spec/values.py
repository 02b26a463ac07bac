"""Values that a user may set on a stack or a guardrail: declared with type and bounds, put into manifests by data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sandbox.errors import UsageError
from sandbox.spec.base import KeyPath, Strict, seconds

Type = Literal["integer", "number", "string", "boolean", "duration"]
_PYTHON: dict[Type, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "duration": (str,),
}


class Value(Strict):
    """One value: what it may be, and what it is when nobody says."""

    type: Type
    description: str = Field(min_length=1)
    default: Any
    minimum: float | None = Field(default=None, description="For integer, number; for duration in seconds.")
    maximum: float | None = Field(default=None, description="As minimum.")
    enum: list[Any] | None = Field(default=None, min_length=1, description="The only values there are.")
    pattern: str | None = Field(default=None, description="For string: a regular expression that matches all of it.")

    @model_validator(mode="after")
    def _default_is_valid(self) -> Value:
        if problem := self.problem(self.default):
            raise ValueError(f"default: {problem}")
        return self

    def problem(self, given: Any) -> str:
        """What is wrong with `given`, with what would be valid; empty when nothing is."""
        right = isinstance(given, _PYTHON[self.type]) and (self.type == "boolean" or not isinstance(given, bool))
        if not right:
            return f"{given!r} is no {self.type}; {self.valid()}"
        size: float | None = None
        if self.type == "duration":
            try:
                size = seconds(given)
            except ValueError as error:
                return str(error)
        elif isinstance(given, int | float):
            size = float(given)
        if size is not None and not self._least <= size <= self._most:
            return f"{given!r} is out of bounds; {self.valid()}"
        if self.enum is not None and given not in self.enum:
            return f"{given!r} is not one of them; {self.valid()}"
        if self.pattern is not None and not re.fullmatch(self.pattern, str(given)):
            return f"{given!r} does not match; {self.valid()}"
        return ""

    def valid(self) -> str:
        """What would be valid, in words: `an integer from 1 to 64`."""
        unit = " s" if self.type == "duration" else ""
        words = [f"valid: a {self.type}" if self.type != "integer" else "valid: an integer"]
        words += [f"from {self.minimum:g}{unit}"] if self.minimum is not None else []
        words += [f"to {self.maximum:g}{unit}"] if self.maximum is not None else []
        words += [f"of {', '.join(map(str, self.enum))}"] if self.enum is not None else []
        words += [f"matching {self.pattern}"] if self.pattern is not None else []
        return " ".join(words)

    @property
    def _least(self) -> float:
        return self.minimum if self.minimum is not None else float("-inf")

    @property
    def _most(self) -> float:
        return self.maximum if self.maximum is not None else float("inf")


Values = dict[str, Value]


class Setting(Strict):
    """Where a value goes: exactly one of `pointer`, `arg`, `env`, `present`."""

    target: str = Field(
        pattern=r"^[A-Z][A-Za-z]+/([a-z0-9.-]+/)?[a-z0-9.-]+$",
        description="The manifest: Kind/name, or Kind/namespace/name.",
    )
    value: str = Field(description="The value's name, or a fact of the cluster: podCIDRs.")
    pointer: str | None = Field(default=None, pattern=r"^(/[^/]+)+$", description="RFC 6901, such as /spec/replicas.")
    arg: str | None = Field(
        default=None, pattern=r"^--[a-z0-9-]+$", description="A flag: the container gets --flag=value."
    )
    env: str | None = Field(default=None, pattern=r"^[A-Z][A-Z0-9_]*$", description="An environment variable.")
    present: bool = Field(default=False, description="The whole manifest is left out when the value is false.")
    unless: int | str | None = Field(
        default=None, description="A value that is put nowhere: the manifest stays as it is."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Setting:
        places = [self.pointer is not None, self.arg is not None, self.env is not None, self.present]
        if sum(places) != 1:
            raise ValueError("write exactly one of pointer, arg, env, present: true")
        return self


FACTS = ("podCIDRs",)


def unknown_values(declared: Values, settings: Iterable[Setting]) -> list[str]:
    """Names that settings use and nobody declares."""
    used = {setting.value for setting in settings}
    return [f"set: {name!r} is no declared value" for name in sorted(used - set(declared) - set(FACTS))]


def problems(declared: Values, given: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    """What is wrong with the values given: (key path below `values`, message); nothing if all is well."""
    known = ", ".join(sorted(declared)) or "none"
    found: list[tuple[KeyPath, str]] = []
    for name, value in given.items():
        if name not in declared:
            found.append(((name,), f"unknown value; known: {known}"))
        elif problem := declared[name].problem(value):
            found.append(((name,), problem))
    return found


def resolved(declared: Values, given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Every declared value, given or default.

    Args:
        declared: what there is to set.
        given: what the user set.
        where: whose values they are, for the message: "stack vllm-sim".

    Raises:
        UsageError: lists every problem with what would be valid.
    """
    if wrong := problems(declared, given):
        raise UsageError(
            f"{len(wrong)} problem{'s' if len(wrong) != 1 else ''} with the values",
            where=where,
            details=[f"values.{'.'.join(map(str, keys))}: {message}" for keys, message in wrong],
            fix="mend the values named; nothing was applied",
        )
    return {name: given.get(name, value.default) for name, value in declared.items()}
