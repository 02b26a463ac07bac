"""Stopping the processes of a node's containers: with real processes, in the place of a node this machine."""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.cluster import Cluster, Node, containers, nodes, signals
from sandbox.errors import ClusterError, DeadlineExceeded, UsageError

OWN = Cluster("solo", "kind", Path("/k"), "c", "r", "u", "s", "i", 0.0, (Node("n1", "worker", "10.0.0.1", "c-n1"),))
BRIEF = 0.05
pytestmark = pytest.mark.skipif(
    not Path("/proc/uptime").exists() or shutil.which("pgrep") is None, reason="a node is Linux, with procps"
)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A /proc of our own: two real processes that a file says are in the cgroup of a container."""
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    proc = tmp_path / "proc"
    for each in processes:
        (proc / str(each.pid)).mkdir(parents=True)
        (proc / str(each.pid) / "cgroup").write_text("0::/kubepods/pod1/cri-containerd-aaaa.scope\n")
        (proc / str(each.pid) / "stat").symlink_to(f"/proc/{each.pid}/stat")
    (proc / "uptime").symlink_to("/proc/uptime")

    def run(_: Any, command: list[str]) -> tuple[int, str]:
        here = [word.replace("/proc/", f"{proc}/") for word in command]
        done = subprocess.run(here, capture_output=True, text=True, check=False, timeout=30)
        return done.returncode, done.stdout + done.stderr

    monkeypatch.setattr(containers, "run", run)
    monkeypatch.setattr(nodes, "machine", lambda *_: None)
    monkeypatch.setattr(signals, "_NAME", f"ai-k8s-sandbox-test-{uuid.uuid4().hex[:8]}")
    monkeypatch.setattr(signals, "_AGAIN", 0.1)
    yield proc
    signals.release(OWN, "n1")
    for each in processes:
        each.kill()
        each.wait()


def soon(expected: str) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if set(signals.states(OWN, "n1", ["aaaa"])["aaaa"]) == set(expected):
            return True
        time.sleep(BRIEF)
    return False


def test_every_process_of_the_container_stands_still_until_it_is_let_go(node: Path) -> None:
    assert signals.states(OWN, "n1", ["aaaa", "bbbb"]) == {"aaaa": "SS", "bbbb": ""}
    signals.hold(OWN, "n1", ["aaaa"], tag="one", seconds=60)
    assert soon("TT")
    assert signals.holding(OWN, "n1", "one")
    assert not signals.holding(OWN, "n1", "another")
    assert not signals.release(OWN, "n1", "another")
    assert signals.release(OWN, "n1", "one")
    assert soon("SS")
    assert not signals.holding(OWN, "n1")


def test_nobody_need_end_it(node: Path) -> None:
    signals.hold(OWN, "n1", ["aaaa"], tag="one", seconds=2)
    assert soon("TT")
    assert soon("SS")
    assert not signals.holding(OWN, "n1")


def test_a_slow_process_is_stopped_in_proportion(node: Path) -> None:
    signals.hold(OWN, "n1", ["aaaa"], tag="slow", seconds=60, running=0.3)
    letters = signals.states(OWN, "n1", ["aaaa"], looks=30)["aaaa"]
    assert len(letters) == 60
    assert 0.4 < letters.count(signals.STOPPED) / len(letters) < 0.95
    assert signals.release(OWN, "n1")
    assert soon("SS")


def test_a_process_that_is_in_the_container_no_more_is_left_alone(node: Path) -> None:
    for file in node.glob("[0-9]*/cgroup"):
        file.write_text("0::/somewhere/else\n")
    signals.hold(OWN, "n1", ["aaaa"], tag="one", seconds=60)
    time.sleep(0.3)
    assert not signals.holding(OWN, "n1"), "there is nothing to hold"
    states = [Path(f"/proc/{file.parent.name}/stat").read_text().split()[2] for file in node.glob("[0-9]*/cgroup")]
    assert states == ["S", "S"]


def test_two_holds_are_let_go_at_once_without_a_tag(node: Path) -> None:
    signals.hold(OWN, "n1", ["aaaa"], tag="one", seconds=60)
    signals.hold(OWN, "n1", ["aaaa"], tag="two", seconds=60)
    assert soon("TT")
    assert signals.release(OWN, "n1")
    assert soon("SS")


def test_a_node_that_does_not_do_it_is_said(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "run", lambda *_: (-1, "container is not running"))
    for doing in (
        lambda: signals.hold(OWN, "n1", ["aaaa"], tag="one", seconds=60),
        lambda: signals.holding(OWN, "n1"),
        lambda: signals.states(OWN, "n1", ["aaaa"]),
    ):
        with pytest.raises(ClusterError) as caught:
            doing()
        assert "container is not running" in str(caught.value)
    monkeypatch.setattr(containers, "run", lambda *_: (0, "4711"))
    monkeypatch.setattr(signals, "_END_SECONDS", 0.2)
    with pytest.raises(DeadlineExceeded):
        signals.release(OWN, "n1")
    monkeypatch.setattr(containers, "run", lambda *_: (1, ""))


def test_a_node_that_is_not_in_our_hands_is_refused() -> None:
    with pytest.raises(UsageError, match="no node whose machine is in our hands"):
        signals.hold(OWN, "n2", ["aaaa"], tag="one", seconds=60)
