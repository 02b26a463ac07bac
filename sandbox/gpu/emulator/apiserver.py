"""The Kubernetes API with what Python brings along: plain paths, plain objects, connections that are kept."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

_LOG = logging.getLogger(__name__)
Object = dict[str, Any]
Query = Mapping[str, str]
GONE, NOT_FOUND, CONFLICT = 410, 404, 409
MERGE_PATCH = "application/merge-patch+json"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_BAD = 400
_WATCH_SECONDS = 240
_SHORTEST, _LONGEST = 0.5, 10.0
_GRACE = 10.0


class ApiError(Exception):
    """The API server refused something, or (status 0) gave no answer."""

    def __init__(self, status: int, what: str, reason: str = "", message: str = "") -> None:
        self.status = status
        self.reason = reason
        self.message = message
        super().__init__(f"{what}: {status or 'no answer'} {reason} {message}".rstrip())


class ApiServer:
    """One API server. Safe from several threads: each call under way has a connection to itself."""

    def __init__(self, url: str, *, token: Path | None = None, ca: Path | None = None, timeout: float = 10.0) -> None:
        """`token` is read anew for each call: the kubelet replaces the file long before the token expires."""
        self._url = urlsplit(url)
        self._token = token
        self._timeout = timeout
        self._tls = ssl.create_default_context(cafile=str(ca) if ca else None) if self._url.scheme == "https" else None
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        self._busy: set[HTTPConnection] = set()
        self._closed = False

    @classmethod
    def in_cluster(cls) -> ApiServer:
        """As this pod's service account."""
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", token=_ACCOUNT / "token", ca=_ACCOUNT / "ca.crt")

    def get(self, path: str, query: Query | None = None) -> Object:
        """One object, or a list of them. This and the other calls raise ApiError."""
        return self._call("GET", path, query=query)

    def create(self, path: str, body: Object) -> Object:
        """A new object; `path` is the collection's."""
        return self._call("POST", path, body)

    def update(self, path: str, body: Object) -> Object:
        """Replace an object; refused with a conflict when it has changed since `body`'s resourceVersion."""
        return self._call("PUT", path, body)

    def patch(self, path: str, change: Any, content_type: str = MERGE_PATCH) -> Object:
        """Change an object in part."""
        return self._call("PATCH", path, change, content_type=content_type)

    def delete(self, path: str) -> Object:
        """Delete an object, or with a collection's path all of it."""
        return self._call("DELETE", path)

    def watch(self, path: str, query: Query | None = None, *, seconds: int = _WATCH_SECONDS) -> Iterator[Object]:
        """The events of a collection (bookmarks too) from `query["resourceVersion"]` on, for at most `seconds`.

        Ends when the server ends it. Raises ApiError, with status 410 when that version is too old to go on from.
        """
        asked = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds), **(query or {})}
        what = f"watch {path}"
        connection = self._connection(timeout=seconds + _GRACE, fresh=True)
        try:
            with _as_api_error(what):
                answer = self._send(connection, "GET", path, query=asked)
                if answer.status >= _BAD:
                    raise _refused(what, answer.status, answer.read())
                for line in answer:
                    event: Object = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _refused(what, int(event["object"].get("code", 0)), line, event["object"])
                    yield event
        finally:
            self._done(connection, keep=False)

    def close(self) -> None:
        """Cut every connection: calls and watches under way in other threads fail at once, and none can be made."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                if connection.sock:
                    with contextlib.suppress(OSError):  # the plain socket's: TLS is not to be ended from outside
                        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
        for connection in idle:
            connection.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def _call(
        self, method: str, path: str, body: Any = None, *, query: Query | None = None, content_type: str = ""
    ) -> Object:
        what = f"{method} {path}"
        connection = self._connection(timeout=self._timeout)
        keep = False
        try:
            with _as_api_error(what):
                answer = self._send(connection, method, path, body=body, query=query, content_type=content_type)
                raw = answer.read()
                keep = not answer.will_close
                if answer.status >= _BAD:
                    raise _refused(what, answer.status, raw)
                parsed: Object = json.loads(raw)
                return parsed
        finally:
            self._done(connection, keep=keep)

    def _send(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Query | None = None,
        content_type: str = "",
    ) -> HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "ai-k8s-sandbox-gpu-emulator"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token.read_text(encoding='utf-8').strip()}"
        if body is not None:
            headers["Content-Type"] = content_type or "application/json"
        target = f"{path}?{urlencode(query)}" if query else path
        if connection.sock is None:
            connection.connect()
            _keep_alive(connection)
        connection.request(method, target, None if body is None else json.dumps(body).encode(), headers)
        return connection.getresponse()

    def _connection(self, *, timeout: float, fresh: bool = False) -> HTTPConnection:
        with self._lock:
            if self._closed:
                raise ApiError(0, "no connection", message="closed")
            while self._idle and not fresh:
                kept = self._idle.pop()
                if not _hung_up(kept):
                    self._busy.add(kept)
                    return kept
                kept.close()
            host, port = self._url.hostname or "", self._url.port
            if self._tls:
                made: HTTPConnection = HTTPSConnection(host, port, timeout=timeout, context=self._tls)
            else:
                made = HTTPConnection(host, port, timeout=timeout)
            self._busy.add(made)
            return made

    def _done(self, connection: HTTPConnection, *, keep: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if keep and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def follow(
    api: ApiServer, path: str, query: Query | None, stop: threading.Event, *, seconds: int = _WATCH_SECONDS
) -> Iterator[dict[str, Object]]:
    """The objects of a collection by name, first as they are, then after each change, until `stop` is set.

    What goes wrong is logged and tried again after a while that grows: the reader only waits longer. To end a wait
    at once, set `stop` and close `api`.
    """
    pause = _SHORTEST
    while not stop.is_set():
        try:
            listed = api.get(path, query)
            found = {each["metadata"]["name"]: each for each in listed["items"]}
            version = listed["metadata"]["resourceVersion"]
            yield dict(found)
            while not stop.is_set():
                began = time.monotonic()
                for event in api.watch(path, {**(query or {}), "resourceVersion": version}, seconds=seconds):
                    pause = _SHORTEST
                    thing = event["object"]
                    version = thing["metadata"]["resourceVersion"]
                    if event["type"] == "DELETED":
                        found.pop(thing["metadata"]["name"], None)
                    elif event["type"] != "BOOKMARK":
                        found[thing["metadata"]["name"]] = thing
                    if event["type"] != "BOOKMARK":
                        yield dict(found)
                if time.monotonic() - began < _SHORTEST:  # a server that hangs up at once is not to be pressed
                    stop.wait(_SHORTEST)
        except ApiError as error:
            if stop.is_set():
                return
            _LOG.warning("%s; again in %g s", error, pause)
            stop.wait(pause)
            pause = min(2 * pause, _LONGEST)


@contextlib.contextmanager
def _as_api_error(what: str) -> Iterator[None]:
    """No answer, half an answer, or one that is no JSON."""
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        raise ApiError(0, what, type(error).__name__, str(error)) from error


def _refused(what: str, status: int, raw: bytes, body: Any = None) -> ApiError:
    if body is None:
        with contextlib.suppress(ValueError):
            body = json.loads(raw)
    if not isinstance(body, dict):
        body = {"message": raw[:200].decode(errors="replace")}
    return ApiError(status, what, str(body.get("reason", "")), str(body.get("message", "")))


def _hung_up(connection: HTTPConnection) -> bool:
    """Nobody has asked anything on it: that it can be read means that the server closed it."""
    return connection.sock is None or bool(select.select([connection.sock], [], [], 0)[0])


def _keep_alive(connection: HTTPConnection) -> None:
    """A watch says nothing for minutes: a server that is gone for good is to be noticed before that."""
    sock: socket.socket = connection.sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
