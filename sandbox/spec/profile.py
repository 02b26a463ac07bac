"""A traffic profile: which prompts are sent, how long the answers may be, and over which endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sandbox import paths
from sandbox.errors import UsageError
from sandbox.progress import say
from sandbox.spec import catalogue
from sandbox.spec.base import API_VERSION, Metadata, Strict
from sandbox.spec.lengths import Lengths
from sandbox.spec.loader import load

_ROOM = "loadtests/profiles"
_OURS = frozenset({"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "temperature"})


class Profile(Strict):
    """What one request of this traffic looks like."""

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Profile"]
    metadata: Metadata
    source: str = Field(default="", description="Where the lengths come from: a paper or a data set.")
    path: Literal["chat", "completions"] = Field(default="chat", description="/v1/chat/completions or /v1/completions.")
    stream: bool = True
    system: str = Field(default="", description="System prompt; chat only.")
    prompts: list[str] | str = Field(description="The prompts, or a file of loadtests/prompts/, one prompt a line.")
    max_tokens: Lengths = Field(alias="maxTokens", description="Longest answer asked for, drawn per request.")
    temperature: float = Field(default=0.0, ge=0, le=2)
    extra_body: dict[str, Any] = Field(
        default_factory=dict, alias="extraBody", description="Further keys of the request body, such as ignore_eos."
    )

    @field_validator("prompts")
    @classmethod
    def _some(cls, value: list[str] | str) -> list[str] | str:
        if not value or (isinstance(value, list) and not all(prompt.strip() for prompt in value)):
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
    def _chat_only(self) -> Profile:
        if self.system and self.path != "chat":
            raise ValueError("`system` is for `path: chat`; write it into the prompts of a completion")
        return self


def names() -> list[str]:
    """Every profile that can be named, the user's own and the shipped ones."""
    return catalogue.names(_ROOM)


def resolve(name: str) -> Profile:
    """Return profile `name` with its prompts read in (`prompts` is a list).

    The user's own `loadtests/` comes before the shipped one; a shadowed name is said aloud.

    Raises:
        UsageError: no such profile or prompt file, or a mistake in either.
    """
    document = load(catalogue.locate(_ROOM, name, kind="profile"), Profile)
    if isinstance(document.model.prompts, list):
        return document.model
    wanted = document.model.prompts
    file = _prompt_file(wanted)
    if file is None:
        problem = document.problem(("prompts",), "no such file in loadtests/prompts/")
        raise UsageError(problem, fix="write the file there, one prompt a line")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problem = document.problem(("prompts",), f"{file} cannot be read: {error}")
        raise UsageError(problem, fix="write it as UTF-8 text, one prompt a line") from error
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        problem = document.problem(("prompts",), f"{file} holds no prompt")
        raise UsageError(problem, fix="write one prompt a line")
    return document.model.model_copy(update={"prompts": texts})


def _prompt_file(wanted: str) -> Path | None:
    relative = Path("prompts") / wanted.lstrip("/")
    found = [file for folder in paths.catalogue("loadtests") if (file := folder / relative).is_file()]
    if ".." in relative.parts or not found:
        return None
    if len(found) > 1:
        say(f"loadtests/{relative}: {found[0]} shadows {found[1]}")
    return found[0]
