"""One unmeasured look at an endpoint before the first measured request."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import httpx

from sandbox.errors import EnvironmentMissing, SandboxError, UsageError
from sandbox.load.client import Client, Limits, base_url, resolve

_WITHIN = 60.0
_UNAUTHORIZED = (401, 403)
_NOT_YET = (429, 502, 503, 504)


def check_endpoint(
    url: str, model: str, *, path: str = "chat", api_key: str = "", ca_file: Path | None = None, within: float = _WITHIN
) -> None:
    """Prove that `url` speaks OpenAI's API, takes the key, serves `model` and streams an answer to its end.

    Asks for the list of models, then for one short streamed answer through the client that measures.
    `within`: seconds for each of the two.

    Raises:
        UsageError: not an OpenAI-compatible URL, a wrong key, or a model that is not served; says what would be valid.
        EnvironmentMissing: nothing answers there, or it is not ready.
    """
    base = base_url(url)
    served = _models(base, api_key, ca_file, within)
    if model not in served:
        raise UsageError(
            f"model {model!r} is not served here",
            where=base,
            fix=f"use one of: {', '.join(sorted(served)) or 'none is served'}",
        )
    client = Client(resolve(url, ca_file), Limits(within, within), path=path, api_key=api_key)
    asked: dict[str, Any] = {"model": model, "max_tokens": 4, "temperature": 0, "stream": True}
    asked |= {"messages": [{"role": "user", "content": "Hello"}]} if path == "chat" else {"prompt": "Hello"}
    reply = client.exchange(json.dumps(asked).encode()).reply
    if reply.outcome == "ok":
        return
    seen = f"{reply.outcome}{f' (status {reply.status})' if reply.status else ''}: {reply.detail}"
    if reply.status in _UNAUTHORIZED:
        raise _wrong_key(base, api_key)
    if reply.outcome in ("connect_error", "timeout") or reply.status in _NOT_YET:
        raise EnvironmentMissing("does not answer a first request", where=base, details=[seen], fix=_READY)
    raise UsageError("does not stream a whole answer", where=base, details=[seen], fix=_COMPATIBLE)


_READY = "wait until the model is loaded and ready, then try again"
_COMPATIBLE = "give the URL of an OpenAI-compatible server, such as http://host:8000 or http://host:8000/v1"


def _models(base: str, api_key: str, ca_file: Path | None, within: float) -> set[str]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    trust = ssl.create_default_context(cafile=ca_file) if base.startswith("https") else False
    try:
        # trust_env: the load goes straight to the endpoint, so the look at it must not go through a proxy.
        answer = httpx.get(f"{base}/models", headers=headers, timeout=within, verify=trust, trust_env=False)
    except httpx.RemoteProtocolError as error:
        raise UsageError(f"does not speak HTTP/1.1: {error}", where=base, fix=_COMPATIBLE) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EnvironmentMissing(f"nothing answers: {reason}", where=base, fix="check host and port") from error
    if answer.status_code in _UNAUTHORIZED:
        raise _wrong_key(base, api_key)
    if answer.status_code in _NOT_YET:
        seen = f"/models answered {answer.status_code}: {answer.text[:200]}"
        raise EnvironmentMissing("is not ready", where=base, details=[seen], fix=_READY)
    try:
        answer.raise_for_status()
        return {str(entry["id"]) for entry in answer.json()["data"]}
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        seen = f"/models answered {answer.status_code}: {answer.text[:200]}"
        raise UsageError("is not OpenAI-compatible", where=base, details=[seen], fix=_COMPATIBLE) from error


def _wrong_key(base: str, api_key: str) -> SandboxError:
    if api_key:
        return UsageError("refuses the API key", where=base, fix="put the right key into the variable you named")
    return UsageError("wants an API key", where=base, fix="name the environment variable that holds the key")
