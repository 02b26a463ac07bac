"""A throttled GPU slows the server that holds it, from here, so that it ends here too when nobody else is left.

The vLLM simulator's latencies are scaled by 1/clock through its `/admin/config`. What they were is written down first,
one file for each container in HOME/undo; whoever finds such a file without a fault puts them back. A latency that is
neither what it was nor what was made of it is somebody else's by now: it stays as it is, and the file is kept until it
is one of the two again, or the container is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path

from sandbox.gpu.emulator.pods import Pods, Server
from sandbox.gpu.emulator.servers import OK, SECONDS, fetch

_LOG = logging.getLogger(__name__)
CONFIG = "/admin/config"
# of the simulator's settings: what a GPU's clock slows, each with how far it strays; not what a network does
LATENCIES: tuple[str, ...] = (
    "time-to-first-token",
    "inter-token-latency",
    "prefill-overhead",
    "prefill-time-per-token",
    "time-to-generate-image",
)
STRAYING: tuple[str, ...] = (
    "time-to-first-token-std-dev",
    "inter-token-latency-std-dev",
    "prefill-time-std-dev",
    "time-to-generate-image-std-dev",
)
_LOOK_SECONDS = 2.0  # until a slowed server, or one that cannot be slowed, is looked at again
_UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|μs|ms|s|m|h)")
_SLOWEST_CLOCK = 0.01
_GRACE_SECONDS = 3.0  # of an emulator that has just started: it may not have heard yet of the fault behind a record
Nanoseconds = dict[str, int]


@dataclass
class Record:
    """What a slowed container's latencies were, and everything that was ever made of them."""

    namespace: str
    pod: str
    uid: str
    container: str
    instance: str
    original: Nanoseconds
    made: list[Nanoseconds] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Its name in HOME/undo."""
        return f"{self.uid}-{self.instance}.json"

    def before(self, current: Nanoseconds) -> Nanoseconds:
        """What the latencies would be without us."""
        return {
            name: self.original[name] if name in self.original and self._ours(name, value) else value
            for name, value in current.items()
        }

    def foreign(self, current: Nanoseconds) -> bool:
        """Whether somebody else has changed one of them since."""
        return any(
            value != self.original[name] and not self._ours(name, value)
            for name, value in current.items()
            if name in self.original
        )

    def _ours(self, name: str, value: int) -> bool:
        return any(each.get(name) == value for each in self.made)


class Refused(Exception):
    """Why a server cannot be slowed."""


class Throttle:
    """Slows the servers of throttled GPUs, and lets go of them. For one thread."""

    def __init__(self, folder: Path, pods: Pods) -> None:
        self._folder = folder
        self._pods = pods
        self._records = {(each.uid, each.container): each for each in _load(folder)}
        self._tried: dict[tuple[str, str], tuple[str, float]] = {}  # instance and clock, by pod's UID and container
        self._look_at = dict.fromkeys(self._records, time.monotonic() + _GRACE_SECONDS)
        self._slow: set[tuple[str, str]] = set()
        self.refused: dict[tuple[str, str], str] = {}  # why a server is not slow, by namespace and pod

    @property
    def slowed(self) -> tuple[tuple[str, str], ...]:
        """Namespace and pod of every server that is slow by our doing."""
        slow = [self._records[key] for key in self._slow if key in self._records]
        return tuple(sorted({(each.namespace, each.pod) for each in slow}))

    def watched(self) -> set[tuple[str, str]]:
        """Namespace and pod of every container with something to put back."""
        return {(each.namespace, each.pod) for each in self._records.values()}

    async def act(self, wanted: Mapping[tuple[str, str, str], float]) -> None:
        """Bring every server to its GPUs' clock, by namespace, pod and container, and all others to what they were."""
        tasks, slow = [], set()
        pods = {(namespace, pod) for namespace, pod, _ in wanted}
        self.refused = {pod: why for pod, why in self.refused.items() if pod in pods}
        for (namespace, pod, container), clock in wanted.items():
            server = (self._pods.get(namespace, pod) or {}).get(container)
            if server is None or not server.reachable:
                self.refused[namespace, pod] = "its server has no address"
                continue
            slow.add((server.uid, container))
            tasks.append(self._slow_down(server, max(clock, _SLOWEST_CLOCK)))
        tasks += [self._let_go(record) for key, record in self._records.items() if key not in slow]
        await asyncio.gather(*tasks)
        self._slow &= slow
        self._tried = {key: tried for key, tried in self._tried.items() if key in slow}
        self._look_at = {key: at for key, at in self._look_at.items() if key in slow or key in self._records}

    async def _slow_down(self, server: Server, clock: float) -> None:
        key, pod = (server.uid, server.container), (server.namespace, server.pod)
        if self._tried.get(key) == (server.instance, clock) and not self._due(key):
            return
        self._tried[key] = (server.instance, clock)
        self._look_at[key] = time.monotonic() + _LOOK_SECONDS
        try:
            async with asyncio.timeout(SECONDS):
                await self._scale(server, clock)
        except (OSError, HTTPException, ValueError, Refused) as error:
            why = str(error) if isinstance(error, Refused) else "its server does not answer"
            if self.refused.get(pod) != why:
                _LOG.warning("%s/%s is not slowed: %s", *pod, why)
            self.refused[pod] = why
            self._slow.discard(key)
            return
        self.refused.pop(pod, None)
        self._slow.add(key)

    async def _scale(self, server: Server, clock: float) -> None:
        key = (server.uid, server.container)
        current = await _read(server)
        known = self._records.get(key)
        if known and known.instance == server.instance and known.foreign(current):
            raise Refused("somebody else has set its latencies since")
        original = known.before(current) if known else current
        if not any(original.values()):
            raise Refused("it has no latencies that could be longer")
        made = {name: _scaled(name, value, clock) for name, value in original.items()}
        record = Record(server.namespace, server.pod, server.uid, server.container, server.instance, original)
        record.made = [each for each in (known.made if known else []) if each != made] + [made]
        if current == made and known and asdict(known) == asdict(record):
            return
        # written down first: should we end here, whoever comes next still knows what the latencies were
        _save(self._folder, record)
        if known and known.file != record.file:
            (self._folder / known.file).unlink(missing_ok=True)
        self._records[key] = record
        if current != made:
            await _write(server, made)
            _LOG.info("%s/%s is slowed to a clock of %g", server.namespace, server.pod, clock)

    async def _let_go(self, record: Record) -> None:
        key = (record.uid, record.container)
        if self._tried.pop(key, None):  # it was slow until now: at once, whenever it was looked at last
            self._look_at.pop(key, None)
        found = self._pods.get(record.namespace, record.pod)
        if found is None:  # nobody knows; an address from long ago may be somebody else's
            return
        server = found.get(record.container)
        if server is None or server.uid != record.uid or server.ended:
            self._forget(record)
            return
        if not server.reachable or not self._due(key):
            return
        try:
            async with asyncio.timeout(SECONDS):
                current = await _read(server)
                back = {name: value for name, value in record.before(current).items() if current[name] != value}
                if back:
                    await _write(server, back)
                    _LOG.info("%s/%s is as fast as before", server.namespace, server.pod)
        except (OSError, HTTPException, ValueError, Refused) as error:
            _LOG.debug("%s/%s: %r", server.namespace, server.pod, error)
            self._pods.again(record.namespace, record.pod)
            self._look_at[key] = time.monotonic() + SECONDS
            return
        if record.foreign(current):
            self._look_at[key] = time.monotonic() + _LOOK_SECONDS
        else:
            self._forget(record)

    def _forget(self, record: Record) -> None:
        key = (record.uid, record.container)
        (self._folder / record.file).unlink(missing_ok=True)
        self._records.pop(key, None)
        self._look_at.pop(key, None)

    def _due(self, key: tuple[str, str]) -> bool:
        return time.monotonic() >= self._look_at.get(key, 0.0)


