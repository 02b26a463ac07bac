"""Work beside the main thread that ends with it: what an interrupt or a failure made useless is not waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.errors import ImageUnavailable

_GRACE = 10.0  # seconds; debootstrap unmounts what it mounted
_mine = threading.local()


@dataclass
class _Crew:
    """What the threads of one `at_work` are in the middle of: how to end each."""

    stops: list[Callable[[], object]] = field(default_factory=list)
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def at_work(size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose work is of use only as a whole: when the block fails or is interrupted, they are ended."""
    crew = _Crew()
    pool = ThreadPoolExecutor(size, initializer=_join, initargs=(crew,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        with crew.lock:
            crew.over, stops = True, [*crew.stops]
        for stop in stops:
            with suppress(Exception):  # nothing may hide why it ends
                stop()
        raise
    finally:
        pool.shutdown()


def _join(crew: _Crew) -> None:
    _mine.crew = crew


def check() -> None:
    """Raise ImageUnavailable in a thread whose work is of no use any more."""
    crew: _Crew | None = getattr(_mine, "crew", None)
    if crew and crew.over:
        raise ImageUnavailable("was given up: the build it was for has ended")


@contextmanager
def ending(stop: Callable[[], object]) -> Iterator[None]:
    """While inside, `stop` is called from another thread to end what this one waits for."""
    crew: _Crew | None = getattr(_mine, "crew", None)
    if crew is None:  # the main thread is interrupted by itself
        yield
        return
    with crew.lock:
        check()
        crew.stops.append(stop)
    try:
        yield
    finally:
        with crew.lock:
            crew.stops.remove(stop)


def run(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    text: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, or end it with all that it started when this work is given up.

    Args:
        command: the program and its arguments.
        folder: where it runs.
        environment: all of it; ours when not given.
        text: what it reads.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            with ending(lambda: _end(process)):
                said, complained = process.communicate(text)
        except BaseException:
            _end(process)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


def _end(process: subprocess.Popen[str]) -> None:
    """End a program and its children, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # the second is macOS's word for a group that is gone
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
