"""A process beside each command that makes things: should the command be killed, it clears away what that left.

It waits at the end of a pipe. The command says a word before it ends, however it ends; where the pipe closes without,
it was killed, and `sandbox gc` is run in this process's place.

Started as a file of its own, without the rest of the package: it takes 10 ms, and a few megabytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WORD = b"done"
_END_SECONDS = 5.0
_LOG_BYTES = 1 << 20


@contextmanager
def watch() -> Iterator[None]:
    """Have a reaper for as long as what happens inside; one is enough for a process."""
    from sandbox import paths  # noqa: PLC0415 - the reaper itself needs none of it
    from sandbox.cluster.owner import Owner  # noqa: PLC0415
    from sandbox.host.mark import MARK  # noqa: PLC0415

    if MARK in os.environ:  # of this process already, or of the one that started it
        yield
        return
    me = Owner.me()
    log = paths.state_dir() / "reaper.log"
    with log.open("wb" if log.exists() and log.stat().st_size > _LOG_BYTES else "ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            start_new_session=True,  # neither Ctrl-C nor the end of a terminal reaches it
        )
    os.environ[MARK] = f"{me.pid} {me.started} {paths.state_dir()}"
    try:
        yield
    finally:
        del os.environ[MARK]
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(_WORD)
                process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_SECONDS)


def main() -> None:
    """Wait for the command's word; without it, clear away."""
    if sys.stdin.buffer.read():
        return
    os.execv(sys.executable, [sys.executable, "-m", "sandbox", "gc"])  # noqa: S606 - this very program


if __name__ == "__main__":
    main()
