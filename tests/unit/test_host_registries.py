from __future__ import annotations

import platform
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sandbox.errors import UsageError
from sandbox.host import registries
from sandbox.host.checks import check_registry

# an address that is not known by heart as one without TLS
ADDRESS = "127.0.0.2" if platform.system() == "Linux" else "127.0.0.1"


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    registries.unreachable.cache_clear()


class Registry(BaseHTTPRequestHandler):
    """Speaks plain HTTP, as a registry on a local network does."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer((ADDRESS, 0), Registry) as http:
        thread = threading.Thread(target=http.serve_forever, args=[0.01])
        thread.start()
        yield f"{ADDRESS}:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "said"), [(200, ""), (401, ""), (500, "answered 500 to /v2/"), (404, "answered 404 to /v2/")]
)
def test_a_registry_without_tls_is_one_too_and_only_what_answers_as_one_is_used(
    server: str, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    monkeypatch.setattr(Registry, "status", status)
    assert registries.unreachable(server) == said
    assert check_registry(f"{server}/prefix").state == ("degraded" if said else "ok")


def test_a_registry_that_takes_the_call_and_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        begun = time.monotonic()
        assert registries.unreachable(f"127.0.0.1:{mute.getsockname()[1]}") == "did not answer within 0 s"
    assert time.monotonic() - begun < 2


def test_looking_up_the_name_counts_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        over.wait(20)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(registries, "_ANSWER", 0.3)
    begun = time.monotonic()
    try:
        assert "did not answer" in registries.unreachable("slow.example:5000")
        assert time.monotonic() - begun < 2
    finally:
        over.set()


@pytest.mark.parametrize(
    "text",
    [
        "http://mirror.example:5000",
        "localhost:abc",
        "mirror.example:70000",
        "mirror.example/Upper",
        "a namespace",
        "somebody",
        "mirror.example:5000/x?y",
        "user@mirror.example",
    ],
)
def test_what_is_no_registry_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(registries.MIRROR, text)
    with pytest.raises(UsageError) as refused:
        registries.mirror()
    assert refused.value.where == registries.MIRROR
    assert "<host:port>" in refused.value.fix


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1:5000/lab/", "127.0.0.1:5000"),
        ("localhost/lab", "localhost"),
        ("registry.example", "registry.example"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_a_registry_is_a_host_with_or_without_port_and_prefix(
    monkeypatch: pytest.MonkeyPatch, text: str, host: str
) -> None:
    monkeypatch.setenv(registries.MIRROR, text)
    assert registries.mirror() == text.rstrip("/")
    assert registries.host(f"{registries.mirror()}/debian:x") == host


def test_without_a_mirror_there_is_none_and_plain_names_are_docker_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registries.MIRROR, raising=False)
    assert registries.mirror() == ""
    assert registries.host("kindest/node:v1") == registries.host("debian") == registries.DOCKER_HUB
