"""Reading a reply with gevent's event loop directly: no switch of greenlets and no timer for each chunk.

Imported only inside the load process. The plain reader of `sandbox.load.client` says the same, a third as fast.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

import gevent
from gevent.event import Event

from sandbox.load.client import PIECE, Limits, give_up, read
from sandbox.load.reply import Reply

_READ = 1


def read_green(connection: socket.socket, reply: Reply, limits: Limits, deadline: int) -> None:
    """Read until the outcome stands, as `sandbox.load.client.read` does; TLS goes that way."""
    if isinstance(connection, ssl.SSLSocket):
        read(connection, reply, limits, deadline)
        return
    plain: Any = connection._sock  # type: ignore[attr-defined]  # noqa: SLF001 - gevent's way to the socket below
    loop = gevent.get_hub().loop
    readable = loop.io(connection.fileno(), _READ)
    done = Event()
    last = time.monotonic_ns()
    idle = int(limits.idle * 1e9)

    def receive() -> None:
        nonlocal last
        try:
            data = plain.recv(PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            reply.closed(time.monotonic_ns(), f"broke ({error})")
            done.set()
            return
        last = time.monotonic_ns()
        if data:
            if reply.feed(data, last):
                done.set()
        else:
            reply.closed(last, "closed")
            done.set()

    readable.start(receive)
    try:
        while not reply.outcome:
            now = time.monotonic_ns()
            limit = min(deadline, last + idle) if reply.begun else deadline
            if limit <= now:
                give_up(reply, limits, now, silent=limit < deadline)
            else:
                done.wait(min(limit - now, idle) / 1e9)
    finally:
        readable.stop()
        readable.close()
