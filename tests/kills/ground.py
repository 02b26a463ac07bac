"""Where commands are killed: a state folder of their own, and this process as the parent of all that they leave."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sandbox.host import mark

ROOT = Path(__file__).parents[2]
SNAPSHOT = "mine"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_REAPED_SECONDS = 180.0
_COMMAND_SECONDS = 300.0
_SLICE_SECONDS = 1.0

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Killed:
    """How a command ended that was to be killed: by the signal, or by itself before, with that code."""

    code: int
    words: str

    @property
    def midway(self) -> bool:
        return self.code < 0


@dataclass
class Ground:
    """Where the commands run.

    Attributes:
        folder: holds the state folder, temporary files, runs, and a kubeconfig that is somebody else's.
        cluster: the name of the cluster that they make.
        engine: address of the engine; empty for the machine's own.
    """

    folder: Path
    cluster: str
    engine: str = ""

    def __post_init__(self) -> None:
        for each in (self.state, self.temporary):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def env(self) -> dict[str, str]:
        """For commands; no mark of this process."""
        own = {"SANDBOX_STATE_DIR": self.state, "TMPDIR": self.temporary, "PYTHONPATH": ROOT}
        own |= {"KUBECONFIG": self.folder / "kubeconfig"}
        return {**mark.without(), **{key: str(value) for key, value in own.items()}} | (
            {"DOCKER_HOST": self.engine} if self.engine else {}
        )

    def sandbox(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command that is let be; how it ended. One that does not end is killed, and has the code -9."""
        command = [sys.executable, "-m", "sandbox", *words]
        env = {**self.env, **environment}
        with subprocess.Popen(
            command, env=env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                out, err = process.communicate(timeout=_COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            return subprocess.CompletedProcess(command, process.returncode, out, err)

    def killed(self, words: Sequence[str], after: float, **environment: str) -> Killed:
        """Start a command and send it SIGKILL after so many seconds, if it still runs then."""
        with self.started(words, **environment) as process:
            try:
                process.wait(timeout=after)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return Killed(process.returncode, self.log.read_text(errors="replace"))

    @contextmanager
    def started(self, words: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs beside; what it says is in `log`."""
        command = [sys.executable, "-m", "sandbox", *words]
        env = {**self.env, **environment}
        with (
            self.log.open("wb") as sink,
            subprocess.Popen(command, env=env, cwd=self.folder, stdout=sink, stderr=sink) as process,
        ):
            yield process

    @property
    def log(self) -> Path:
        return self.folder / "killed.log"

    def settled(self) -> list[str]:
        """Wait until the reaper of a killed command has ended; name every process that outlives it.

        What a killed command started becomes a child of this process (see `adopting`), so each end is waited for.
        """
        deadline = time.monotonic() + _REAPED_SECONDS
        while there := [each for each in psutil.Process().children(recursive=True) if self._is_ours(each)]:
            _, alive = psutil.wait_procs(there, timeout=_SLICE_SECONDS)
            if alive and not any(_is_reaper(each) or _ends(each) for each in alive):
                return [_named(each) for each in alive]
            if time.monotonic() > deadline:
                return [f"{_named(each)}, after {_REAPED_SECONDS:.0f} s" for each in alive]
        return []

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            known = {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
            # one that has ended, or is just becoming another program, shows nothing: it is looked at again
            return not known or known.get("SANDBOX_STATE_DIR") == str(self.state)
        except (psutil.Error, OSError):
            return False

    @property
    def records(self) -> Records:
        """Name of a cluster -> its record, of all that are whole."""
        found = sorted((self.state / "clusters").glob("*/record.json"))
        return {each.parent.name: json.loads(each.read_text()) for each in found}

    @property
    def snapshots(self) -> Records:
        """Name of a snapshot -> what its file says."""
        found = sorted((self.state / "snapshots").glob("*.json"))
        return {each.stem: json.loads(each.read_text().split("\n", 1)[1]) for each in found}

    @property
    def pool(self) -> set[str]:
        """The names of clusters that wait in the pool."""
        return {name for name, each in self.records.items() if each["pooled"]}

    def pooled_since(self, name: str) -> float:
        """When a cluster was put into the pool, in seconds since the epoch."""
        return float(json.loads((self.state / "clusters" / name / "clean.json").read_text())["since"])

    @property
    def handed(self) -> str:
        """What the cluster is called in the engine; empty where there is none that was handed over whole."""
        known = self.records.get(self.cluster)
        return engine_name(known) if known and not known["owner"] else ""


def engine_name(known: dict[str, Any]) -> str:
    """What a recorded cluster's things are called in the engine."""
    return str(known.get("held_as") or known["name"])


@contextmanager
def adopting() -> Iterator[None]:
    """Be the parent of whatever loses its own among this process's descendants."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)


def _is_reaper(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(word.endswith("reaper.py") for word in words) or words[-2:] == ["sandbox", "gc"]


def _ends(process: psutil.Process) -> bool:
    """Whether it is on its way out: its memory is gone, and its words with it. On a busy machine that takes a while."""
    try:
        return not process.cmdline()
    except psutil.Error:
        return True


def _named(process: psutil.Process) -> str:
    try:
        return f"process {process.pid}: {' '.join(process.cmdline())[:120]}"
    except psutil.Error:
        return f"process {process.pid}"
