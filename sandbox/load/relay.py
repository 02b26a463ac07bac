"""Inside a pod: the parent of a load process whose own parent is at the other end of standard input and output.

`python -m sandbox.load.relay` in a folder of its own. It reads lines: `clock`, `order JSON`, `stop`. It writes lines:
`ready BOOT-ID OFFSETS` first; `clock NANOSECONDS`; `said LINE` of the load process; `event JSON` for each line of the
timeline; `end CODE EVENTS` last. When its input ends, so does the load. It knows nothing of gevent and Locust, so
that neither waits for a slow connection.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sandbox.load.golden import beside, golden

TIMELINE = "timeline.jsonl"
PLAN = "load-plan.json"
_TICK = 0.05
_PIECE = 1 << 16
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = Path("/proc/self/timens_offsets")


def this_kernel() -> tuple[str, str]:
    """Which boot of which kernel this is, and what this process adds to its clock: equal pairs read the same clock."""
    boot = _BOOT.read_text(encoding="ascii").strip() if _BOOT.is_file() else "unknown"
    offsets = _OFFSETS.read_text(encoding="ascii").split() if _OFFSETS.is_file() else []
    return boot, "-".join(offsets) or "none"


def main() -> int:
    """Do as told until the load ends or the input does."""
    with ExitStack() as held:
        return _Relay(held).work()


class _Relay:
    def __init__(self, held: ExitStack) -> None:
        self._held = held
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = selectors.DefaultSelector()
        self._heard.register(0, selectors.EVENT_READ, self._take_orders)
        self._asked = b""
        self._said = b""
        self._timeline = -1
        self._torn = b""
        self._events = 0

    def work(self) -> int:
        self._write("ready " + " ".join(this_kernel()))
        while self._process is None or self._process.poll() is None:
            for key, _ in self._heard.select(_TICK):
                key.data()
            self._ship()
        self._listen()
        self._ship()
        code = self._process.returncode
        self._write(f"end {code} {self._events}{' torn' if self._torn else ''}")
        return code

    def _take_orders(self) -> None:
        piece = os.read(0, _PIECE)
        if not piece:
            self._orphaned()
        *lines, self._asked = (self._asked + piece).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            {"clock": self._clock, "order": self._order, "stop": self._stop}[word](rest)

    def _clock(self, _: str) -> None:
        self._write(f"clock {time.monotonic_ns()}")

    def _order(self, text: str) -> None:
        """Write what the load process needs into this folder and start it."""
        order: dict[str, Any] = json.loads(text)
        for name, content in order["files"].items():
            Path(name).write_text(content, encoding="utf-8")
        plan = order["plan"]
        if order["calibrate"]:
            plan["golden"] = self._held.enter_context(golden(beside(Path("golden.jsonl").resolve()))).url
        Path(PLAN).write_text(json.dumps(plan), encoding="utf-8")
        self._timeline = os.open(TIMELINE, os.O_RDONLY | os.O_CREAT, 0o644)
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-P", "-m", "sandbox.load.worker", PLAN, *order["arguments"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | order["env"] | {"PYTHONUNBUFFERED": "1"},
        )
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
            self._heard.register(self._process.stdout, selectors.EVENT_READ, self._listen)

    def _listen(self) -> None:
        """Pass on what the load process says."""
        output = self._process.stdout if self._process else None
        if output is None:
            return
        piece = output.read() or b""
        if not piece and output in self._heard.get_map():
            self._heard.unregister(output)
        *lines, self._said = (self._said + piece).split(b"\n")
        for line in lines:
            self._write(f"said {line.decode()}")

    def _ship(self) -> None:
        """Pass on the whole lines that the timeline got."""
        if self._timeline < 0:
            return
        while piece := os.read(self._timeline, _PIECE):
            *lines, self._torn = (self._torn + piece).split(b"\n")
            self._events += len(lines)
            if lines:
                self._send(b"".join(b"event %s\n" % line for line in lines))

    def _stop(self, _: str) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def _orphaned(self) -> None:
        """Nobody is there any more; the load process sees the same at its own input."""
        self._heard.unregister(0)
        if self._process is None:
            sys.exit(1)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _write(self, line: str) -> None:
        self._send(line.encode() + b"\n")

    def _send(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(1, data) :]
        except BrokenPipeError:  # as above: the input ends too, and that is what counts
            return


if __name__ == "__main__":
    sys.exit(main())
