"""Others' work on the same machine, bounded in time and count, for runs that must come to a verdict all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sandbox.errors import EnvironmentMissing

LONGEST = 1800  # seconds: what still runs then ends by itself
_LOOP = f"import time\nend = time.monotonic() + {LONGEST}\nwhile time.monotonic() < end: pass"
_COMPILE = "while :; do go build -a -p 1 -o /dev/null std || exit 1; done"
_CLUSTER = "while :; do {sandbox} up trio --name neighbour && {sandbox} down neighbour || exit 1; done"


@contextmanager
def _busy(command: list[str], count: int, env: dict[str, str], work: Path) -> Iterator[None]:
    """Run `count` copies of a command, each in a process group of its own, and end them with their children."""
    bounded = ["timeout", "--kill-after=30", str(LONGEST), *command]
    started = [
        subprocess.Popen(
            bounded, env=env, cwd=work, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(count)
    ]
    try:
        yield
        if over := [each.args for each in started if each.poll() is not None]:
            raise EnvironmentMissing(f"{len(over)} of {count} neighbours ended too soon: {over[0]}")
    finally:
        for each in started:
            each.terminate()  # `timeout` passes it on to the group it leads
        for each in started:
            each.wait()


def loops() -> AbstractContextManager[None]:
    """Eight processes that compute and never wait."""
    return _busy([sys.executable, "-c", _LOOP], 8, dict(os.environ), Path.cwd())


@contextmanager
def compilers() -> Iterator[None]:
    """Four builds of Go's standard library, over and over: bursts of processes, memory and file system."""
    if not shutil.which("go"):
        raise EnvironmentMissing("there is no Go compiler", fix="sandbox images build, which brings it, or install Go")
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as folder:
        env = {**os.environ, "GOCACHE": str(Path(folder) / "cache"), "TMPDIR": folder}
        with _busy(["sh", "-c", _COMPILE], 4, env, Path(folder)):
            yield


@contextmanager
def second_cluster() -> Iterator[None]:
    """A cluster of three nodes that comes up and goes down, over and over, with records of its own."""
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as folder:
        env = {**os.environ, "SANDBOX_STATE_DIR": folder}
        sandbox = f"{sys.executable} -m sandbox"
        try:
            with _busy(["sh", "-c", _CLUSTER.format(sandbox=sandbox)], 1, env, Path.cwd()):
                yield
        finally:
            subprocess.run([sys.executable, "-m", "sandbox", "down", "neighbour"], env=env, check=False)


NEIGHBOURS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "nobody": nullcontext,
    "eight busy loops": loops,
    "four compilers": compilers,
    "a cluster of three nodes that comes and goes": second_cluster,
}
