"""A second engine beside the machine's own, with folders and a bridge of its own; the first is never touched."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sandbox.host.engine import Home, client, recorded_pid, runs
from sandbox.kube.wait import Seen, wait_for


def ended(process: psutil.Process) -> Seen[None]:
    gone = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return Seen(gone, None, f"{process} still runs")


@contextmanager
def second_engine() -> Iterator[Home]:
    """Where a second engine may live; whatever runs there in the end is ended, and its folders go."""
    # unix socket paths end at 108 characters: pytest's own folders are too deep
    folder = Path(f"/run/sandbox-second-engine-{os.getpid()}")
    bridge = f"sbx{os.getpid()}"
    home = Home(
        socket=folder / "engine.sock",
        data_root=Path(f"/var/lib/sandbox-second-engine-{os.getpid()}"),
        exec_root=folder / "exec",
        pid_file=folder / "engine.pid",
        log=folder / "engine.log",
        # a bridge of its own: with --bridge=none it would remove docker0, which the machine's own engine uses
        extra=(f"--bridge={bridge}", "--iptables=false", "--ip6tables=false"),
    )
    folder.mkdir()
    before = identity()
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    try:
        yield home
    finally:
        _end(home)
        gc.collect()  # what such an engine left behind is collected here, and not in another test
        subprocess.run(["ip", "link", "delete", bridge], check=True)
        for mount in sorted((part.mountpoint for part in psutil.disk_partitions(all=True)), reverse=True):
            if mount.startswith((str(folder), str(home.data_root))):
                subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(home.data_root, ignore_errors=True)
    assert identity() == before, "the machine's own engine was touched"


def identity() -> tuple[str, int | None, list[str]]:
    """Which engine the machine's own is, the process it runs as, and its bridges."""
    own = client()
    networks = [each.attrs["Options"] for each in own.networks.list(filters={"driver": "bridge"})]
    named = [options.get("com.docker.network.bridge.name", "") for options in networks]
    bridges = [name for name in named if name in psutil.net_if_addrs()]
    return str(own.info()["ID"]), recorded_pid(Home()), bridges


def _end(home: Home) -> None:
    """Stop that engine in order; what of it is left is killed."""
    pid = recorded_pid(home)
    if pid is not None and runs(pid, "dockerd"):
        dockerd = psutil.Process(pid)
        dockerd.send_signal(signal.SIGCONT)
        dockerd.terminate()
        wait_for(lambda: ended(dockerd), within=30, what="the end of the second engine")
    for process in psutil.process_iter(["cmdline"]):
        if str(home.exec_root) in " ".join(process.info["cmdline"] or []):
            process.kill()
