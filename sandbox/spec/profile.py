"""A traffic profile: what one request, or one conversation, says; data, so that another one needs no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sandbox import paths
from sandbox.errors import UsageError
from sandbox.progress import say
from sandbox.spec import catalogue
from sandbox.spec.base import API_VERSION, KeyPath, Metadata, Mistakes, Strict
from sandbox.spec.lengths import Lengths, Lognormal, Pause, Uniform
from sandbox.spec.loader import load

_ROOM = "loadtests/profiles"
_OURS = frozenset(
    {"model", "messages", "prompt", "suffix", "input", "tools", "tool_choice"}
    | {"stream", "stream_options", "max_tokens", "temperature"}
)
_MOST_TURNS = 100
_ONLY = {
    "system": ("chat", "write it into the prompts of a completion"),
    "conversation": ("chat", "only chat has turns"),
    "tools": ("chat", "only chat calls tools"),
    "suffixTokens": ("completions", "only a completion has text behind the cursor"),
    "batch": ("embeddings", "elsewhere one request is one prompt"),
}


def _plain(value: Any) -> Any:
    """`50` as the length that is always 50."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return {"kind": "fixed", "tokens": value} if is_number else value


Count = Annotated[Lengths, BeforeValidator(_plain, json_schema_input_type=int | Lengths)]
"""How many: a plain number, or a distribution of `sandbox.spec.lengths`."""


def _most(count: Lengths) -> int:
    return count.max if isinstance(count, Uniform | Lognormal) else count.tokens


def _few(value: Lengths) -> Lengths:
    if _most(value) > _MOST_TURNS:
        raise ValueError(f"at most {_MOST_TURNS}: each sends everything before it again")
    return value


class SharedPrefix(Strict):
    """Text that many requests begin with: the documents of a knowledge base, the instructions of an agent."""

    count: int = Field(default=1, ge=1, le=10_000, description="How many different ones; each request draws one.")
    tokens: Count = Field(description="Length of each, in tokens.")


class Conversation(Strict):
    """Turns of one user; each sends the turns before it, with the server's own answers, again."""

    turns: Count = Field(description="Requests of one conversation.")
    think: Pause | None = Field(default=None, description="Between an answer and the next turn; none if left out.")

    _bounded = field_validator("turns")(_few)


