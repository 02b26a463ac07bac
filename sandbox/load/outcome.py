"""What a failure that Locust reports was, in our words.

Imported only inside a load process.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import zlib
from typing import Any

from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
from requests import exceptions as requests
from urllib3 import exceptions as urllib3

from sandbox.load.event import BLOCKED_CODES
from sandbox.load.reply import BLOCKED_HEADER

_FAILS_FROM = 400
_EXCERPT = 300
# In this order; an error and all it was made of are tried for each. The first line: these are made of timeouts.
_KINDS: list[tuple[str, tuple[type[BaseException], ...]]] = [
    ("connect_error", (requests.ConnectTimeout, urllib3.ConnectTimeoutError, urllib3.NewConnectionError)),
    ("connect_error", (ConnectionRefusedError, socket.gaierror, ssl.SSLError, requests.SSLError, requests.ProxyError)),
    ("timeout", (TimeoutError, requests.Timeout, urllib3.TimeoutError)),
    ("truncated", (ConnectionError, EOFError, HTTPConnectionClosed, zlib.error)),
    ("http_error", (http.client.BadStatusLine, HTTPParseError)),
    ("truncated", (http.client.HTTPException, requests.ChunkedEncodingError, urllib3.ProtocolError)),
]


class RequestFailed(Exception):
    """What Locust is told of a request of our client's that was not `ok`; few kinds, for Locust keeps each for ever."""


def outcome_of(exception: BaseException | None, response: Any) -> tuple[str, int | None, str]:
    """Return outcome, status and detail of a request event of Locust's; `response` may be anything, or None.

    A reply of status 400 or more is `http_error`, or `guardrail_blocked` where the reply says so. A failure that is
    no network's and no status's is the locustfile's own judgement of an answer (`response.failure(…)`):
    `inband_error`. What the locustfile takes for a success is `ok`, whatever its status.
    """
    status = _status(response)
    if exception is None:
        return "ok", status, ""
    detail = f"{type(exception).__name__}: {exception}"[:_EXCERPT]
    if status is not None and status >= _FAILS_FROM:
        return ("guardrail_blocked" if _blocked(response) else "http_error"), status, detail
    made_of = _chain(exception)
    for outcome, kinds in _KINDS:
        if any(isinstance(error, kinds) for error in made_of):
            return outcome, status, detail
    # requests' own errors are OSErrors too, whatever went wrong
    plain = any(isinstance(error, OSError) and not isinstance(error, requests.RequestException) for error in made_of)
    return "connect_error" if plain else "inband_error", status, detail


def _status(response: Any) -> int | None:
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) and status > 0 else None


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it was made of."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        error = inner or getattr(error, "reason", None) or error.__cause__ or error.__context__
        error = error if isinstance(error, BaseException) else None
    return found


def _blocked(response: Any) -> bool:
    headers = getattr(response, "headers", None) or {}
    if any(str(name).lower() == BLOCKED_HEADER for name in headers):
        return True
    # What was read already, under the name of each of the two; the rest of a stream is the locustfile's to read.
    held = [getattr(response, name, None) for name in ("_content", "_cached_content")]
    try:
        said = next((json.loads(body) for body in held if isinstance(body, bytes)), None)
    except ValueError:
        return False
    error = said.get("error", said) if isinstance(said, dict) else None
    return isinstance(error, dict) and any(str(error.get(key)) in BLOCKED_CODES for key in ("code", "type"))
