"""A second engine beside the machine's own is killed, hung and started again; the machine's own is never touched."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing

import docker
import psutil
import pytest
from second_engine import ended, identity, second_engine

from sandbox import images
from sandbox.errors import EnvironmentMissing
from sandbox.host import capabilities, preparing
from sandbox.host.engine import Home, client, look, recorded_pid
from sandbox.kube.wait import wait_for

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="starts an engine: root, dockerd"),
    # docker-py leaves a socket to the garbage collector where an engine dies while it is being asked
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket fd=[0-9]+, family=1:ResourceWarning"),
]


@pytest.fixture
def second() -> Iterator[Home]:
    with second_engine() as home:
        yield home


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
