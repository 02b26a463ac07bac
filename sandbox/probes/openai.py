"""Probes that ask the model."""

from __future__ import annotations

import time

import httpx

from sandbox.probes.base import PROBES, Context, Seen
from sandbox.spec.base import Duration

_SHOWN = 60


@PROBES.register("openai.chat")
def chat(ctx: Context, prompt: str = "Say hello.", max_tokens: int = 8, within: Duration = 20.0) -> Seen:
    """A chat completion with content comes back within `within`."""
    begun = time.monotonic()
    body = {"model": ctx.model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": prompt}]}
    try:
        # trust_env: what the cluster answers is asked, not what a proxy of the environment does
        answer = httpx.post(f"{ctx.url}/v1/chat/completions", json=body, timeout=within, trust_env=False)
    except httpx.TransportError as error:
        return Seen(ok=False, detail=f"no answer from {ctx.url}: {type(error).__name__} {error}".rstrip())
    took = time.monotonic() - begun
    if answer.status_code != httpx.codes.OK:
        return Seen(ok=False, detail=f"HTTP {answer.status_code} after {took:.2f} s: {answer.text[:_SHOWN]}")
    try:
        said = answer.json()
        message = said["choices"][0]["message"]
        content = str(message.get("content") or message.get("reasoning_content") or "").strip()
        usage = said.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError):
        return Seen(ok=False, detail=f"HTTP 200 after {took:.2f} s, but no completion: {answer.text[:_SHOWN]!r}")
    if not content:
        return Seen(ok=False, detail=f"an empty completion after {took:.2f} s")
    return Seen(
        ok=took <= within,
        detail=f"{content[:_SHOWN]!r} after {took:.2f} s",
        evidence={"seconds": round(took, 3), "usage": usage or {}},
    )
