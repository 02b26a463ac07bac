"""A second engine beside the machine's own is killed, hung and started again; the machine's own is never touched."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import psutil
import pytest

from sandbox import images
from sandbox.errors import EnvironmentMissing
from sandbox.host import capabilities, preparing
from sandbox.host.engine import Home, client, look, recorded_pid, runs
from sandbox.kube.wait import Seen, wait_for

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="starts an engine: root, dockerd"),
    # docker-py leaves a socket to the garbage collector where an engine dies while it is being asked
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket fd=[0-9]+, family=1:ResourceWarning"),
]


def ended(process: psutil.Process) -> Seen[None]:
    gone = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return Seen(gone, None, f"{process} still runs")


def end(home: Home) -> None:
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


@pytest.fixture
def second() -> Iterator[Home]:
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
    yield home
    end(home)
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


def sleeper(home: Home) -> str:
    """Run a privileged container that sleeps in that engine; return its id."""
    ref = images.ensure(["toolbox"])["toolbox"].ref
    there = client(home.url)
    there.images.load(client().images.get(ref).save(named=True))
    made = there.containers.run(
        ref,
        ["sleep", "1000"],
        entrypoint=[],
        detach=True,
        privileged=True,
        network_mode="none",
        name="sleeper",
        stop_signal="SIGKILL",
    )
    return str(made.id)


def test_an_engine_that_was_killed_with_a_container_in_it_is_started_again(second: Home) -> None:
    assert preparing.start(second).state == "running"
    container = sleeper(second)
    pid = recorded_pid(second)
    assert pid is not None
    dockerd = psutil.Process(pid)
    dockerd.kill()
    wait_for(lambda: ended(dockerd), within=10, what="the end of the killed engine")
    # its pid was taken by another program meanwhile: this one
    second.pid_file.write_text(str(os.getpid()))
    found = look(second)
    assert (found.state, "which is no dockerd" in found.seen) == ("dead", True)

    assert preparing.start(second).state == "running"
    there = client(second.url)
    assert [each.id for each in there.containers.list(all=True)] == [container]
    survivor = there.containers.get("sleeper")
    survivor.restart(timeout=1)
    code, output = survivor.exec_run(["grep", "CapEff", "/proc/self/status"])
    assert (code, b"CapEff" in output) == (0, True)


def test_privileged_containers_get_what_the_host_can_give_and_no_more(second: Home) -> None:
    preparing.start(second)
    sleeper(second)
    there = client(second.url)
    _, output = there.containers.get("sleeper").exec_run(["cat", "/proc/self/status"])
    expected = "bounded-runc" if capabilities.lacking() else "runc"
    assert there.info()["DefaultRuntime"] == expected
    assert set(capabilities.lacking()) <= set(capabilities.lacking(output.decode()))


def test_an_engine_that_hangs_is_told_and_left_alone(second: Home) -> None:
    preparing.start(second)
    pid = recorded_pid(second)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EnvironmentMissing, match="does not answer; it is left alone"):
            preparing.start(second)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert look(second).state == "running"
    assert recorded_pid(second) == pid


def test_an_engine_that_cannot_start_says_why(second: Home) -> None:
    broken = Home(**{**second.__dict__, "extra": ("--storage-driver=nonsense",)})
    with pytest.raises(EnvironmentMissing, match="dockerd stopped") as told:
        preparing.start(broken)
    assert any("nonsense" in line for line in told.value.details)


def test_an_engine_that_runs_is_not_touched() -> None:
    before = identity()
    assert preparing.prepare().state == "running"
    assert identity() == before
    with closing(docker.from_env()) as usual:
        assert usual.ping()
