"""A streaming client for OpenAI-compatible endpoints on a bare socket.

One request, one attempt: nothing is ever sent again, so a fault is seen as often as it strikes. Written on
`socket`, which gevent replaces inside the load process; elsewhere it blocks like any socket code.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sandbox.errors import EnvironmentMissing, UsageError
from sandbox.load.reply import Reply
from sandbox.load.transport import Limits, Transport, Waits, left

_PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
_LISTENS_WITHIN = 1.0


@dataclass(frozen=True)
class Target:
    """Where requests go. The name was resolved once: no look-up lies in a measured path.

    Attributes:
        base: path before /chat/completions, such as /v1.
        authority: what the Host header says.
        address: family and address as `socket` takes them.
        tls: None for http.
    """

    host: str
    base: str
    authority: str
    address: tuple[socket.AddressFamily, Any]
    tls: ssl.SSLContext | None


def base_url(url: str) -> str:
    """`http://host:8000`, `http://host:8000/` and `http://host:8000/v1` as `http://host:8000/v1`.

    Raises:
        UsageError: not an http(s) URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}", fix="write it as http://host:port") from error
    if parts.username or parts.password:
        raise UsageError("a URL with a user or a password in it", fix="leave it out; keys go through a variable")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is not the URL of an endpoint", fix="write it as http://host:port")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = f"{name}:{port}" if port else name
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{place}{path if path.endswith('/v1') else path + '/v1'}"


def resolve(url: str, ca_file: Path | None = None) -> Target:
    """Look `url` up, once.

    Raises:
        UsageError: not an http(s) URL.
        EnvironmentMissing: the name does not resolve, or `ca_file` cannot be read.
    """
    parts = urlsplit(base_url(url))
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        family, address = _reachable(host, port)
        tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
    except socket.gaierror as error:
        raise EnvironmentMissing(f"{host} does not resolve: {error}", fix="check the URL") from error
    except OSError as error:
        raise EnvironmentMissing(f"cannot use {ca_file}: {error}", fix="check the certificate file") from error
    return Target(host, parts.path, parts.netloc, (family, address), tls)


def _reachable(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The first address of `host` where somebody listens: `localhost` is often two, and served on one of them."""
    found = [(family, address) for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for family, address in found if len(found) > 1 else []:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_LISTENS_WITHIN)
            if probe.connect_ex(address) == 0:
                return family, address
    return found[0]


def overridden(fields: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return header fields with `own` in the place of those of the same name, whatever its case."""
    names = {name.lower() for name in own}
    return {**{name: text for name, text in fields.items() if name.lower() not in names}, **own}


@dataclass
class Exchange:
    """One request and its reply. Times in nanoseconds.

    Attributes:
        began: when it was attempted, before connecting.
        sent: it went out.
        reply: what came back.
        opening: until it was out, the time that was not surely spent on waiting for the peer: by so much could it have
            been out sooner. None: nothing is known of any lateness, neither here nor in the reply.
    """

    began: int
    sent: bool
    reply: Reply
    opening: int | None = None


class Client:
    """Sends requests of one kind to one target. Not shared between threads; greenlets may share it."""

    def __init__(
        self,
        target: Target,
        limits: Limits,
        *,
        path: str = "chat",
        stream: bool = True,
        api_key: str = "",
        headers: dict[str, str] | None = None,
        keep_alive: bool = False,
        allow_empty: bool = False,
        transport: Transport | None = None,
    ) -> None:
        """Make ready; `path` is `chat`, `completions` or `embeddings`; `headers` go out with every request.

        `allow_empty`: an answer that says nothing is one.
        """
        self._transport = transport or Transport()
        self._target = target
        self._limits = limits
        self._stream = stream
        self._embeddings = path == "embeddings"
        self._keep_alive = keep_alive
        self._allow_empty = allow_empty
        self._idle: list[socket.socket] = []
        fields = {
            "Host": target.authority,
            "User-Agent": "ai-k8s-sandbox",
            "Accept": "text/event-stream" if stream else "application/json",
            "Content-Type": "application/json",
            "Connection": "keep-alive" if keep_alive else "close",
            **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        }
        fields = overridden(fields, headers or {})
        lines = [f"POST {target.base}{_PATHS[path]} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
        self._head = "\r\n".join(lines).encode() + b"\r\nContent-Length: "

    def exchange(self, body: bytes, number: str = "", *, keep: bool = False) -> Exchange:
        """Send `body` once and read the reply to its end. Never raises for what the server does.

        `keep`: the reply's text and tool calls are wanted, not only when they came.
        `number` goes out as X-Request-Id, so that a server's log can be laid beside the timeline.
        """
        name = f"\r\nX-Request-Id: {number}".encode() if number else b""
        message = b"%s%d%s\r\n\r\n%s" % (self._head, len(body), name, body)
        reply = Reply(stream=self._stream, keep=keep, embeddings=self._embeddings, allow_empty=self._allow_empty)
        began = time.monotonic_ns()
        deadline = began + int(self._limits.total * 1e9)
        connection: socket.socket | None = None
        out: int | None = None
        waits = Waits(began)
        try:
            connection = self._connect(deadline, waits)
            connection.settimeout(left(deadline))
            waits.known = time.monotonic_ns()  # what is not asked for does not come
            connection.sendall(message)
            out = time.monotonic_ns()
            self._transport.read(connection, reply, self._limits, deadline, waits.known)
        except OSError as error:  # TimeoutError and ssl.SSLError are OSErrors; transports handle their own
            now = time.monotonic_ns()
            timed_out = isinstance(error, TimeoutError)
            why = f"could not {'send' if connection else 'connect'}: {'timed out' if timed_out else error}"
            reply.failed("connect_error", now, why, now - (max(deadline, waits.known) if timed_out else waits.known))
        finally:
            if connection is not None:
                self._put_away(connection, reply)
        opening = (out or reply.end or began) - began - waits.proven
        return Exchange(began, out is not None, reply, None if self._transport.looked() is None else opening)

    def _connect(self, deadline: int, waits: Waits) -> socket.socket:
        while self._idle:
            kept = self._idle.pop()
            if not select.select([kept], [], [], 0)[0]:  # readable while idle: the server has closed it
                return kept
            kept.close()
        family, address = self._target.address
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._transport.connect(connection, address, deadline, waits)
            if self._target.tls is not None:
                connection = secured = self._target.tls.wrap_socket(
                    connection, server_hostname=self._target.host, do_handshake_on_connect=False
                )
                self._transport.handshake(secured, deadline, waits)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_away(self, connection: socket.socket, reply: Reply) -> None:
        if self._keep_alive and reply.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close what was kept alive."""
        while self._idle:
            self._idle.pop().close()
