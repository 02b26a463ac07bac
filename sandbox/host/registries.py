"""Image registries as this machine sees them: what SANDBOX_REGISTRY names, and whether one answers."""

from __future__ import annotations

import os
import re
import ssl
import threading
from functools import cache
from queue import Empty, SimpleQueue

import httpx

from sandbox.errors import UsageError

MIRROR = "SANDBOX_REGISTRY"
DOCKER_HUB = "docker.io"
_DOCKER_HUBS_API = "registry-1.docker.io"
_ANSWER = 3.0  # seconds until a registry that can be used has answered
_ANSWERS = (200, 401)  # the second is what a healthy public registry says before it hands out tokens
_FORM = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+])(?::(?P<port>[0-9]{1,5}))?(?:/[a-z0-9][a-z0-9._-]*)*")
_PORTS = 65535


def mirror() -> str:
    """The registry that SANDBOX_REGISTRY names, as `<host:port>[/prefix]`; empty where it names none.

    Raises:
        UsageError: it is no registry.
    """
    text = os.environ.get(MIRROR, "")
    return checked(text, where=MIRROR) if text else ""


def checked(text: str, *, where: str = "") -> str:
    """`<host:port>[/prefix]`, without a slash at its end. Raises UsageError for anything else."""
    plain = text.rstrip("/")
    found = _FORM.fullmatch(plain)
    if found is None or host(f"{plain}/x") == DOCKER_HUB or int(found["port"] or 0) > _PORTS:
        raise UsageError(
            f"{text!r} is not a registry", where=where, fix="write it as <host:port>[/prefix], without http://"
        )
    return plain


def host(ref: str) -> str:
    """Host and port of the registry that an image's name belongs to, as engines read it."""
    first, slash, _ = ref.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else DOCKER_HUB


@cache
def unreachable(name: str) -> str:
    """Why the registry `name` (host and port) cannot be used, or nothing. Asked once per run.

    All of it takes three seconds at most: looking up the name and trying each of its addresses have limits of their
    own, which add up.
    """
    said: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=lambda: said.put(_asked(name)), daemon=True).start()
    try:
        return said.get(timeout=_ANSWER)
    except Empty:
        return f"did not answer within {_ANSWER:.0f} s"


def _asked(name: str) -> str:
    address = _DOCKER_HUBS_API if name == DOCKER_HUB else name
    trouble = ""
    # whose certificate counts, and whether plain HTTP will do, the engine decides; here only: does a registry answer
    with httpx.Client(verify=False, timeout=2 * _ANSWER) as http:  # noqa: S501 - nobody waits that long
        for scheme in ("https", "http"):
            try:
                status = http.get(f"{scheme}://{address}/v2/").status_code
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                trouble = str(error) or type(error).__name__
                if not _speaks_no_tls(error):
                    break
            else:
                return "" if status in _ANSWERS else f"answered {status} to /v2/"
    return trouble


def _speaks_no_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError | ConnectionResetError):
            return True
        error = error.__cause__ or error.__context__
    return False
