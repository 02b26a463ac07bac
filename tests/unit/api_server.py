"""An HTTP server on loopback that answers as told: stands in for an API server where its answers are the point."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from sandbox.kube import Kube

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: Any = None
    lines: list[Json] | None = None  # a watch


Rule = Callable[[Asked], Answer | None]


def status(code: int, reason: str, message: str) -> Answer:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
    return Answer(code, body | {"code": code})


def core(*kinds: tuple[str, str, bool]) -> Json:
    return {"resources": [{"name": name, "kind": kind, "namespaced": spaced} for name, kind, spaced in kinds]}


CORE = core(
    ("pods", "Pod", True), ("pods/log", "Pod", True), ("namespaces", "Namespace", False), ("nodes", "Node", False)
)
CORE["resources"] += core(("serviceaccounts", "ServiceAccount", True), ("configmaps", "ConfigMap", True))["resources"]


@dataclass
class ApiServer:
    rules: list[Rule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def on(self, method: str, path: str, *answers: Answer) -> None:
        """Answer `method path` with these in turn, the last one for ever."""
        left = list(answers)

        def rule(asked: Asked) -> Answer | None:
            if (asked.method, asked.path) != (method, path):
                return None
            return left.pop(0) if len(left) > 1 else left[0]

        self.rules.append(rule)

    def seen(self, method: str, path: str) -> list[Asked]:
        return [each for each in self.asked if (each.method, each.path) == (method, path)]

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if asked.path == "/api/v1":
            return Answer(200, CORE)
        for rule in self.rules:
            if found := rule(asked):
                return found
        return status(404, "NotFound", f"nothing at {asked.path}")


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _do(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            body = json.loads(raw) if raw else None
            headers = {key.lower(): value for key, value in self.headers.items()}
            answer = server.answer(Asked(self.command, url.path, parse_qs(url.query), headers, body))
            if answer.lines is not None:
                payload = b"".join(json.dumps(line).encode() + b"\n" for line in answer.lines)
            else:
                payload = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _do  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(folder: Path) -> Iterator[tuple[ApiServer, Kube]]:
    """A server, and a `Kube` whose kubeconfig (with a token of its own) points at it."""
    server = ApiServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, Kube.connect(kubeconfig(folder, f"http://127.0.0.1:{http.server_address[1]}"))
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def kubeconfig(folder: Path, server: str) -> Path:
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "admin", "user": {"token": "the-admins-token"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path
