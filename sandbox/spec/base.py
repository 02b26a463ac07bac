"""The pieces every spec is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

KeyPath = tuple[str | int, ...]
API_VERSION: Literal["sandbox/v1"] = "sandbox/v1"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(us|ms|s|m|h)$")  # editors read it too: no named groups
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Mistakes(ValueError):
    """Several mistakes that one check found, each with the keys below what was checked.

    Args:
        found: (keys, message) of each.
    """

    def __init__(self, found: Sequence[tuple[KeyPath, str]]) -> None:
        self.found = list(found)
        super().__init__("; ".join(message for _, message in found))


def reach(raw: Any, *keys: str | int) -> Any:
    """What lies below `keys` in a document that no model vouches for; None where the way ends."""
    for key in keys:
        if isinstance(raw, dict):
            raw = raw.get(key)
        elif isinstance(raw, list) and isinstance(key, int) and key < len(raw):
            raw = raw[key]
        else:
            return None
    return raw


class Strict(BaseModel):
    """A spec: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def seconds(value: object) -> float:
    """`60s`, `500ms`, `2m`, `1h` as seconds. A bare number is refused: its unit would be a guess."""
    if isinstance(value, str) and (match := _DURATION.match(value.strip())):
        return float(match[1]) * _SECONDS[match[2]]
    raise ValueError(f"{value!r} is not a duration; write it with its unit, such as 500ms, 60s or 2m")


def duration(value: float) -> str:
    """Seconds as a duration that `seconds` reads back exactly: `60s`, `0.0005s`."""
    return f"{Decimal(str(value)):f}".removesuffix(".0") + "s"


# Seconds in Python; in YAML and JSON a number with its unit, so that what was dumped can be read again.
Duration = Annotated[
    float,
    BeforeValidator(seconds),
    Field(allow_inf_nan=False),
    PlainSerializer(duration, return_type=str, when_used="json"),
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
