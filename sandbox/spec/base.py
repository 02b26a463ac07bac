"""The pieces every spec is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

KeyPath = tuple[str | int, ...]
API_VERSION: Literal["sandbox/v1"] = "sandbox/v1"
_DURATION = re.compile(r"^(?P<number>\d+(?:\.\d+)?)(?P<unit>us|ms|s|m|h)$")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Mistakes(ValueError):
    """Several mistakes that one check found, each with the keys below what was checked.

    Args:
        found: (keys, message) of each.
    """

    def __init__(self, found: Sequence[tuple[KeyPath, str]]) -> None:
        self.found = list(found)
        super().__init__("; ".join(message for _, message in found))


class Strict(BaseModel):
    """A spec: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def seconds(value: object) -> float:
    """`60s`, `500ms`, `2m`, `1h` as seconds. A bare number is refused: its unit would be a guess."""
    if isinstance(value, str) and (match := _DURATION.match(value.strip())):
        return float(match["number"]) * _SECONDS[match["unit"]]
    if isinstance(value, float):
        return value  # already parsed: a model that is validated again
    raise ValueError(f"{value!r} is not a duration; write it with its unit, such as 500ms, 60s or 2m")


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema({"type": "string", "pattern": _DURATION.pattern, "examples": ["500ms", "60s", "2m"]}),
]

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Metadata(Strict):
    """Who this spec is."""

    name: Name = Field(description="Unique within its kind; letters, digits and hyphens.")
    description: str = Field(min_length=1, description="One sentence for a person who has never seen it.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Free words for people and programs, such as {family: chaos}."
    )
