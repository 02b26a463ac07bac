"""Reading with gevent's event loop directly: no switch of greenlets and no timer for each chunk.

Imported only inside the load process. The blocking transport says the same, a third as fast.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from typing import Any

import gevent
from gevent.event import Event
from gevent.socket import wait_read, wait_write

from sandbox.load.reply import UNKNOWN, Reply
from sandbox.load.transport import HELD_BACK, LAST_LOOKS, PIECE, Limits, Transport, Waits, give_up, left

_READ = 1
_PENDING = (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)
_BACKENDS = ("epoll", "poll", "select")  # of libev, whose way of looking is known
_NEVER = 1 << 62
_TICK = 0.005  # a loop with nothing to do looks so often all the same: the next reading then knows when it did
_FIRST_ROOM = 64  # events that libev's epoll takes at a time, until there were as many


class Polls:
    """When an event loop looked at its sockets.

    One look, a poll, asks the kernel about all sockets at once. A socket that was being watched before a poll began,
    and that the poll did not name, held nothing when it began. That holds however long this process was stopped
    before, during or after the poll. It holds only if the poll named all that were ready: epoll gives out so many
    events at a time, libev doubles that number when it is reached, and a poll that may have reached it proves nothing.

    Attributes:
        sure: the loop is libev's, with a way of looking that is known. Of another kind nothing is known.
        known: clock reading when the last poll began that proves this. The poll under way, or whose events are being
            handled now, is never meant: it may have named the socket.
        seen: of the events of this poll, how many were readings of ours.
    """

    def __init__(self, loop: Any) -> None:
        """Watch `loop` from now on."""
        self.sure = hasattr(loop, "pendingcnt") and getattr(loop, "backend", "") in _BACKENDS
        self.known = 0
        self.seen = 0
        self._loop = loop
        self._began = 0
        self._whole = False
        self._room = _FIRST_ROOM
        if self.sure:  # the last thing before a poll and the first after it; none of them keeps the loop from ending
            self._before = loop.prepare(ref=False, priority=loop.MINPRI)
            self._behind = loop.check(ref=False, priority=loop.MAXPRI)
            self._before.start(self._begins)
            self._behind.start(self._ended)
            self._tick = loop.timer(_TICK, repeat=_TICK, ref=False)
            self._tick.start(_nothing)

    def _begins(self) -> None:
        if self._whole:
            self.known = self._began
            self._whole = False
        if self.seen >= self._room:  # so many fitted in at least
            self._room *= 2
        self.seen = 0
        self._began = time.monotonic_ns()

    def _ended(self) -> None:
        # Pending are the events, and timers: rather too many. A quarter is left for events that nobody waits for.
        self._whole = self._loop.pendingcnt * 4 < self._room * 3


def _nothing() -> None:
    """That it was called is enough: a poll has ended."""


_polls: dict[Any, Polls] = {}


def polls() -> Polls:
    """The polls of this thread's event loop, watched from the first call on."""
    loop = gevent.get_hub().loop
    if loop not in _polls:
        _polls[loop] = Polls(loop)
    return _polls[loop]


class _Stream:
    """One reply as its socket's event brings it."""

    __slots__ = ("_first", "_known", "_polls", "_receive", "_reply", "_watcher", "done", "last")

    def __init__(self, connection: socket.socket, reply: Reply, known: int) -> None:
        plain: Any = connection._sock  # type: ignore[attr-defined]  # noqa: SLF001 - gevent's way to the socket below
        self.done = Event()
        self.last = time.monotonic_ns()
        self._reply = reply
        self._receive = plain.recv
        self._polls = polls()
        self._known = known  # nothing had come
        self._first = time.monotonic_ns()  # polls from here on count
        self._watcher = gevent.get_hub().loop.io(connection.fileno(), _READ)
        self._watcher.start(self.receive)

    def receive(self) -> bool:
        """Take what is there; False: nothing, or the end."""
        before = time.monotonic_ns()
        try:
            data = self._receive(PIECE)
        except BlockingIOError:
            return False
        except OSError as error:
            now = time.monotonic_ns()
            self._reply.closed(now, f"broke ({error})", self._unsure(now))
            self.done.set()
            return False
        self.last = now = time.monotonic_ns()
        unsure = self._unsure(now)
        if len(data) < HELD_BACK:  # all that was there
            self._known = self._first = before
        else:  # more may be, or may have been kept back for want of room: until that is read nothing new is known
            self._known = now - unsure
            self._first = _NEVER
        if data:
            if self._reply.feed(data, now, unsure):
                self.done.set()
            return True
        self._reply.closed(now, "closed", unsure)
        self.done.set()
        return False

    def _unsure(self, now: int) -> int:
        polls = self._polls
        polls.seen += 1
        known = polls.known
        return now - (known if known > self._first else self._known) if polls.sure else UNKNOWN

    def look(self) -> None:
        """Take all that is there."""
        for _ in range(LAST_LOOKS):
            if self._reply.outcome or not self.receive():
                return

    def close(self) -> None:
        """Hear no more of it."""
        self._watcher.stop()
        self._watcher.close()


class GreenTransport(Transport):
    """On gevent's event loop, whose polls say how late each thing may have been noticed.

    Everything that is waited for is continued by the callback of its own event: what runs later, from a queue, could
    take the very poll that named its socket for one that did not.
    """

    def looked(self) -> int | None:
        """When the last poll began that did not name the socket of whoever was called back by its event."""
        seen = polls()
        return seen.known if seen.sure else None

    def connect(self, connection: socket.socket, address: Any, deadline: int, waits: Waits) -> None:
        """Connect; `waits` learns how much of the time was the peer's."""
        connection.settimeout(0.0)
        code = connection.connect_ex(address)
        if code in _PENDING:
            self._wait(wait_write, connection, deadline, waits)
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def handshake(self, connection: ssl.SSLSocket, deadline: int, waits: Waits) -> None:
        """Agree on TLS; `waits` learns how much of the time was the peer's."""
        connection.settimeout(0.0)
        while True:
            try:
                connection.do_handshake()
            except ssl.SSLWantReadError:
                self._wait(wait_read, connection, deadline, waits)
            except ssl.SSLWantWriteError:
                self._wait(wait_write, connection, deadline, waits)
            else:
                return

    def _wait(self, how: Any, connection: socket.socket, deadline: int, waits: Waits) -> None:
        self.looked()  # somebody has to watch from the first wait on
        began = time.monotonic_ns()
        try:
            how(connection.fileno(), timeout=left(deadline), timeout_exc=TimeoutError("timed out"))
        finally:
            waits.over(began, self.looked())

    def read(self, connection: socket.socket, reply: Reply, limits: Limits, deadline: int, known: int) -> None:
        """Read until the outcome stands, as any transport does; TLS goes the long way, on the same loop."""
        if isinstance(connection, ssl.SSLSocket):
            super().read(connection, reply, limits, deadline, known)
            return
        stream = _Stream(connection, reply, known)
        idle = int(limits.idle * 1e9)

        def limit() -> int:
            return min(deadline, stream.last + idle) if reply.begun else deadline

        try:
            while not reply.outcome:
                now, until = time.monotonic_ns(), limit()
                if until > now:
                    stream.done.wait(min(until - now, idle) / 1e9)
                    continue
                stream.look()
                if not reply.outcome and limit() == until:
                    give_up(reply, limits, now, until, silent=until < deadline)
        finally:
            stream.close()
