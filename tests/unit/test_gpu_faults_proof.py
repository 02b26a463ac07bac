"""A GPU's crash is proven by the end of the very container that was struck, never by the striker's word."""

from __future__ import annotations

import pytest
from test_gpu_faults import TARGET, Run, of, run, states, there

from sandbox.cluster import nodes
from tests.unit.gpu_cluster import GpuCluster

__all__ = ["run", "there"]  # fixtures


def deaf(_own: object, _node: str, ids: list[str]) -> list[str]:
    """What says that it killed, and did not."""
    return ids


def test_a_server_that_goes_on_running_did_not_crash(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "kill_containers", deaf)
    events = run("gpu.lost", **TARGET)
    assert states(events) == ["started", "injected", "failed"]
    assert "inference/sim-a (running)" in events[-1].detail
    assert not there.faults


def test_an_earlier_crash_is_not_this_one(run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    there.pod("sim-a").ended = "an-earlier-container"
    there.pod("sim-a").restarts = 1
    monkeypatch.setattr(nodes, "kill_containers", deaf)
    assert states(run("gpu.lost", **TARGET)) == ["started", "injected", "failed"]


def test_one_server_of_two_that_goes_on_running_is_enough_not_to_be_proven(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = there.pod("sim-a").container

    def half(own: object, node: str, ids: list[str]) -> list[str]:
        there.kill(there.own, node, [each for each in ids if each == first])
        return ids

    monkeypatch.setattr(nodes, "kill_containers", half)
    events = run("gpu.lost", count=2, **TARGET)
    assert states(events) == ["started", "injected", "failed"]
    assert "inference/sim-b (running)" in of(events, "failed").detail
