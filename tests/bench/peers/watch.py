"""What a program and all its children take while they run: CPU seconds and memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field

import numpy as np
import psutil

_STEP = 0.25
_PSS_EVERY = 4
_MIB = 1 << 20


@dataclass
class Watched:
    """A program that has ended. The lists beside `at` are in CPU seconds so far.

    Attributes:
        code: its exit code; None: it was ended, for its time was up.
        at: when it was looked at, in nanoseconds of CLOCK_MONOTONIC.
        tree: of the program and all its children.
        server: of the golden server.
        busy: of the whole machine, idle time left out.
        held: MiB of the whole tree at those times, resident.
        rss, pss: peak in MiB of the whole tree; pss counts shared pages once.
    """

    code: int | None = None
    at: list[int] = field(default_factory=list)
    tree: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    rss: float = 0.0
    pss: float = 0.0

    def most_held(self, begin: int, end: int) -> float:
        """Peak of `held` between two times."""
        return max((mib for at, mib in zip(self.at, self.held, strict=True) if begin <= at <= end), default=0.0)

    def between(self, begin: int, end: int, of: list[float]) -> float:
        """CPU seconds between two times."""
        low, high = np.interp([begin, end], self.at, of)
        return float(high - low)


class _Tree:
    """A process and whatever came of it, also children that their parent left behind."""

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._alive: dict[int, psutil.Process] = {root: self._root}
        self._seconds: dict[int, float] = {}

    def cpu(self) -> float:
        with contextlib.suppress(psutil.Error):
            for child in self._root.children(recursive=True):
                self._alive.setdefault(child.pid, child)
        for pid, process in list(self._alive.items()):
            try:
                times = process.cpu_times()
                self._seconds[pid] = times.user + times.system
            except psutil.Error:
                del self._alive[pid]
        return sum(self._seconds.values())

    def memory(self, *, shared_once: bool) -> float:
        total = 0
        for process in self._alive.values():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss if shared_once else process.memory_info().rss
        return total / _MIB

    def kill(self) -> None:
        for process in self._alive.values():
            with contextlib.suppress(psutil.Error):  # psutil compares start times: never another's process
                process.kill()


def watch(program: subprocess.Popen[bytes], server: int, within: float) -> Watched:
    """Look at a running program until it ends or `within` seconds are over; then it is ended, with its children."""
    tree, golden, seen = _Tree(program.pid), psutil.Process(server), Watched()
    deadline = time.monotonic() + within
    usage = None
    for turn in range(1 << 30):
        _look(seen, tree, golden)
        seen.rss = max(seen.rss, seen.held[-1])
        if turn % _PSS_EVERY == 0 and os.path.exists("/proc/self/smaps_rollup"):  # noqa: PTH110 - a flag of the kernel
            seen.pss = max(seen.pss, tree.memory(shared_once=True))
        pid, status, usage = os.wait4(program.pid, os.WNOHANG)
        if pid:
            seen.code = program.returncode = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > deadline:
            _end(program, tree)
            break
        time.sleep(_STEP)
    _look(seen, tree, golden)
    if seen.code is not None and usage is not None:  # what ended between two looks is in its parent's own count
        seen.tree[-1] = max(seen.tree[-1], usage.ru_utime + usage.ru_stime)
    tree.kill()
    return seen


def _look(seen: Watched, tree: _Tree, golden: psutil.Process) -> None:
    taken = golden.cpu_times()
    machine = psutil.cpu_times()
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # are in user and nice already
    seen.at.append(time.monotonic_ns())
    seen.tree.append(max(tree.cpu(), seen.tree[-1] if seen.tree else 0.0))
    seen.server.append(taken.user + taken.system)
    seen.busy.append(sum(machine) - idle - guests)
    seen.held.append(tree.memory(shared_once=False))


def _end(program: subprocess.Popen[bytes], tree: _Tree) -> None:
    program.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.wait(5)
    tree.cpu()  # children that came since
    tree.kill()
    program.wait()
