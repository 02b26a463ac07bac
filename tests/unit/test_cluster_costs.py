"""What clusters cost, from what an engine tells of memory and volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox import paths
from sandbox.cluster import Status, costs
from tests.unit.container_engine import FakeEngine, installed, put

MIB = 1 << 20
STATUS = Status("solo", "ready", "kind", "", "", "", 0.0, (), ())


def volume(name: str, size: int, *, state: str = "", **labels: str) -> dict[str, Any]:
    own = {"ai-k8s-sandbox.state": state or str(paths.state_dir())}
    named = {f"ai-k8s-sandbox.{key}": value for key, value in labels.items()}
    return {"Name": name, "Labels": own | named, "UsageData": {"Size": size}}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The volumes that the engine tells of; the cluster `solo` has two nodes that hold 300 MiB each."""
    engine: FakeEngine = installed(tmp_path, monkeypatch)
    put(engine)
    volumes: list[dict[str, Any]] = []
    answer = SimpleNamespace(json=lambda: {"Volumes": volumes or None})
    api = SimpleNamespace(base_url="http://engine", api_version="1.51", get=lambda url, params: answer)
    used = {"memory_stats": {"usage": 400 * MIB, "stats": {"inactive_file": 100 * MIB}}}
    node = SimpleNamespace(stats=lambda stream, one_shot: used)
    monkeypatch.setattr(costs, "client", lambda: SimpleNamespace(api=api))
    monkeypatch.setattr(costs, "look", lambda: SimpleNamespace(state="running"))
    monkeypatch.setattr(costs.containers, "nodes", lambda docker, name: (node, node))
    return volumes


def test_memory_is_without_the_cache_and_disk_without_what_nodes_share(told: list[dict[str, Any]]) -> None:
    told += [
        volume("base", 600 * MIB, base="sha256:1"),
        volume("solo-0", 640 * MIB, cluster="solo"),
        volume("solo-1", 620 * MIB, cluster="solo"),
        volume("trio-0", 900 * MIB, cluster="trio"),
        volume("theirs", 900 * MIB, cluster="solo", state="/somebody/else"),
        {"Name": "a-strangers", "Labels": None, "UsageData": {"Size": -1}},
    ]
    (weighed,) = costs.weighed([STATUS])
    assert (weighed.memory, weighed.disk) == (600 * MIB, 60 * MIB)


def test_of_a_node_the_cache_of_all_that_is_nested_in_it_counts_as_free() -> None:
    both = {"inactive_file": 1 * MIB, "total_inactive_file": 150 * MIB}  # cgroup v1
    node = SimpleNamespace(stats=lambda stream, one_shot: {"memory_stats": {"usage": 400 * MIB, "stats": both}})
    stopped = SimpleNamespace(stats=lambda stream, one_shot: {"memory_stats": {}})
    assert costs.memory(cast("Any", [node, stopped])) == 250 * MIB


def test_of_one_from_a_snapshot_what_it_shares_with_that_is_not_counted(told: list[dict[str, Any]]) -> None:
    told += [
        volume("base", 600 * MIB, base="sha256:1"),
        volume("kept-0", 700 * MIB, snapshot="auto-1"),
        volume("kept-1", 800 * MIB, snapshot="auto-1"),
        volume("other", 900 * MIB, snapshot="auto-2"),
        volume("solo-0", 710 * MIB, cluster="solo"),
        volume("solo-1", 805 * MIB, cluster="solo"),
    ]
    (weighed,) = costs.weighed([replace(STATUS, snapshot="auto-1")])
    assert weighed.disk == 15 * MIB


def test_a_volume_that_the_engine_did_not_count_takes_nothing_from_the_others(told: list[dict[str, Any]]) -> None:
    told += [volume("solo-0", -1, cluster="solo"), volume("solo-1", 20 * MIB, cluster="solo")]
    (weighed,) = costs.weighed([STATUS])
    assert weighed.disk == 20 * MIB


@pytest.mark.parametrize("state", ["gone", "elsewhere", "unreachable", "half-made"])
def test_of_a_cluster_that_is_not_there_nothing_is_said(state: Any, told: list[dict[str, Any]]) -> None:
    lost = replace(STATUS, state=state)
    assert costs.weighed([lost]) == [lost]
    foreign = replace(STATUS, provider="existing")
    assert costs.weighed([foreign]) == [foreign]
