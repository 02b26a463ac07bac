"""When requests start, and what each one says: both follow from the seed alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from sandbox.spec.profile import Profile
from sandbox.spec.scenario import Arrivals


def schedule(arrivals: Arrivals, duration: float) -> Iterator[float]:
    """Yield the open-loop send times, seconds from the first one, which lies at 0; all below `duration`.

    Constant: every 1/rate. Poisson: independent exponential gaps of mean 1/rate.
    """
    if arrivals.rate is None:
        raise ValueError(f"{arrivals.process} arrivals have no schedule: users wait for their answers")
    dice = random.Random(arrivals.seed)  # noqa: S311 - reproducible on purpose, nothing secret
    number, at = 0, 0.0
    while at < duration:
        yield at
        number += 1
        at = number / arrivals.rate if arrivals.process == "constant" else at + dice.expovariate(arrivals.rate)


def bodies(profile: Profile, model: str, seed: int) -> Iterator[bytes]:
    """Yield request bodies without end; the n-th is the same for the same profile, model and seed."""
    dice = random.Random(f"bodies/{seed}")  # noqa: S311 - reproducible on purpose, nothing secret
    fixed: dict[str, Any] = {"model": model, "temperature": profile.temperature, **profile.extra_body}
    if profile.stream:
        fixed |= {"stream": True, "stream_options": {"include_usage": True}}
    opening = [{"role": "system", "content": profile.system}] if profile.system else []
    while True:
        prompt = dice.choice(profile.prompts)
        body = fixed | {"max_tokens": profile.max_tokens.draw(dice)}
        if profile.path == "chat":
            body["messages"] = [*opening, {"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        yield json.dumps(body, separators=(",", ":")).encode()
