"""A loopback server whose truth is known: it streams at fixed times, logs when it sent, and misbehaves on request.

The load client is judged against its log, in tests and before a run (see `sandbox.load.calibrate`). A process of
its own: `python -m sandbox.load.golden SETTINGS-AS-JSON`, started through `golden`.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sandbox.errors import EnvironmentMissing

MODEL = "golden"
Kind = Literal[
    "ok",
    "dribble",  # a whole answer, a few bytes at a time
    "slow_head",  # a whole answer, its status line `first` late
    "no_done",  # a whole answer without [DONE]
    "cut",  # the connection is closed half-way
    "reset",  # … with a TCP reset
    "hang",  # … not at all: silence
    "vanish",  # closed before the first byte
    "mute",  # never a byte
    "no_finish",  # [DONE] comes, a finish_reason never did
    "malformed",  # half-way an event that is not JSON
    "inband_error",  # half-way an event that reports an error
    "http_error",  # 503
    "rejected",  # 400 with the code content_filter
    "filtered",  # finish_reason content_filter
    "not_a_stream",  # JSON, where a stream was asked for
    "not_http",  # another protocol
]
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_NOT_SENT = 0x894B  # SIOCOUTQNSD of linux/sockios.h: bytes that TCP has not sent yet
_START_WITHIN = 30.0


class GoldenSettings(BaseModel):
    """How it answers. Times in seconds."""

    # Not a spec's model: what reads specs is a quarter of the memory of a server that flies along with every load.
    model_config = ConfigDict(extra="forbid", frozen=True)

    first: float = Field(default=0.1, ge=0, description="From request to first token.")
    gap: float = Field(default=0.05, ge=0, description="Between tokens.")
    tokens: int = Field(default=20, ge=0, description="Per answer; what a request asks for is not heeded.")
    after: int = Field(default=3, ge=0, description="A fault half-way strikes after so many tokens.")
    kinds: list[Kind] = Field(default=["ok"], min_length=1, description="The n-th request gets the n-th, in a circle.")
    key: str = Field(default="", description="The API key it wants.")
    log: Path
    certificate: Path | None = Field(default=None, description="With it, and `key_file`, it speaks TLS.")
    key_file: Path | None = None


def beside(log: Path) -> GoldenSettings:
    """How it answers the streams that fly along with a load: often, for the load may be short."""
    return GoldenSettings(first=0.02, gap=0.02, tokens=50, log=log)


@dataclass(frozen=True)
class Served:
    """One line of its log. Times in nanoseconds of CLOCK_MONOTONIC.

    Attributes:
        sent: when each content chunk was about to be written.
        written: when it had been sent, and so was at the client's kernel; 0: it went into a buffer first.
    """

    number: str
    kind: Kind
    received: int
    sent: list[int]
    written: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Golden:
    """A golden server that runs."""

    url: str
    pid: int
    log: Path

    def served(self) -> list[Served]:
        """What it has served so far, in the order of the ends."""
        return [TypeAdapter(Served).validate_json(line) for line in self.log.read_bytes().splitlines()]


@contextmanager
def golden(settings: GoldenSettings) -> Iterator[Golden]:
    """Run a golden server on a free port of the loopback address while the block runs.

    Raises:
        EnvironmentMissing: it did not start.
    """
    settings.log.touch()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sandbox.load.golden", settings.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the harness, which ends it in order
    )
    try:
        ready = process.stdout is not None and select.select([process.stdout], [], [], _START_WITHIN)[0]
        port = process.stdout.readline() if process.stdout is not None and ready else b""
        if not port.strip().isdigit():
            raise EnvironmentMissing("the golden server did not start", fix="run: sandbox doctor")
        scheme = "https" if settings.certificate else "http"
        yield Golden(f"{scheme}://127.0.0.1:{int(port)}", process.pid, settings.log)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class _Conversation(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._data = b""
        self._waiting: asyncio.TimerHandle | None = None
        self._kind: Kind = "ok"
        self._unlogged = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP server's protocols get a Transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._waiting is not None:
            self._waiting.cancel()
        self._log()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._data = b""
        self._stay = headers.get("connection", "").lower() != "close"
        if self._server.settings.key and headers.get("authorization") != f"Bearer {self._server.settings.key}":
            self._plain(401, {"error": {"message": "wrong key", "code": "invalid_api_key"}})
        elif lines[0].startswith("GET /v1/models "):
            self._plain(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif lines[0].startswith(("POST /v1/chat/completions ", "POST /v1/completions ")):
            self._answer(lines[0], headers, json.loads(body))
        elif lines[0].startswith("POST /v1/embeddings "):
            self._begin_answer(headers)
            vectors = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
            self._plain(200, {"object": "list", "model": MODEL, "data": vectors, "usage": {"prompt_tokens": 1}})
        else:
            self._plain(404, {"error": {"message": "no such path"}})

    def _begin_answer(self, headers: dict[str, str]) -> None:
        self._begin = time.monotonic_ns()
        self._number = headers.get("x-request-id", "")
        self._kind = self._server.next_kind()
        self._unlogged = True
        self._sent: list[int] = []
        self._written: list[int] = []

    def _answer(self, request: str, headers: dict[str, str], asked: dict[str, Any]) -> None:
        self._begin_answer(headers)
        self._chat = "/chat/" in request
        early: dict[str, Callable[[], None]] = {
            "vanish": self._close,
            "not_http": lambda: self._last(b"220 golden.example ESMTP\r\n"),
            "http_error": lambda: self._plain(503, {"error": {"message": "overloaded"}}),
            "rejected": lambda: self._plain(400, {"error": {"message": "no", "code": "content_filter"}}),
            "not_a_stream": lambda: self._whole("stop"),
        }
        if self._kind in early:
            early[self._kind]()
        elif not asked.get("stream"):
            self._whole("content_filter" if self._kind == "filtered" else "stop")
        elif self._kind == "slow_head":
            self._later(self._server.settings.first, self._start)
        elif self._kind != "mute":
            self._start()

    def _start(self) -> None:
        self._write(_HEAD)
        if self._chat:
            self._event({"choices": [self._choice({"role": "assistant", "content": ""})]})
        self._before, self._behind = self._around()
        self._due = self._loop.time() + self._server.settings.first
        self._waiting = self._loop.call_at(self._due, self._token)

    def _around(self) -> tuple[bytes, bytes]:
        """What stands before and behind the text of every content event: made once, for thousands a second follow."""
        event = self._rendered({"choices": [self._choice({"content": "?"} if self._chat else "?")]})
        before, _, behind = event.partition(b'"?"')
        return before + b'" ', b'"' + behind

    def _token(self) -> None:
        """One token; each at its own time, so that lateness does not add up.

        Its text is the clock's reading before it is written, and after the one before it had been: `1200/1100`.
        """
        self._waiting = None
        settings = self._server.settings
        count = len(self._sent)
        if count == settings.after and self._kind in ("cut", "reset", "hang", "malformed", "inband_error"):
            self._strike()
        elif count == settings.tokens:
            self._end()
        else:
            now = time.monotonic_ns()
            self._sent.append(now)
            event = b"%s%d/%d%s" % (self._before, now, self._written[-1] if self._written else 0, self._behind)
            self._write(b"%x\r\n%s\r\n" % (len(event), event))
            self._written.append(time.monotonic_ns() if self._is_out() else 0)
            self._due += settings.gap
            self._waiting = self._loop.call_at(self._due, self._token)

    def _is_out(self) -> bool:
        """All that was written has left: nothing waits here for room, nor in the kernel for the client's word."""
        if self._transport.get_write_buffer_size():
            return False
        unsent = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), _NOT_SENT, bytes(4))
        return not int.from_bytes(unsent, sys.byteorder)

    def _strike(self) -> None:
        if self._kind == "malformed":
            self._write(_chunk(b'data: {"choices": [{"delta": {"content": "x"}\n\n'))
            self._end()
        elif self._kind == "inband_error":
            self._event({"error": {"message": "engine died", "code": 500}})
            self._end()
        elif self._kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._log()
            self._transport.abort()
        elif self._kind == "cut":
            self._close()

    def _end(self) -> None:
        reason = {"filtered": "content_filter", "no_finish": None}.get(self._kind, "stop")
        self._event({"choices": [self._choice({} if self._chat else "", reason)]})
        self._event({"choices": [], "usage": _usage(len(self._sent))})
        self._last((b"" if self._kind == "no_done" else _chunk(b"data: [DONE]\n\n")) + b"0\r\n\r\n")

    def _choice(self, piece: dict[str, str] | str, reason: str | None = None) -> dict[str, Any]:
        held = {"delta": piece} if self._chat else {"text": piece}
        return {"index": 0, **held, "logprobs": None, "finish_reason": reason}

    def _event(self, event: dict[str, Any]) -> None:
        self._write(_chunk(self._rendered(event)))

    def _rendered(self, event: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        whole = {"id": f"golden-{self._number}", "object": kind, "created": 1700000000, "model": MODEL, **event}
        return b"data: %s\n\n" % json.dumps(whole).encode()

    def _whole(self, reason: str) -> None:
        held = {"message": {"role": "assistant", "content": "hello"}} if self._chat else {"text": "hello"}
        choice = {"index": 0, **held, "finish_reason": reason}
        self._plain(200, {"model": MODEL, "choices": [choice], "usage": _usage(1)})

    def _plain(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Golden\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        self._last(head.encode() + text)

    def _later(self, delay: float, then: Callable[[], None]) -> None:
        self._waiting = self._loop.call_later(delay, then)

    def _write(self, data: bytes) -> None:
        if self._kind != "dribble":
            self._transport.write(data)
            return
        for place in range(0, len(data), 7):
            self._transport.write(data[place : place + 7])

    def _last(self, data: bytes) -> None:
        self._log()  # first: whoever has the last byte may look into the log
        self._transport.write(data)
        if not self._stay:
            self._transport.close()

    def _close(self) -> None:
        self._log()
        self._transport.close()

    def _log(self) -> None:
        if self._unlogged:
            self._server.log(Served(self._number, self._kind, self._begin, self._sent, self._written))
            self._unlogged = False


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class _Server:
    """What the connections share."""

    def __init__(self, settings: GoldenSettings) -> None:
        self.settings = settings
        self._count = 0
        self._file = os.open(settings.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def next_kind(self) -> Kind:
        kind = self.settings.kinds[self._count % len(self.settings.kinds)]
        self._count += 1
        return kind

    def log(self, served: Served) -> None:
        os.write(self._file, TypeAdapter(Served).dump_json(served) + b"\n")


async def _serve(settings: GoldenSettings) -> None:
    server = _Server(settings)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if settings.certificate else None
    if tls is not None and settings.certificate is not None:
        tls.load_cert_chain(settings.certificate, settings.key_file)
    listening = await asyncio.get_running_loop().create_server(
        lambda: _Conversation(server), "127.0.0.1", 0, backlog=4096, ssl=tls
    )
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), gone.set)  # the pipe's end: the parent is no more
    gc.collect()
    gc.freeze()  # a collection would make every stream late at once
    print(listening.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - the parent reads it
    await gone.wait()


if __name__ == "__main__":
    asyncio.run(_serve(GoldenSettings.model_validate_json(sys.argv[1])))
