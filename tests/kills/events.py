"""What the engine did meanwhile: which containers were ours, on which volumes they ran, and which of them woke."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sandbox.cluster.containers import network_name
from sandbox.cluster.ownership import KIND_LABEL, STATE_LABEL

if TYPE_CHECKING:
    from docker import DockerClient

_KINDS = {"type": ["container", "volume"], "event": ["create", "start", "mount", "unpause"]}


class Watcher:
    """Reads the engine's events as they come: it keeps only the last 256 of them."""

    def __init__(self, docker: DockerClient, state: str) -> None:
        self.containers = set[str]()  # ids, of all that were ours
        self.volumes: defaultdict[str, set[str]] = defaultdict(set)  # container -> volumes
        self.awake: dict[str, float] = {}  # container -> when it went on, seconds since the epoch
        self.began = threading.Event()  # something of ours was started
        self._docker, self._state = docker, state
        self.follow()

    def follow(self) -> None:
        """Read on from now: a stream ends with its engine."""
        self._stream = self._docker.events(decode=True, filters=_KINDS)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stream.close()
        self._thread.join(timeout=5)

    def _read(self) -> None:
        with suppress(Exception):  # the stream ends with `close`, or with the engine
            for event in self._stream:
                self._note(event)

    def _note(self, event: dict[str, Any]) -> None:
        actor = event["Actor"]
        what, ident, about = event["Action"], actor["ID"], actor.get("Attributes") or {}
        if event["Type"] == "volume":
            self.volumes[about.get("container", "")].add(ident)
        elif what == "unpause":
            self.awake[ident] = event["timeNano"] / 1e9
        elif self._is_ours(about):
            self.containers.add(ident)
            self.began.set()

    def _is_ours(self, labels: dict[str, str]) -> bool:
        """By our label, or, for what kind made, by the label of the network that was made for it."""
        if cluster := labels.get(KIND_LABEL):
            there = self._docker.networks.list(names=[network_name(cluster)])
            return any((each.attrs["Labels"] or {}).get(STATE_LABEL) == self._state for each in there)
        return labels.get(STATE_LABEL) == self._state


@contextmanager
def watching(docker: DockerClient, state: str) -> Iterator[Watcher]:
    watcher = Watcher(docker, state)
    try:
        yield watcher
    finally:
        watcher.close()
