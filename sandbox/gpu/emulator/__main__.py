"""The emulator of one node: every part of it in a thread of its own, until SIGTERM or until one of them fails."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

from sandbox.gpu.emulator import cdi, config, devices, faults, labels, plugin
from sandbox.gpu.emulator.apiserver import ApiServer

_LOG = logging.getLogger("gpu-emulator")
_STOP_SECONDS, _CUT_SECONDS = 3.5, 0.5
_EXECUTABLE = 0o755


@dataclass(frozen=True)
class Places:
    """Where things are; the same paths on the node and in the container."""

    config: Path = Path("/etc/gpu-emulator")
    home: Path = Path("/var/lib/kubelet/plugins/gpu.nvidia.com")
    plugins: Path = plugin.FOLDER
    cdi: Path = cdi.FOLDER
    nvidia_smi: Path = Path("/opt/bin/nvidia-smi")
    port: int = 9400


@dataclass
class Crew:
    """The threads. One that ends before it was asked to takes all the others with it."""

    stop: threading.Event
    failed: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, name: str, work: Callable[[], object]) -> None:
        """Begin `work`, which goes on until `stop`."""

        def body() -> None:
            try:
                work()
                why = "it has ended"
            except Exception:  # noqa: BLE001 - whatever it is, it is said and ends the process
                _LOG.exception("%s has failed", name)
                why = "it has failed"
            if not self.stop.is_set():
                self.failed.append(f"{name}: {why}")
                self.stop.set()

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, within: float) -> list[str]:
        """Wait for them, and return who is still at it."""
        deadline = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in self._threads if thread.is_alive()]


def run(places: Places, node: str, namespace: str, api: ApiServer, stop: threading.Event) -> int:
    """Emulate until `stop`, leave nothing behind, and return the exit status."""
    board = devices.board(config.load(places.config / f"{node}.json"))
    prepare(places)
    specs = cdi.Cdi(places.cdi, places.home)
    specs.write_devices(board)  # before anybody hears of a device
    crew, watchers = Crew(stop), Crew(stop)
    watchers.start("faults", lambda: faults.watch(api, board, namespace, stop))
    crew.start("expiry", lambda: faults.expire(board, stop))
    crew.start("cdi", lambda: specs.follow(board, stop))
    crew.start("labels", lambda: labels.keep(api, board, stop))
    if board.config.plugin_indices:
        crew.start("plugin", lambda: plugin.run(board, specs, stop, folder=places.plugins))
    exporter = _start_the_others(crew, board, specs, api, places)
    _LOG.info("%s: %d emulated %s", node, len(board.gpus), board.config.profile.product)
    stop.wait()
    with board.changed:
        board.changed.notify_all()
    # those that withdraw what they have published need the connection; the watch ends only with it
    late = crew.join(_STOP_SECONDS)
    exporter.shutdown()
    exporter.server_close()
    api.close()
    late += watchers.join(_CUT_SECONDS)
    failed = crew.failed + watchers.failed
    _LOG.info("stopped%s", "".join(f"; {each}" for each in [*failed, *(f"{name} goes on" for name in late)]))
    return 1 if failed else 0


def prepare(places: Places) -> None:
    """Make the folders containers mount something of, readable to everybody, and put nvidia-smi there."""
    for folder in (places.home, *(places.home / name for name in ("bin", "state", "undo"))):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(_EXECUTABLE)
    places.cdi.mkdir(parents=True, exist_ok=True)
    target = places.home / "bin" / "nvidia-smi"
    if not target.exists() or not filecmp.cmp(places.nvidia_smi, target, shallow=False):
        fresh = target.with_suffix(".new")  # it may be running in a container: never written into
        shutil.copyfile(places.nvidia_smi, fresh)
        fresh.chmod(_EXECUTABLE)
        fresh.replace(target)


def main() -> NoReturn:
    """Run as the DaemonSet starts it."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    status = 1
    try:
        status = run(Places(), os.environ["NODE_NAME"], os.environ["POD_NAMESPACE"], ApiServer.in_cluster(), stop)
    except Exception:  # noqa: BLE001 - as above
        _LOG.exception("not started")
    finally:
        os._exit(status)  # a call that hangs in a gRPC thread is not to keep a dead emulator going


def _start_the_others(
    crew: Crew, board: devices.Board, specs: cdi.Cdi, api: ApiServer, places: Places
) -> ThreadingHTTPServer:
    from sandbox.gpu.emulator import exporter, telemetry  # noqa: PLC0415

    crew.start("telemetry", lambda: telemetry.run(board, api, places.home, crew.stop))
    if board.config.dra_indices:
        from sandbox.gpu.emulator import dra  # noqa: PLC0415 - nobody else needs it

        crew.start("dra", lambda: dra.run(board, specs, api, places.home, crew.stop))
    return exporter.serve(board, port=places.port)


if __name__ == "__main__":
    main()
