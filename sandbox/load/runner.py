"""Start the load process, watch it, end it. The main process never imports Locust or gevent."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from sandbox.errors import DeadlineExceeded, Unproven, UsageError
from sandbox.load.plan import LoadPlan
from sandbox.timeline import Timeline

START_WITHIN = 60.0
_EACH_WITHIN = 20.0  # workers start at the same time, on cores that others use too
_STOP_SLACK = 10.0
_LOADS_WITHIN = 60.0
_LOG_LINES = 20


class LoadProcess:
    """A load under way.

    Attributes:
        started_at: when the first scheduled arrival lies, in the run's seconds; fault times count from here.
        pid: the process.
        log: what it said on its standard error.
    """

    def __init__(self, process: subprocess.Popen[bytes], plan: LoadPlan, log: Path, started_at: float) -> None:
        self.started_at = started_at
        self.pid = process.pid
        self.log = log
        self._process = process
        self._grace = plan.grace

    def poll(self) -> int | None:
        """The exit code; None while it runs. 0: ended as planned or stopped as asked, anything else: it broke."""
        return self._process.poll()

    def wait(self, within: float) -> int:
        """Wait up to `within` seconds for the end and return the exit code.

        Raises:
            DeadlineExceeded: it was still running then; it has been killed.
        """
        try:
            code = self._process.wait(within)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise DeadlineExceeded(
                f"the load process had not ended after {within:g} s and was killed",
                where=str(self.log),
                details=tail(self.log),
                fix="look into its log; give it at least its duration and its timeout",
            ) from error
        self._close()
        return code

    def end(self) -> None:
        """Ask it to end early, as `stop` does, and do not wait for it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """End it early and return the exit code.

        No request starts any more, those in flight get the plan's grace, the rest is cut and not counted.
        """
        self.end()
        try:
            self._process.wait(self._grace + _STOP_SLACK)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()
        return self._process.returncode

    def kill(self) -> None:
        """End it now; the timeline stays without its last lines, and the judge will say so."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def start(plan: LoadPlan, timeline: Timeline) -> LoadProcess:
    """Start the load process and return once its first arrival is scheduled.

    It writes `load-plan.json` and `load.log` beside the timeline, ends with this process, and in any case soon
    after its planned end. The API key goes along in the environment only.

    Raises:
        UsageError: the plan's locustfile cannot be run.
        Unproven: it did not come up; the message holds the end of its log.
    """
    within = START_WITHIN + _EACH_WITHIN * (plan.processes - 1)
    folder = timeline.path.resolve().parent
    plan_file, log = folder / "load-plan.json", folder / "load.log"
    plan_file.write_text(plan.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    with log.open("ab") as errors:
        # -P: a folder called `sandbox` where the user happens to stand must not be imported instead of this one.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sandbox.load.worker", str(plan_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is for the main process, which then stops the load in order
        )
    try:
        started_at = _started(process, within)
    except BaseException:
        LoadProcess(process, plan, log, 0.0).kill()
        raise
    if started_at is None:
        LoadProcess(process, plan, log, 0.0).kill()
        raise Unproven(
            f"the load process did not come up within {within:g} s (exit code {process.returncode})",
            where=str(log),
            details=tail(log),
            fix="look into its log",
        )
    return LoadProcess(process, plan, log, started_at)


def tail(log: Path) -> list[str]:
    """The last lines of a log, for a message."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:] if log.is_file() else []


def check_locustfile(path: Path) -> None:
    """Prove that a locustfile loads and has users, in a process of its own: loading it patches the interpreter.

    Raises:
        UsageError: it does not, or takes longer than a minute; says where.
    """
    command = [sys.executable, "-P", "-m", "sandbox.load.worker", "--check", str(path.resolve())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOADS_WITHIN, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"does not load within {_LOADS_WITHIN:g} s", where=str(path)) from error
    said(done.stdout.decode())
    if done.returncode:
        log = done.stderr.decode(errors="replace").splitlines()[-_LOG_LINES:]
        raise UsageError(f"does not load: exit code {done.returncode}", where=str(path), details=log)


def _started(process: subprocess.Popen[bytes], within: float) -> float | None:
    """Read `started <t>` from the process; None: it ended or said nothing in time.

    Raises:
        UsageError: it refused.
    """
    if process.stdout is None:
        return None
    deadline = time.monotonic() + within
    heard = b""
    while not heard.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            return None
        heard += piece
    return said(heard.decode())


def said(line: str) -> float | None:
    """When the load starts, where the line says so; a refusal is raised as it was."""
    word, _, rest = line.strip().partition(" ")
    if word == "refused":
        what, where, fix, details = json.loads(rest)
        raise UsageError(what, where=where, fix=fix, details=details)
    return float(rest) if word == "started" else None