def nanoseconds(text: str) -> int:
    """Of a duration as Go writes it, such as `1m0.5s`. Raises ValueError."""
    parts = _PART.findall(text)
    if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise ValueError(f"{text!r} is no duration")
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


async def _read(server: Server) -> Nanoseconds:
    """The latencies that this server has and that can be set. Raises Refused, OSError, HTTPException or ValueError."""
    status, body = await fetch(server.host, server.port, CONFIG)
    if status != OK:
        raise Refused(f"it has no {CONFIG}")
    config = json.loads(body)
    if not isinstance(config, dict):
        raise Refused(f"its {CONFIG} is not the simulator's")
    found = {name: nanoseconds(str(config[name])) for name in (*LATENCIES, *STRAYING) if name in config}
    if not found:
        raise Refused(f"its {CONFIG} is not the simulator's")
    return found


async def _write(server: Server, latencies: Nanoseconds) -> None:
    body = {name: f"{value}ns" for name, value in latencies.items()}
    status, answer = await fetch(server.host, server.port, CONFIG, body=body)
    if status != OK:
        raise Refused(f"it refused other latencies: {answer[:200].decode(errors='replace')}")


def _scaled(name: str, value: int, clock: float) -> int:
    longer = value / clock
    # rounded down by a trace: it may be 30 % of its latency, and not a nanosecond more
    return int(longer * (1 - 1e-6)) if name in STRAYING and clock < 1 else round(longer)


def _load(folder: Path) -> Iterable[Record]:
    folder.mkdir(parents=True, exist_ok=True)
    for half in folder.glob("*.new"):
        half.unlink()
    for path in sorted(folder.glob("*.json")):
        try:
            yield Record(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            _LOG.warning("%s cannot be read: %r", path, error)
            path.unlink()


def _save(folder: Path, record: Record) -> None:
    fresh = folder / f"{record.file}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / record.file)
