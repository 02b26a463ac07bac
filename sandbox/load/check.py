"""One unmeasured look at an endpoint before the first measured request."""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sandbox.errors import EnvironmentMissing, SandboxError, UsageError
from sandbox.load.client import Client, base_url, overridden, resolve
from sandbox.load.keys import api_keys, filled
from sandbox.load.plan import PlannedShare
from sandbox.load.transport import Limits

_WITHIN = 60.0
_LISTED_WITHIN = 10.0
_UNAUTHORIZED = (401, 403)
_NOT_YET = (429, 502, 503, 504)


@dataclass(frozen=True)
class Access:
    """How one kind of request gets in.

    Attributes:
        path: chat, completions or embeddings.
        stream: whether the answer is asked for as a stream.
        api_key: the key itself; empty: none is sent.
        headers: sent with every request.
        ca_file: certificates to trust, for https with an own CA.
    """

    path: str = "chat"
    stream: bool = True
    api_key: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    ca_file: Path | None = None


def models(url: str, access: Access, within: float = _WITHIN) -> set[str]:
    """Return the models that `url` serves.

    Raises:
        UsageError: not an OpenAI-compatible URL, or a wrong key.
        EnvironmentMissing: nothing answers there, or it is not ready.
    """
    base = base_url(url)
    headers = overridden({"Authorization": f"Bearer {access.api_key}"} if access.api_key else {}, access.headers)
    trust = _trusted(access.ca_file) if base.startswith("https") else False
    within = min(within, _LISTED_WITHIN)
    try:
        # trust_env: the load goes straight to the endpoint, so the look at it must not go through a proxy.
        answer = httpx.get(f"{base}/models", headers=headers, timeout=within, verify=trust, trust_env=False)
    except httpx.RemoteProtocolError as error:
        raise UsageError(f"does not speak HTTP/1.1: {error}", where=base, fix=_COMPATIBLE) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EnvironmentMissing(f"nothing answers: {reason}", where=base, fix=_unreached(base, reason)) from error
    if answer.status_code in _UNAUTHORIZED:
        raise _wrong_key(base, access.api_key)
    seen = f"/models answered {answer.status_code}: {answer.text[:200]}"
    if answer.status_code in _NOT_YET:
        raise EnvironmentMissing("is not ready", where=base, details=[seen], fix=_READY)
    try:
        answer.raise_for_status()
        return {str(entry["id"]) for entry in answer.json()["data"]}
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise UsageError("is not OpenAI-compatible", where=base, details=[seen], fix=_COMPATIBLE) from error


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # a file that is missing, or holds no certificate
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot use it: {reason}", where=str(ca_file), fix="give a file of PEM certificates"
        ) from error


def _unreached(base: str, reason: str) -> str:
    """What to do about an endpoint that could not be talked to."""
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return "trust its certificate, or the CA that signed it, with `caFile` (--ca-file)"
    if base.startswith("https") and ("handshake" in reason or "SSL" in reason):
        return "check the port; does it speak http:// and not https://?"
    return "check host and port"


def only_model(url: str, access: Access, within: float = _WITHIN) -> str:
    """Return the one model that `url` serves.

    Raises:
        UsageError: it serves none or several, or as `models`.
        EnvironmentMissing: as `models`.
    """
    served = sorted(models(url, access, within))
    if len(served) == 1:
        return served[0]
    what = f"serves {len(served)} models: which one is meant?"
    raise UsageError(what, where=base_url(url), fix=f"name one of: {', '.join(served) or 'none is served'}")


def check_shares(url: str, shares: Sequence[PlannedShare], ca_file: Path | None = None) -> None:
    """Prove that every kind of request of a load gets an answer; see `check_endpoint`.

    A locustfile of the user's own sends what it likes: there is nothing to try in its place.

    Raises:
        UsageError: as `check_endpoint`, or a variable for an API key that is not set.
        EnvironmentMissing: as `check_endpoint`.
    """
    keys = api_keys(*(share.api_key_env for share in shares))
    seen: list[tuple[str, Access]] = []
    for share in shares:
        profile = share.profile
        access = Access(profile.path, profile.stream, keys[share.api_key_env], filled(share.headers), ca_file)
        if (share.model, access) not in seen:
            seen.append((share.model, access))
            check_endpoint(url, share.model, access)


def check_endpoint(url: str, model: str, access: Access | None = None, *, within: float = _WITHIN) -> None:
    """Prove that `url` speaks OpenAI's API, takes the key, serves `model` and answers to the end.

    Asks for the list of models, then for one short answer through the client that measures.
    `within`: seconds for each of the two.

    Raises:
        UsageError: not an OpenAI-compatible URL, a wrong key, or a model that is not served; says what would be valid.
        EnvironmentMissing: nothing answers there, or it is not ready.
    """
    access = access or Access()
    base = base_url(url)
    served = models(url, access, within)
    if model not in served:
        raise UsageError(
            f"model {model!r} is not served here",
            where=base,
            fix=f"use one of: {', '.join(sorted(served)) or 'none is served'}",
        )
    client = Client(
        resolve(url, access.ca_file),
        Limits(within, within),
        path=access.path,
        stream=access.stream,
        api_key=access.api_key,
        headers=access.headers,
    )
    reply = client.exchange(json.dumps(_asked(model, access)).encode()).reply
    if reply.outcome in {"ok", "empty"}:  # of four tokens none may be a word
        return
    seen = f"{reply.outcome}{f' (status {reply.status})' if reply.status else ''}: {reply.detail}"
    if reply.status in _UNAUTHORIZED:
        raise _wrong_key(base, access.api_key)
    if reply.outcome in ("connect_error", "timeout") or reply.status in _NOT_YET:
        raise EnvironmentMissing("does not answer a first request", where=base, details=[seen], fix=_READY)
    does = "does not stream a whole answer" if access.stream else "does not give a whole answer"
    fix = (
        f"it serves {model}, but not this kind of request: see what it said, and choose a profile or a model that fits"
    )
    raise UsageError(f"{does} to {access.path}", where=base, details=[seen], fix=fix)


def _asked(model: str, access: Access) -> dict[str, Any]:
    if access.path == "embeddings":
        return {"model": model, "input": "Hello"}
    asked: dict[str, Any] = {"model": model, "max_tokens": 4, "temperature": 0}
    asked |= {"messages": [{"role": "user", "content": "Hello"}]} if access.path == "chat" else {"prompt": "Hello"}
    return asked | ({"stream": True} if access.stream else {})


_READY = "wait until the model is loaded and ready, then try again"
_COMPATIBLE = "give the URL of an OpenAI-compatible server, such as http://host:8000 or http://host:8000/v1"


def _wrong_key(base: str, api_key: str) -> SandboxError:
    if api_key:
        return UsageError("refuses the API key", where=base, fix="put the right key into the variable you named")
    return UsageError("wants an API key", where=base, fix="name the environment variable that holds the key")
