"""What each request says. The n-th conversation follows from seed and n alone, whoever sends it.

Bodies are put together from parts that were turned into JSON once: an open loop makes hundreds a second, on the core
that also reads the answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from sandbox.load.plan import PlannedShare
from sandbox.load.text import Text, escaped, estimate
from sandbox.spec.profile import Conversation as Talk
from sandbox.spec.profile import Tools
from sandbox.spec.trace import Row

BLOCK = 512  # tokens that one hash of a Mooncake trace stands for
_BREAK = escaped("\n\n")


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
        self._scripts = [_Script(share, seed) for share in shares]
        self._places = range(len(self._scripts))
        self._weights = list(accumulate(share.weight for share in shares))
        self._seed = seed

    def begin(self, number: int, row: Row | None = None) -> tuple[int, Conversation]:
        """Return which share the `number`-th conversation belongs to, and the conversation.

        `row`: the line of a trace that it follows, for its lengths. It is one request, as it was recorded: turns,
        steps and shared prefixes of the profile are left out, since the trace has its own.
        """
        dice = random.Random(f"{self._seed}/{number}")  # noqa: S311 - reproducible on purpose, nothing secret
        which = dice.choices(self._places, cum_weights=self._weights)[0] if len(self._scripts) > 1 else 0
        return which, self._scripts[which].begin(dice, row)


class _Script:
    """How the conversations of one share go, with all that does not change turned into JSON already."""

    def __init__(self, share: PlannedShare, seed: int) -> None:
        self._profile = profile = share.profile
        self._seed = seed
        fixed: dict[str, Any] = {"model": share.model, **profile.extra_body}
        if profile.path != "embeddings":
            fixed["temperature"] = profile.temperature
        if profile.stream:
            fixed |= {"stream": True, "stream_options": {"include_usage": True}}
        schemas = ""
        if profile.tools:
            fixed["tools"] = [{"type": "function", "function": made.model_dump()} for made in profile.tools.functions]
            fixed["tool_choice"] = profile.tools.choice
            schemas = json.dumps(fixed["tools"])
        self._head = _json(fixed)[:-1]  # without its closing brace: more keys follow
        self._system = escaped(profile.system)
        self._around = estimate(profile.system) + estimate(schemas)
        material = profile.prompts if isinstance(profile.prompts, list) else self._words_list()
        self._cuts = Text(material, seed) if profile.prompt_tokens else None
        self._prompts = [] if profile.prompt_tokens else [escaped(prompt) for prompt in material]
        self._prefixes = self._draw_prefixes()

    def _words_list(self) -> list[str]:
        """What made-up text is cut from; a profile made in code, without files, has its prompts for that."""
        profile = self._profile
        found = profile.words if isinstance(profile.words, list) else profile.prompts
        if not isinstance(found, list):
            raise ValueError(  # noqa: TRY004 - a value that is not ready, of the right type
                "name the profile through sandbox.spec.profile.resolve: its words are not read in yet"
            )
        return found

    @cached_property
    def _words(self) -> Text:
        return Text(self._words_list(), self._seed)

    def _draw_prefixes(self) -> list[tuple[int, int]]:
        """Number and tokens of each shared prefix; its text is cut anew each time, which is cheaper than to keep it."""
        shared = self._profile.shared_prefix
        if shared is None:
            return []
        name = self._profile.metadata.name  # equal profiles of two shares have the same documents
        dice = random.Random(f"{self._seed}/{name}/prefixes")  # noqa: S311 - reproducible, nothing secret
        numbers = dice.sample(range(1 << 30), shared.count)
        return [(number, shared.tokens.draw(dice)) for number in numbers]

    def begin(self, dice: random.Random, row: Row | None) -> Conversation:
        profile = self._profile
        if row is not None:
            return self._recorded(dice, row)
        if profile.conversation:
            return self._talk(dice, profile.conversation)
        if profile.tools:
            return self._work(dice, profile.tools)
        return self._once(dice)

    def _once(self, dice: random.Random) -> Conversation:
        path = self._profile.path
        if path == "chat":
            yield Turn(self._chat(dice, [*self._opening(dice), _said(b"user", self._prompt(dice))]))
        elif path == "completions":
            prefix = self._prefix(dice)
            prompt = self._prompt(dice)
            yield Turn(self._completion(dice, prefix + _BREAK + prompt if prefix else prompt, self._longest(dice)))
        else:
            batch = self._profile.batch
            yield Turn(self._embedding([self._prompt(dice) for _ in range(batch.draw(dice) if batch else 1)]))

    def _recorded(self, dice: random.Random, row: Row) -> Conversation:
        """One request with the lengths of a trace's line; equal blocks are equal text."""
        text = self._text_of(dice, row)
        if self._profile.path == "chat":
            opening = [_said(b"system", self._system)] if self._system else []
            yield Turn(self._chat(dice, [*opening, _said(b"user", text)], row.output))
        elif self._profile.path == "completions":
            yield Turn(self._completion(dice, text, row.output))
        else:
            yield Turn(self._embedding([text]))

    def _text_of(self, dice: random.Random, row: Row) -> bytes:
        source = self._cuts or self._words
        left = max(1, row.prompt - self._around)
        parts: list[bytes] = []
        for block in row.blocks:
            if left <= 0:
                break
            parts.append(source.block(block, min(left, BLOCK)))
            left -= BLOCK
        if left > 0:
            parts.append(source.made(dice, left))
        return b"".join(parts)

    def _talk(self, dice: random.Random, talk: Talk) -> Conversation:
        """Turn after turn; each carries all before it, with what the server really answered."""
        turns = talk.turns.draw(dice)
        messages = [*self._opening(dice), _said(b"user", self._prompt(dice))]
        wait = 0.0
        for left in range(turns - 1, -1, -1):
            answer = yield Turn(self._chat(dice, messages), wait, keep=left > 0)
            if not left or answer.outcome != "ok":
                return
            messages += [_said(b"assistant", escaped(answer.text)), _said(b"user", self._prompt(dice))]
            wait = talk.think.draw(dice) if talk.think else 0.0

    def _work(self, dice: random.Random, tools: Tools) -> Conversation:
        """Step after step: calls are answered with results, text with a word to go on."""
        steps = tools.steps.draw(dice)
        messages = [*self._opening(dice), _said(b"user", self._prompt(dice))]
        wait = 0.0
        for left in range(steps - 1, -1, -1):
            answer = yield Turn(self._chat(dice, messages), wait, keep=left > 0)
            if not left or answer.outcome != "ok":
                return
            if calls := _whole_calls(answer.tool_calls, steps - left):
                messages.append(_json({"role": "assistant", "content": answer.text or None, "tool_calls": calls}))
                messages += [_result(call["id"], self._made(dice, tools.result_tokens.draw(dice))) for call in calls]
            else:
                messages += [_said(b"assistant", escaped(answer.text)), _said(b"user", escaped(tools.go_on))]
            wait = tools.pause.draw(dice) if tools.pause else 0.0

    def _opening(self, dice: random.Random) -> list[bytes]:
        """The system message: what all share first, then what some share."""
        parts = [part for part in (self._system, self._prefix(dice)) if part]
        return [_said(b"system", _BREAK.join(parts))] if parts else []

    def _prefix(self, dice: random.Random) -> bytes:
        if not self._prefixes:
            return b""
        return self._words.block(*self._prefixes[int(dice.random() * len(self._prefixes))])

    def _prompt(self, dice: random.Random) -> bytes:
        tokens = self._profile.prompt_tokens
        if self._cuts is not None and tokens is not None:
            return self._cuts.made(dice, tokens.draw(dice))
        return self._prompts[int(dice.random() * len(self._prompts))]

    def _made(self, dice: random.Random, tokens: int) -> bytes:
        return self._words.made(dice, tokens)

    def _longest(self, dice: random.Random) -> int:
        longest = self._profile.max_tokens
        return longest.draw(dice) if longest else 0

    def _chat(self, dice: random.Random, messages: list[bytes], longest: int | None = None) -> bytes:
        most = self._longest(dice) if longest is None else longest
        return b'%b,"max_tokens":%d,"messages":[%b]}' % (self._head, most, b",".join(messages))

    def _completion(self, dice: random.Random, prompt: bytes, longest: int) -> bytes:
        behind = self._profile.suffix_tokens
        source = self._cuts or self._words if behind else None
        suffix = b',"suffix":"%b"' % source.made(dice, behind.draw(dice)) if source and behind else b""
        return b'%b,"max_tokens":%d,"prompt":"%b"%b}' % (self._head, longest, prompt, suffix)

    def _embedding(self, inputs: list[bytes]) -> bytes:
        return b'%b,"input":["%b"]}' % (self._head, b'","'.join(inputs))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _said(role: bytes, content: bytes) -> bytes:
    """A message; `content` is escaped already."""
    return b'{"role":"%b","content":"%b"}' % (role, content)


def _result(call: str, content: bytes) -> bytes:
    return b'{"role":"tool","tool_call_id":"%b","content":"%b"}' % (escaped(call), content)


def _whole_calls(calls: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The model's calls as they are sent back.

    A call without an id gets one, for a result must name it. Arguments that are no JSON object - a call that
    `max_tokens` cut - become an empty one: servers parse what is sent back and would refuse the whole request.
    """
    return [
        {
            "id": call.get("id") or f"call_{step}_{place}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": _object(call["function"].get("arguments", "")),
            },
        }
        for place, call in enumerate(calls)
    ]


def _object(arguments: str) -> str:
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return "{}"
    return arguments if isinstance(parsed, dict) else "{}"
