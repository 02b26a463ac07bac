"""Pulls against an engine that stops in the middle: bounded in time, and told as what could not be had."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from sandbox.errors import ImageUnavailable
from sandbox.images import registry

EVENT = b'{"status":"Pulling from lab/x"}\r\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = HEAD + b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
REFUSED = b'{"error":"manifest unknown"}\r\n'


class Engine:
    """Answers which version it speaks, and a pull with `script`; then it is silent, or hangs up."""

    def __init__(self, script: bytes, *, hang_up: bool) -> None:
        self.script, self.hang_up = script, hang_up
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.open: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self.listening.accept()
            except OSError:
                return
            request = link.recv(65536)
            if b"/version" in request:
                body = b'{"ApiVersion":"1.41"}'
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
                link.sendall(head + b"%d\r\n\r\n%s" % (len(body), body))
                link.close()
                continue
            link.sendall(self.script)
            if self.hang_up:
                link.close()
            else:
                self.open.append(link)

    def end(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.thread.join()
        for link in self.open:
            link.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    script, hang_up = request.param
    fake = Engine(script, hang_up=hang_up)
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{fake.listening.getsockname()[1]}")
    monkeypatch.setattr(registry, "_SILENCE", 1)
    yield fake
    fake.end()


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ((FIRST, False), "the registry stopped sending: nothing for 1 s"),
        ((b"", False), "the registry stopped sending: nothing for 1 s"),
        ((FIRST, True), ""),
        ((FIRST + b"ff\r\n{", True), ""),
        ((HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(REFUSED), REFUSED), True), "manifest unknown"),
    ],
    indirect=["engine"],
    ids=["silent", "silent from the start", "hung up", "cut short", "refused"],
)
def test_a_pull_that_stops_is_told_within_its_time(engine: Engine, said: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ImageUnavailable) as raised:
        registry.fetch("127.0.0.1:5000/lab/x", "1")
    assert time.monotonic() - begun < 10
    assert said in raised.value.what
    assert raised.value.fix
