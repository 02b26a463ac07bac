"""The loop behind the sensors: once a second who holds what, what they do, and what a GPU would say of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.gpu.emulator import holders, model, snapshot
from sandbox.gpu.emulator.apiserver import ApiServer
from sandbox.gpu.emulator.devices import Board, Holder, Reading
from sandbox.gpu.emulator.model import Load
from sandbox.gpu.emulator.pods import Pods
from sandbox.gpu.emulator.servers import Key, Servers
from sandbox.gpu.emulator.snapshot import PULSE, Pulse
from sandbox.gpu.emulator.throttle import Throttle

_LOG = logging.getLogger(__name__)
SECONDS = 1.0
_LAST_WORD_SECONDS = 2.0  # for making every server as fast as it was before the emulator ends
_REPEAT_SECONDS = 60.0  # until the same failure is logged again


def run(
    board: Board,
    api: ApiServer,
    home: Path,
    stop: threading.Event,
    *,
    pulse: Pulse = PULSE,
    socket: Path = holders.SOCKET,
) -> None:
    """Keep the board's holders and readings, HOME/state/devices.json and the slowed servers as they should be."""
    pods = Pods(api)
    reader = threading.Thread(target=pods.run, name="pods", daemon=True)
    reader.start()
    kubelet = holders.Holders(board, home, socket=socket)
    loop = Loop(board, home, pods, kubelet, pulse)
    try:
        with asyncio.Runner() as runner:
            due = time.monotonic()
            while not stop.is_set():
                runner.run(loop.tick())
                due = max(due + SECONDS, time.monotonic())  # what is late is not caught up with
                stop.wait(due - time.monotonic())
            runner.run(loop.end())
    finally:
        kubelet.close()
        pods.end()


class Loop:
    """What is remembered from one second to the next."""

    def __init__(self, board: Board, home: Path, pods: Pods, kubelet: holders.Holders, pulse: Pulse) -> None:
        self._board = board
        self._file = home / "state" / "devices.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._pods = pods
        self._kubelet = kubelet
        self._pulse = pulse
        self._servers = Servers(pods)
        self._throttle = Throttle(home / "undo", pods)
        self._before: dict[str, Reading] = {}
        self._sensed = time.monotonic()
        self._failures: dict[str, tuple[str, float]] = {}

    async def tick(self) -> None:
        """One second. Whatever part of it fails, the others go on with what they last knew."""
        held, loads = self._board.holders, dict[Key, Load]()
        with self._survive("the kubelet"):
            held = tuple(each for each in self._kubelet.read() if not self._ended(each))
        with self._survive("the servers"):
            loads = await self._servers.read(held)
            self._pulse.unread = _flat(self._servers.unread)
        with self._survive("the sensors"):
            readings = self._sense(held, loads)
            with self._board.changed:
                self._board.holders, self._board.readings = held, readings
            snapshot.write(self._file, snapshot.devices(self._board))
        with self._survive("the throttled servers"):
            await self._throttle.act(self._throttled(held))
            self._pulse.slowed = self._throttle.slowed
            self._pulse.not_slowed = _flat(self._throttle.refused)
            self._pods.keep({(each.namespace, each.pod) for each in held} | self._throttle.watched())
        self._pulse.ticked = time.monotonic()

    async def end(self) -> None:
        """Leave no server slow."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._throttle.act({})

    def _ended(self, holder: Holder) -> bool:
        """Whether its pod is over: kubelets before 1.34 list those too."""
        server = (self._pods.get(holder.namespace, holder.pod) or {}).get(holder.container)
        return server is not None and server.ended

    def _sense(self, held: tuple[Holder, ...], loads: dict[Key, Load]) -> dict[str, Reading]:
        now = time.monotonic()
        seconds, self._sensed = now - self._sensed, now
        on: dict[str, list[Load]] = {}
        for holder in held:
            load = loads.get((holder.namespace, holder.pod, holder.container))
            if load:
                for uuid in holder.uuids:
                    on.setdefault(uuid, []).append(load)
        shown: dict[str, Reading] = {}
        for gpu in self._board.gpus:
            lost = self._board.lost(gpu.index)
            found = model.read(
                self._board.config.profile,
                gpu,
                {} if lost else on,
                before=self._before.get(gpu.uuid),
                seconds=seconds,
                faults=self._board.active(gpu.index),
            )
            self._before[gpu.uuid] = found[gpu.uuid]
            if not lost:  # it cools down all the same
                shown |= found
        return shown

    def _throttled(self, held: tuple[Holder, ...]) -> dict[Key, float]:
        """The clock that is left to each holder of a throttled GPU: that of the slowest it holds."""
        clocks = {
            uuid: min(fault.clock for fault in faults)
            for gpu in self._board.gpus
            if (faults := [each for each in self._board.active(gpu.index) if each.throttle and each.clock < 1])
            for uuid in gpu.uuids
        }
        return {
            (each.namespace, each.pod, each.container): min(clocks[uuid] for uuid in each.uuids if uuid in clocks)
            for each in held
            if not clocks.keys().isdisjoint(each.uuids)
        }

    @contextmanager
    def _survive(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a second without a reading is better than no emulator
            said, at = self._failures.get(what, ("", 0.0))
            now = time.monotonic()
            if said != repr(error) or now - at > _REPEAT_SECONDS:
                _LOG.warning("%s: %r", what, error, exc_info=True)
                self._failures[what] = (repr(error), now)


def _flat(pods: dict[tuple[str, str], str]) -> tuple[tuple[str, str, str], ...]:
    return tuple((*pod, why) for pod, why in sorted(pods.items()))
