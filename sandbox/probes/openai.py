"""Probes that ask the model."""

from __future__ import annotations

import time

import httpx

from sandbox.probes.base import PROBES, Context, Seen
from sandbox.spec.base import Duration

_SHOWN = 60


@PROBES.register("openai.chat")
def chat(
    ctx: Context, prompt: str = "Say hello.", max_tokens: int = 8, within: Duration = 20.0, stack: str | None = None
) -> Seen:
    """A chat completion with content comes back within `within`. `stack` is for the reader: there is one per run."""
    del stack
    begun = time.monotonic()
    body = {"model": ctx.model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": prompt}]}
    try:
        answer = httpx.post(f"{ctx.url}/v1/chat/completions", json=body, timeout=within)
    except httpx.TransportError as error:
        return Seen(ok=False, detail=f"no answer from {ctx.url}: {type(error).__name__} {error}".rstrip())
    took = time.monotonic() - begun
    if answer.status_code != httpx.codes.OK:
        return Seen(ok=False, detail=f"HTTP {answer.status_code} after {took:.2f} s: {answer.text[:_SHOWN]}")
    message = answer.json()["choices"][0]["message"]
    content = message.get("content") or message.get("reasoning_content") or ""
    if not content.strip():
        return Seen(ok=False, detail=f"an empty completion after {took:.2f} s")
    return Seen(
        ok=took <= within,
        detail=f"{content.strip()[:_SHOWN]!r} after {took:.2f} s",
        evidence={"seconds": round(took, 3), "usage": answer.json().get("usage", {})},
    )
