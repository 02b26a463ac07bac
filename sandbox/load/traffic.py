"""What each request says. The n-th conversation follows from seed and n alone, whoever sends it."""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandbox.load.plan import PlannedShare
from sandbox.spec.profile import Profile
from sandbox.spec.trace import Row


@dataclass(frozen=True)
class Turn:
    """One request to be sent.

    Attributes:
        body: JSON.
        wait: seconds between the end of the turn before and this one; 0 for the first.
        keep: the turn after this one needs to know what was answered.
    """

    body: bytes
    wait: float = 0.0
    keep: bool = False


@dataclass(frozen=True)
class Answer:
    """What came back; `text` and `tool_calls` only where the turn said `keep`."""

    outcome: str
    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


Conversation = Generator[Turn, Answer, None]
"""Yields turns and is sent the answer of each; it ends when nobody has more to say."""


class Traffic:
    """All that a load sends."""

    def __init__(self, shares: Sequence[PlannedShare], seed: int) -> None:
        """Make ready; the same shares and seed give the same traffic."""
        self._shares = list(shares)
        self._weights = [share.weight for share in shares]
        self._seed = seed

    def begin(self, number: int, row: Row | None = None) -> tuple[int, Conversation]:
        """Return which share the `number`-th conversation belongs to, and the conversation.

        `row`: the line of a trace that it follows, for its lengths.
        """
        dice = random.Random(f"{self._seed}/{number}")  # noqa: S311 - reproducible on purpose, nothing secret
        which = dice.choices(range(len(self._shares)), self._weights)[0] if len(self._shares) > 1 else 0
        share = self._shares[which]
        return which, _converse(share.profile, share.model, dice, row)


def _converse(profile: Profile, model: str, dice: random.Random, row: Row | None) -> Conversation:
    fixed: dict[str, Any] = {"model": model, "temperature": profile.temperature, **profile.extra_body}
    if profile.stream:
        fixed |= {"stream": True, "stream_options": {"include_usage": True}}
    opening = [{"role": "system", "content": profile.system}] if profile.system else []
    prompt = dice.choice(profile.prompts)
    body = fixed | {"max_tokens": row.output if row else profile.max_tokens.draw(dice)}
    if profile.path == "chat":
        body["messages"] = [*opening, {"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    yield Turn(json.dumps(body, separators=(",", ":")).encode())
