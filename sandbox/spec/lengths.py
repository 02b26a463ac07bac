"""How long things are: tokens of prompts and answers, and the pauses of people who read them."""

from __future__ import annotations

import math
import random
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sandbox.spec.base import Duration, Strict


class Fixed(Strict):
    """Always the same number of tokens."""

    kind: Literal["fixed"]
    tokens: int = Field(ge=1, le=1_000_000)

    def draw(self, dice: random.Random) -> int:  # noqa: ARG002 - the same call for every distribution
        """Return one length, in tokens."""
        return self.tokens


class Uniform(Strict):
    """Every length from `min` to `max`, both included, equally often."""

    kind: Literal["uniform"]
    min: int = Field(ge=1)
    max: int = Field(ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self

    def draw(self, dice: random.Random) -> int:
        """Return one length, in tokens."""
        return dice.randint(self.min, self.max)


class Lognormal(Strict):
    """Many short, few long: `mean` tokens before clipping to `min`..`max`; `sigma` of the logarithm."""

    kind: Literal["lognormal"]
    mean: float = Field(gt=0)
    sigma: float = Field(gt=0, le=3)
    min: int = Field(default=1, ge=1)
    max: int = Field(ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> Lognormal:
        if not self.min <= self.mean <= self.max:
            raise ValueError(f"mean ({self.mean:g}) does not lie between min ({self.min}) and max ({self.max})")
        return self

    def draw(self, dice: random.Random) -> int:
        """Return one length, in tokens."""
        mu = math.log(self.mean) - self.sigma**2 / 2
        return min(self.max, max(self.min, round(dice.lognormvariate(mu, self.sigma))))


Lengths = Annotated[Fixed | Uniform | Lognormal, Field(discriminator="kind")]


class FixedPause(Strict):
    """Always the same time."""

    kind: Literal["fixed"]
    time: Duration = Field(ge=0, le=3600)

    def draw(self, dice: random.Random) -> float:  # noqa: ARG002 - the same call for every distribution
        """Return one pause, in seconds."""
        return self.time


class UniformPause(Strict):
    """Any time from `min` to `max`."""

    kind: Literal["uniform"]
    min: Duration = Field(ge=0)
    max: Duration = Field(ge=0, le=3600)

    @model_validator(mode="after")
    def _ordered(self) -> UniformPause:
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}s) is above max ({self.max:g}s)")
        return self

    def draw(self, dice: random.Random) -> float:
        """Return one pause, in seconds."""
        return dice.uniform(self.min, self.max)


class ExponentialPause(Strict):
    """Memoryless, as between independent people: `mean`, and never more than `max`."""

    kind: Literal["exponential"]
    mean: Duration = Field(gt=0)
    max: Duration = Field(default=3600.0, gt=0, le=3600, json_schema_extra={"default": "3600s"})

    def draw(self, dice: random.Random) -> float:
        """Return one pause, in seconds."""
        return min(self.max, dice.expovariate(1 / self.mean))


def _fixed(value: Any) -> Any:
    return {"kind": "fixed", "time": value} if isinstance(value, str) else value


Pause = Annotated[
    Annotated[FixedPause | UniformPause | ExponentialPause, Field(discriminator="kind")],
    BeforeValidator(_fixed, json_schema_input_type=Any),
]
