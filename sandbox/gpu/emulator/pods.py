"""The pods whose containers hold devices: where their servers are, and what their annotations declare of the work."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox.gpu.emulator.apiserver import NOT_FOUND, ApiError, ApiServer
from sandbox.gpu.emulator.model import Load

_LOG = logging.getLogger(__name__)
Object = dict[str, Any]

PREFIX = "ai-k8s-sandbox/"
_FRESH_SECONDS = 15.0  # after which a pod is read again though nothing seems to have changed
_ROLES = ("running", "waiting", "capacity", "kv")
_BINARY = {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGT", 1)}
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, **_BINARY}
_MEMORY = {"gpu-memory", "gpu-weights"}


@dataclass(frozen=True)
class Server:
    """A container that holds devices: where it is now, and what its pod declares of it.

    Attributes:
        instance: another one after each restart; empty while it does not run.
        ended: the pod has come to its end, and holds nothing any more.
        load: all of it but what its metrics will say.
        names: metrics of its own, by the pod's annotations, and what they mean.
    """

    namespace: str
    pod: str
    uid: str
    container: str
    instance: str
    host: str
    port: int
    path: str = "/metrics"
    ended: bool = False
    load: Load = field(default_factory=Load)
    names: tuple[tuple[str, str], ...] = ()

    @property
    def reachable(self) -> bool:
        """Whether there is an address to ask."""
        return bool(self.instance and self.host and self.port)


def servers(pod: Object) -> dict[str, Server]:
    """The containers of a pod, by name. What an annotation says that cannot be understood is said aloud and ignored."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    notes = {key.removeprefix(PREFIX): text for key, text in (meta.get("annotations") or {}).items()}
    sidecars = [each for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    states = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    instances = {each["name"]: _instance(each) for each in states}
    where = f"{meta['namespace']}/{meta['name']}"
    names = tuple((notes[f"gpu-metric-{role}"], role) for role in _ROLES if notes.get(f"gpu-metric-{role}"))
    return {
        each["name"]: Server(
            meta["namespace"],
            meta["name"],
            meta["uid"],
            each["name"],
            instances.get(each["name"], ""),
            status.get("podIP") or "",
            _port(notes.get("gpu-metrics-port", ""), each.get("ports") or (), where),
            notes.get("gpu-metrics-path", "/metrics"),
            ended=status.get("phase") in {"Succeeded", "Failed"},
            load=_declared(notes, [*(each.get("command") or ()), *(each.get("args") or ())], where),
            names=names,
        )
        for each in [*spec["containers"], *sidecars]
    }


def mebibytes(quantity: str) -> float:
    """MiB of a Kubernetes quantity such as `30000Mi`. Raises ValueError."""
    digits = quantity.rstrip("kKMGTi")
    unit = quantity[len(digits) :]
    if unit not in _UNITS:
        raise ValueError(f"{quantity!r} is no quantity of memory")
    return _positive(digits) * _UNITS[unit] / (1 << 20)


class Pods:
    """Pods as the API has them, read by a thread of its own: an API server that hangs must not stop the clock."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[float, dict[str, Server]]] = {}
        self._asked: set[tuple[str, str]] = set()
        self._queue: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()

    def get(self, namespace: str, pod: str) -> dict[str, Server] | None:
        """Its containers; empty when there is no such pod, None as long as nobody knows. Never waits."""
        with self._lock:
            read, found = self._known.get((namespace, pod), (-math.inf, None))
        if read < time.monotonic() - _FRESH_SECONDS:
            self.again(namespace, pod)
        return found

    def again(self, namespace: str, pod: str) -> None:
        """Read it anew, soon."""
        with self._lock:
            if (namespace, pod) in self._asked:
                return
            self._asked.add((namespace, pod))
        self._queue.put((namespace, pod))

    def keep(self, wanted: Collection[tuple[str, str]]) -> None:
        """Forget all others."""
        with self._lock:
            self._known = {pod: known for pod, known in self._known.items() if pod in wanted}

    def run(self) -> None:
        """Read what is asked for, until `end`."""
        while (asked := self._queue.get()) is not None:
            found = self._read(*asked)
            with self._lock:
                self._asked.discard(asked)
                if found is not None:
                    self._known[asked] = (time.monotonic(), found)

    def end(self) -> None:
        """Let `run` come to its end."""
        self._queue.put(None)

    def _read(self, namespace: str, pod: str) -> dict[str, Server] | None:
        try:
            return servers(self._api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}"))
        except ApiError as error:
            _LOG.debug("%s", error)
            return {} if error.status == NOT_FOUND else None
        except (KeyError, TypeError, ValueError):
            _LOG.exception("%s/%s is no pod to make sense of", namespace, pod)
            return None


def _instance(status: Object) -> str:
    if "running" not in status.get("state", {}):
        return ""
    return str(status.get("containerID") or f"restart-{status.get('restartCount', 0)}").rpartition("/")[2]


def _port(noted: str, ports: Iterable[Object], where: str) -> int:
    """The one an annotation names, by number or name; else the one called metrics or http; else the first; else 0."""
    named = [(str(each.get("name", "")), int(each["containerPort"])) for each in ports]
    wanted = [noted] if noted else ["metrics", "http"]
    for name in wanted:
        for known, port in named:
            if known == name:
                return port
    if noted.isdigit():
        return int(noted)
    if noted:
        _LOG.warning("%s: %sgpu-metrics-port: %r is neither a number nor a port of the container", where, PREFIX, noted)
    return named[0][1] if named else 0


def _declared(notes: Mapping[str, str], words: list[str], where: str) -> Load:
    def number(note: str, flag: str = "") -> float | None:
        text = notes.get(note)
        try:
            if text is not None:
                return mebibytes(text) if note in _MEMORY else _positive(text)
            given = _flag(words, flag) if flag else ""
            return _positive(given) if given else None
        except ValueError as error:
            _LOG.warning("%s: %s: %s", where, flag if text is None else f"{PREFIX}{note}", error)
            return None

    return Load(
        capacity=number("gpu-capacity", "--max-num-seqs"),
        preallocated=number("gpu-preallocate", "--gpu-memory-utilization"),
        weights=number("gpu-weights"),
        utilization=number("gpu-utilization"),
        memory=number("gpu-memory"),
    )


def _flag(words: list[str], flag: str) -> str:
    for position, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == flag:
            return value or next(iter(words[position + 1 : position + 2]), "")
    return ""


def _positive(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} is not a number of 0 or more")
    return value
