from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError

from sandbox.cluster import freezer
from sandbox.cluster.freezer import thaw_below
from sandbox.errors import DeadlineExceeded
from tests.unit.container_engine import refusal


def node(*refusals: str) -> Any:
    """A container that will not be paused until these refusals are over."""
    left = [*refusals]

    def pause() -> None:
        if left:
            raise refusal(left.pop(0))

    return SimpleNamespace(name="node", pause=pause)


def test_a_node_that_moves_is_paused_at_a_later_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    moving = "OCI runtime pause failed: unable to freeze: unknown"
    freezer.pause(node(moving, moving))
    with pytest.raises(APIError):
        freezer.pause(node("is not running"))
    monkeypatch.setattr(freezer, "_PAUSE_SECONDS", 0.1)
    with pytest.raises(DeadlineExceeded, match="a pause of node"):
        freezer.pause(node(*[moving] * 99))


def cgroup(folder: Path, state: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "freezer.state").write_text(f"{state}\n")
    return folder / "freezer.state"


def test_what_a_nodes_own_runtime_left_frozen_is_thawed_at_any_depth(tmp_path: Path) -> None:
    node = cgroup(tmp_path / "node", "THAWED")
    deep = cgroup(tmp_path / "node" / "kubelet.slice" / "pod.slice" / "container.scope", "FROZEN")
    halfway = cgroup(tmp_path / "node" / "other.scope", "FREEZING")
    running = cgroup(tmp_path / "node" / "init.scope", "THAWED")
    assert thaw_below(tmp_path / "node") == 2
    assert (deep.read_text(), halfway.read_text()) == ("THAWED", "THAWED")
    assert (node.read_text(), running.read_text()) == ("THAWED\n", "THAWED\n")


def test_a_paused_node_itself_is_the_engines_to_thaw(tmp_path: Path) -> None:
    paused = cgroup(tmp_path / "node", "FROZEN")
    assert thaw_below(tmp_path / "node") == 0
    assert paused.read_text() == "FROZEN\n"


def test_without_a_freezer_there_is_nothing_to_thaw(tmp_path: Path) -> None:
    assert thaw_below(tmp_path / "not-there") == 0
