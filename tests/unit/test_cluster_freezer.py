from __future__ import annotations

from pathlib import Path

from sandbox.cluster.freezer import thaw_below


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
