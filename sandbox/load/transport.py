"""How a request goes out and its reply comes in over a socket, and how late this process may have noticed.

What comes is dated when it was read, which may be later than it came. How much later is bounded by the last moment at
which the socket surely held nothing: an event loop that looks at all its sockets at once knows such moments. A
blocking call knows none.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from sandbox.load.reply import UNKNOWN, Reply

PIECE = 65536
HELD_BACK = 16384  # so much in one reading may have filled the window: the peer may have had to wait for us to read
LAST_LOOKS = 1000
_NOTHING = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Limits:
    """Seconds a request may take in all, and a begun stream may be silent."""

    total: float
    idle: float


@dataclass
class Waits:
    """The waiting until a request is out. Nanoseconds of the monotonic clock.

    Attributes:
        known: a moment at which what was waited for had surely not happened yet.
        proven: how long the peer was surely being waited for, in all.
    """

    known: int
    proven: int = 0

    def over(self, began: int, looked: int | None) -> None:
        """A wait that began at `began` is over; the last look at all sockets that did not end it was at `looked`."""
        self.known = began if looked is None else max(began, looked)
        self.proven += self.known - began


class Transport:
    """Blocking calls, as of any socket code: how late they return is not known."""

    def looked(self) -> int | None:
        """When the last look began that showed nothing for whoever is reading now; None: nobody knows of looks."""
        return None

    def connect(self, connection: socket.socket, address: Any, deadline: int, waits: Waits) -> None:  # noqa: ARG002 - others know more
        """Connect, at the latest at clock reading `deadline`.

        Raises:
            OSError: no connection. TimeoutError: not in time.
        """
        connection.settimeout(left(deadline))
        connection.connect(address)

    def handshake(self, connection: ssl.SSLSocket, deadline: int, waits: Waits) -> None:  # noqa: ARG002 - the same
        """Agree on TLS, at the latest at clock reading `deadline`.

        Raises:
            OSError: no agreement. TimeoutError: not in time.
        """
        connection.settimeout(left(deadline))
        connection.do_handshake()

    def read(self, connection: socket.socket, reply: Reply, limits: Limits, deadline: int, known: int) -> None:
        """Read until the outcome stands, at the latest at clock reading `deadline`.

        The clock is read right after each receive. At `known` nothing had come. Never raises for what the peer does.
        A limit that is over is no time-out before one more look: what came in time and was read late did come.
        """
        idle = int(limits.idle * 1e9)
        now = time.monotonic_ns()
        piled = looks = 0
        while not reply.outcome:
            asked = time.monotonic_ns()
            limit = min(deadline, now + idle) if reply.begun else deadline
            looks = looks + 1 if asked >= limit else 0
            if looks > LAST_LOOKS:
                give_up(reply, limits, asked, limit, silent=limit < deadline)
                return
            try:
                connection.settimeout(max(0.0, (limit - asked) / 1e9))
                data = connection.recv(PIECE)
            except _NOTHING:
                give_up(reply, limits, time.monotonic_ns(), limit, silent=limit < deadline)
                return
            except TimeoutError:
                continue
            except OSError as error:
                now = time.monotonic_ns()
                reply.closed(now, f"broke ({error})", UNKNOWN if self.looked() is None else now - known)
                return
            now = time.monotonic_ns()
            looked = self.looked()
            if looked is not None and looked > asked:  # had to wait, and so had read all that there was before
                known = looked if piled < HELD_BACK else known
                piled = 0
            piled += len(data)
            unsure = UNKNOWN if looked is None else now - known
            if data:
                reply.feed(data, now, unsure)
            else:
                reply.closed(now, "closed", unsure)


def left(deadline: int) -> float:
    """Seconds until clock reading `deadline`, as a time limit of a socket."""
    return max(0.001, (deadline - time.monotonic_ns()) / 1e9)


def give_up(reply: Reply, limits: Limits, now: int, limit: int, *, silent: bool) -> None:
    """End `reply` as a timeout: its stream was silent for too long, or all of it took too long."""
    why = f"silent for {limits.idle:g} s" if silent else f"not done in {limits.total:g} s"
    reply.gave_up(now, why, now - limit)