class Function(Strict):
    """A function that the model may call, as OpenAI's API describes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = Field(min_length=1)
    parameters: dict[str, Any] = Field(description="JSON Schema of its arguments: {type: object, properties: ...}.")

    @field_validator("parameters")
    @classmethod
    def _an_object(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("type") != "object" or not isinstance(value.get("properties"), dict):
            raise ValueError("must be the JSON Schema of an object: {type: object, properties: {...}}")
        for name, schema in value["properties"].items():
            empty = [key for key, said in schema.items() if said is None] if isinstance(schema, dict) else [name]
            if empty:  # in YAML `{description: One, two}` has a key `two`; a server would refuse every request
                raise ValueError(f"{name}: {empty[0]!r} says nothing; put text with a comma into quotes")
        json.dumps(value)
        return value


class Tools(Strict):
    """An agent's loop: the model's calls are answered with made-up results until the steps are used up."""

    functions: list[Function] = Field(min_length=1)
    steps: Count = Field(description="Requests of one task.")
    result_tokens: Count = Field(alias="resultTokens", description="Length of each tool's answer, in tokens.")
    pause: Pause | None = Field(default=None, description="How long the tools of one step take; no time if left out.")
    choice: Literal["auto", "required"] = Field(
        default="auto", description="`tool_choice`: the model may call a tool, or must."
    )
    go_on: str = Field(
        default="Go on with the next step.",
        alias="goOn",
        min_length=1,
        description="What the user says when the model answered with text in place of a call.",
    )

    _bounded = field_validator("steps")(_few)

    @field_validator("functions")
    @classmethod
    def _each_once(cls, value: list[Function]) -> list[Function]:
        names = [function.name for function in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: stands twice")
        return value


class Profile(Strict):
    """What one request of this traffic looks like."""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Profile"]
    metadata: Metadata
    source: str = Field(default="", description="Where the lengths come from: a paper or a data set.")
    path: Literal["chat", "completions", "embeddings"] = Field(
        default="chat", description="/v1/chat/completions, /v1/completions or /v1/embeddings."
    )
    stream: bool = Field(default=True, description="Never with embeddings, which have none.")
    system: str = Field(default="", description="System prompt; chat only.")
    prompts: list[str] | str | None = Field(
        default=None,
        description="The prompts, or a file of loadtests/prompts/, one a line. With `promptTokens`: what to cut from.",
    )
    prompt_tokens: Count | None = Field(
        default=None,
        alias="promptTokens",
        description="Prompts of about so many tokens, cut from `prompts`, or from `words` where there are none.",
    )
    words: list[str] | str = Field(
        default="words.txt",
        description="What other made-up text is cut from: shared prefixes, results of tools, prompts of a trace.",
    )
    shared_prefix: SharedPrefix | None = Field(default=None, alias="sharedPrefix", description="What requests share.")
    suffix_tokens: Count | None = Field(
        default=None, alias="suffixTokens", description="Completions: text behind the cursor, which vLLM refuses."
    )
    batch: Count | None = Field(default=None, description="Embeddings: inputs of one request; 1 if not given.")
    conversation: Conversation | None = None
    tools: Tools | None = None
    max_tokens: Count | None = Field(
        default=None, alias="maxTokens", description="Longest answer asked for, drawn per request; not for embeddings."
    )
    allow_empty: bool = Field(
        default=False,
        alias="allowEmpty",
        description="An answer that is whole and says nothing is `ok`; otherwise it is `empty`, and not good.",
    )
    temperature: float = Field(default=0.0, ge=0, le=2)
    extra_body: dict[str, Any] = Field(
        default_factory=dict, alias="extraBody", description="Further keys of the request body, such as ignore_eos."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_stream_of_vectors(cls, value: Any) -> Any:
        """`stream` may be left out of embeddings, where its default would be wrong."""
        if isinstance(value, dict) and value.get("path") == "embeddings":
            return {"stream": False, **value}
        return value

    @field_validator("prompts", "words")
    @classmethod
    def _some(cls, value: list[str] | str | None) -> list[str] | str | None:
        if value is not None and (
            not value or (isinstance(value, list) and not all(prompt.strip() for prompt in value))
        ):
            raise ValueError("needs at least one prompt, and none that is empty")
        return value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OURS & value.keys()):
            raise ValueError(f"{', '.join(taken)}: set by the profile's own keys, not here")
        json.dumps(value)  # YAML knows dates and sets, a request body does not: TypeError reads as a mistake here
        return value

    @model_validator(mode="after")
    def _sound(self) -> Profile:
        given = {info.alias or name: getattr(self, name) for name, info in type(self).model_fields.items()}
        if found := self.contradictions(given):
            raise Mistakes(found)
        return self

    @classmethod
    def contradictions(cls, value: Any) -> list[tuple[KeyPath, str]]:
        """What two keys of a profile, as it was read, say against each other."""
        if not isinstance(value, dict):
            return []
        written = {name: info.alias or name for name, info in cls.model_fields.items()}
        value = {written.get(key, key): said for key, said in value.items()}
        path = value.get("path", "chat")
        given = {key for key, said in value.items() if said}
        found: list[tuple[KeyPath, str]] = [
            ((key,), f"`{key}` is for `path: {only}`; {why}")
            for key, (only, why) in _ONLY.items()
            if key in given and path != only
        ]
        if value.get("prompts") is None and "promptTokens" not in given:
            found.append((("prompts",), "is missing; write the prompts, or `promptTokens` for made-up ones"))
        if {"tools", "conversation"} <= given:
            found.append((("conversation",), "an agent's steps are its turns; write either `tools` or `conversation`"))
        return found + (_of_embeddings(given) if path == "embeddings" else _of_text(value))


def _of_embeddings(given: set[str]) -> list[tuple[KeyPath, str]]:
    why = {
        "stream": "embeddings come in one piece; leave `stream` out",
        "maxTokens": "embeddings produce no tokens; leave `maxTokens` out",
        "temperature": "embeddings are not sampled; leave `temperature` out",
        "allowEmpty": "an answer without vectors is none; leave `allowEmpty` out",
        "sharedPrefix": "is for chat and completions; embeddings take `batch` and `promptTokens`",
    }
    return [((key,), words) for key, words in why.items() if key in given]


def _of_text(value: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    if value.get("maxTokens") is not None:
        return []
    return [(("maxTokens",), "is missing; write how long answers may be, such as {kind: fixed, tokens: 64}")]


def names() -> list[str]:
    """Every profile that can be named, the user's own and the shipped ones."""
    return catalogue.names(_ROOM)


def resolve(name: str) -> Profile:
    """Return profile `name` with its files read in: `prompts` and `words` are lists.

    With `promptTokens`, `prompts` is what prompts are cut from: the lines of its file, or its paragraphs where the
    file has any blank line. The user's own `loadtests/` comes before the shipped one; a shadowed name is said aloud.

    Raises:
        UsageError: no such profile or prompt file, or a mistake in either.
    """
    document = load(catalogue.locate(_ROOM, name, kind="profile"), Profile)
    profile = document.model
    read: dict[str, list[str]] = {}
    problems: list[str] = []
    for key in ("words", "prompts"):
        wanted = getattr(profile, key)
        if isinstance(wanted, list):
            continue
        try:
            made_up = key == "words" or profile.prompt_tokens is not None
            read[key] = read.get("words", []) if wanted is None else _texts(wanted, paragraphs=made_up)
        except ValueError as error:
            problems.append(document.problem((key,), str(error)))
    if problems:
        raise UsageError(
            problems[0], details=problems[1:], fix="write the file into loadtests/prompts/ as UTF-8, one prompt a line"
        )
    if profile.prompts is None and isinstance(profile.words, list):
        read["prompts"] = profile.words
    return profile.model_copy(update=read)


def _texts(wanted: str, *, paragraphs: bool) -> list[str]:
    """The prompts of a file; its paragraphs as they stand, where that is asked for and the file has several."""
    file = _prompt_file(wanted)
    if file is None:
        raise ValueError("no such file in loadtests/prompts/")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if paragraphs and "\n\n" in text.strip():
        return [block.strip("\n") for block in text.split("\n\n") if block.strip()]
    lines = [line.strip() for line in text.splitlines()]
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise ValueError(f"{file} holds no prompt")
    return texts


def _prompt_file(wanted: str) -> Path | None:
    relative = Path("prompts") / wanted.lstrip("/")
    found = [file for folder in paths.catalogue("loadtests") if (file := folder / relative).is_file()]
    if ".." in relative.parts or not found:
        return None
    if len(found) > 1:
        say(f"loadtests/{relative}: {found[0]} shadows {found[1]}")
    return found[0]
