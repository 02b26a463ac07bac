"""Made-up text of so many tokens, quickly: slices of one long tape that was shuffled once.

How many tokens a text has depends on the model's tokenizer, which a load client does not have. What is counted here
is an estimate, calibrated against public tokenizers; docs/reference/profiles.md says how far off it is. What a server
reports as `usage.prompt_tokens` is the truth.
"""

from __future__ import annotations

import json
import random
import re
from array import array
from collections.abc import Sequence

TAPE = 1 << 15  # tokens; a longer text begins the tape again
_TOKEN = re.compile(r"\s*(?:[^\W\d_]{1,9}|\d{1,3}|(?:[^\w\s]|_){1,3})|\s+\Z")
_MARKED_FROM = 12  # tokens; a shorter text has no room for a number of its own
_MIX = 0x9E3779B97F4A7C15  # Fibonacci hashing: neighbouring ids begin far apart


def estimate(text: str) -> int:
    """About how many tokens `text` has: a word of up to nine letters, three digits or three signs are one."""
    return len(_TOKEN.findall(text))


def escaped(text: str) -> bytes:
    """`text` as it stands between the quotes of a JSON string; ASCII."""
    return json.dumps(text)[1:-1].encode()


class Text:
    """Text cut from `pieces`, escaped for JSON. The same pieces and seed give the same text.

    Pieces of one line are put together with a space, longer ones with a blank line.
    """

    def __init__(self, pieces: Sequence[str], seed: int) -> None:
        """Shuffle the pieces into a tape of `TAPE` tokens."""
        between = "\n\n" if any("\n" in piece for piece in pieces) else " "
        self._between = escaped(between)
        dice = random.Random(f"{seed}/text")  # noqa: S311 - reproducible on purpose, nothing secret
        cut = [[escaped(token) for token in _TOKEN.findall(between + piece)] for piece in pieces]
        tape: list[bytes] = []
        starts = array("L")
        while len(tape) < TAPE:
            dice.shuffle(cut)
            for tokens in cut:
                starts.append(len(tape))
                tape += tokens
        self._tokens = len(tape)
        self._starts = starts
        self._ends = array("L", [0])
        at = 0
        for token in tape:
            at += len(token)
            self._ends.append(at)
        self._tape = b"".join(tape)

    def made(self, dice: random.Random, tokens: int) -> bytes:
        """About `tokens` tokens that no other text begins with: no cache of prefixes knows them."""
        start = self._starts[int(dice.random() * len(self._starts))]
        if tokens < _MARKED_FROM:
            return self._cut(start, tokens)[len(self._between) :]
        mark = b"#%d" % dice.getrandbits(30)
        return mark + self._cut(start, tokens - _cost(mark))

    def block(self, number: int, tokens: int) -> bytes:
        """The first `tokens` tokens of the text that has this number; the same wherever it is asked for."""
        mark = b"%b#%d" % (self._between, number)
        start = self._starts[((number * _MIX) >> 20) % len(self._starts)]
        return mark + self._cut(start, max(0, tokens - _cost(mark) + 1))

    def _cut(self, start: int, tokens: int) -> bytes:
        end = start + tokens
        if end <= self._tokens:
            return self._tape[self._ends[start] : self._ends[end]]
        parts = [self._tape[self._ends[start] :]]
        turns, rest = divmod(end - self._tokens, self._tokens)
        parts += [self._tape] * turns
        parts.append(self._tape[: self._ends[rest]])
        return b"".join(parts)


def _cost(mark: bytes) -> int:
    return 1 + (len(mark) + 1) // 3
