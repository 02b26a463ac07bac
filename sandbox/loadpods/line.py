"""The line to one pod: what is told to it and what comes back, event by event."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.errors import Unproven
from sandbox.kube.client import Kube
from sandbox.kube.failures import Unreachable
from sandbox.kube.stream import STDOUT, Stream
from sandbox.load.relay import this_kernel
from sandbox.loadpods.objects import NAMESPACE
from sandbox.loadpods.parcel import COMMAND

_ROUNDS = 20
_ANSWERS_WITHIN = 30.0


@dataclass(frozen=True)
class Clock:
    """How a pod's clock lies to ours, in nanoseconds.

    Attributes:
        offset: what is added to a reading of ours to get the pod's at that moment.
        uncertain: how far off that may be, at most: half of the quickest round trip; 0 where it is the same clock.
        same: it is the same kernel's clock, so nothing had to be estimated.
        seen: the estimate, which for the same clock has to be about 0.
    """

    offset: int
    uncertain: int
    same: bool
    seen: int


class Line:
    """One pod's process, from its start to its end."""

    def __init__(self, kube: Kube, pod: str, parcel: bytes, timeline: Path, log: Path) -> None:
        """Start it with what it needs.

        Raises:
            ApiError, Unreachable: the pod could not be reached.
        """
        self.pod = pod
        self.code: int | None = None
        self.said: list[str] = []
        self._stream = Stream(kube, NAMESPACE, pod, COMMAND)
        self._timeline = os.open(timeline, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._events = 0
        self._changed = threading.Condition()
        self._clocks: list[int] = []
        self._kernel: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._read, name=f"line to {pod}", daemon=True)
        self._thread.start()
        self.send(parcel)

    def send(self, data: bytes) -> None:
        """Write to the process's standard input."""
        self._stream.send(data)

    def clock(self) -> Clock:
        """Compare the pod's clock with ours.

        Raises:
            Unproven: the pod does not answer.
        """
        self.until(lambda: bool(self._kernel), _ANSWERS_WITHIN, "to come up")
        best: tuple[int, int] | None = None
        for _ in range(_ROUNDS):
            count, begun = len(self._clocks), time.monotonic_ns()
            self.send(b"clock\n")
            self.until(lambda count=count: len(self._clocks) > count, _ANSWERS_WITHIN, "to tell the time")  # type: ignore[misc]
            ended = time.monotonic_ns()
            found = (ended - begun) // 2, self._clocks[-1] - (begun + ended) // 2
            best = found if best is None else min(best, found)
        uncertain, offset = best or (0, 0)
        same = self._kernel == this_kernel() and "unknown" not in self._kernel
        return Clock(0 if same else offset, 0 if same else uncertain, same, offset)

    def order(self, order: dict[str, Any]) -> None:
        """Have it start its load process."""
        self.send(b"order " + json.dumps(order).encode() + b"\n")

    def stop(self) -> None:
        """Have its load process end early, in order; what is gone already needs no telling."""
        try:
            self.send(b"stop\n")
        except Unreachable:
            return

    def until(self, true: Callable[[], bool], within: float, what: str) -> None:
        """Wait until something is so.

        Raises:
            Unproven: it was not in time, or the process ended first.
        """
        with self._changed:
            self._changed.wait_for(lambda: true() or self.code is not None, within)
        if not true():
            how = "had no time" if self.code is None else f"ended (exit code {self.code}) before it was"
            raise Unproven(f"load pod {self.pod} {how} {what}", details=self.said[-5:])

    def join(self, within: float) -> bool:
        """Wait for its end; False: it still runs."""
        self._thread.join(within)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Cut the line; whatever runs there ends."""
        self._stream.close()
        self._thread.join()
        for file in (self._timeline, self._log):
            os.close(file)

    def _read(self) -> None:
        rest = b""
        for channel, data in self._stream.read():
            if channel != STDOUT:
                os.write(self._log, data)
                continue
            *lines, rest = (rest + data).split(b"\n")
            self._take(lines)
        with self._changed:
            self.code = -1 if self.code is None else self.code
            self._changed.notify_all()

    def _take(self, lines: list[bytes]) -> None:
        """Events go into the timeline as they are, whole lines in one write."""
        events = [line[len(b"event ") :] for line in lines if line.startswith(b"event ")]
        if events:
            os.write(self._timeline, b"\n".join(events) + b"\n")
            self._events += len(events)
        with self._changed:
            for line in lines:
                word, _, text = line.decode().partition(" ")
                if word == "said":
                    self.said.append(text)
                elif word == "clock":
                    self._clocks.append(int(text))
                elif word == "ready":
                    self._kernel = tuple(text.split())
                elif word == "end":
                    self._ended(text)
            self._changed.notify_all()

    def _ended(self, text: str) -> None:
        """How it ended; an event that did not arrive here, or not whole, is a failure however it ended there."""
        code, events, *torn = text.split()
        whole = int(events) == self._events and not torn
        self.code = int(code) if whole else 1
        if not whole:
            os.write(self._log, f"{self.pod} wrote {events} events, {self._events} arrived\n".encode())
