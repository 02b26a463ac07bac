"""Recorded traffic: when requests came, and how long prompts and answers were."""

from __future__ import annotations

from pydantic import Field

from sandbox.spec.base import Strict


class Row(Strict):
    """One recorded request. `at`: seconds after the first one of the trace."""

    at: float = Field(ge=0)
    prompt: int = Field(ge=0, description="Tokens in.")
    output: int = Field(ge=1, description="Tokens out.")
    blocks: list[int] = Field(
        default_factory=list, description="Mooncake: hashes of the prompt's blocks; equal ones share a prefix."
    )
