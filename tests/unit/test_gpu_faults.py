"""Faults of emulated GPUs: each from its first look to its last, and nothing of any of them left behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.cluster import Cluster, nodes, signals
from sandbox.errors import ClusterError, UsageError
from sandbox.faults import FAULTS, Context, drive, gpu_case
from sandbox.faults import gpu as gpu_faults
from sandbox.gpu import blows, control, witness
from sandbox.gpu.emulator.devices import Fault
from sandbox.spec.gpu import GpuGroup
from sandbox.timeline import FaultEvent, Timeline, read
from tests.unit.api_server import Answer
from tests.unit.gpu_cluster import QUICK, GpuCluster, gpu_cluster

TARGET = {"target": {"app": "vllm-sim"}}
WHOLE = ["started", "injected", "proven", "healed"]
Run = Callable[..., list[FaultEvent]]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuCluster]:
    """Two nodes with four GPUs each; two pods hold one each on the first, one holds one on the second."""
    groups = {"n1": GpuGroup(profile="h100", count=4), "n2": GpuGroup(profile="l4", count=4)}
    with gpu_cluster(tmp_path, monkeypatch, groups) as made:
        made.hold("sim-a", "n1", 2, latencies=QUICK)
        made.hold("sim-b", "n1", 0, latencies=QUICK)
        made.hold("sim-c", "n2", 1, latencies=QUICK)
        yield made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: GpuCluster) -> Run:
    monkeypatch.setattr(gpu_faults, "_LAG_SECONDS", 0.1)
    monkeypatch.setattr(gpu_case, "_PROOF_SECONDS", 1.0)

    def start(name: str, *, stop: threading.Event | None = None, own: Any = None, **params: Any) -> list[FaultEvent]:
        assert not list(FAULTS.problems(name, {"hold": "100ms", "within": "2s", **params}))
        context = Context(there.kube, own or there.own, "inference", stop or threading.Event())
        log = tmp_path / f"{threading.get_ident()}.jsonl"
        log.unlink(missing_ok=True)
        with Timeline(log) as timeline:
            drive(name, 0, context, {"hold": "100ms", "within": "2s", **params}, timeline)
        return [event for event in read(log) if isinstance(event, FaultEvent)]

    return start


def states(events: list[FaultEvent]) -> list[str]:
    return [event.state for event in events]


def of(events: list[FaultEvent], state: str) -> FaultEvent:
    assert state in states(events), [f"{event.state}: {event.detail}" for event in events]
    return next(event for event in events if event.state == state)


def nothing_left(there: GpuCluster) -> bool:
    return not there.faults and not any(pod.held for pod in there.pods)


# the life of each


def test_a_lost_gpu_is_withheld_its_server_crashes_and_both_come_back(run: Run, there: GpuCluster) -> None:
    before = there.pod("sim-a").container
    there.delay = 0.3
    events = run("gpu.xid", **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    injected, proven = of(events, "injected"), of(events, "proven")
    assert "XID 79 (GPU has fallen off the bus) on GPU 2 of n1; SIGKILL to inference/sim-a" in injected.detail
    assert injected.evidence["emulated"] is True
    assert proven.evidence["allocatable"] == {"n1": {"nvidia.com/gpu": 3}}
    assert "nvidia.com/gpu 4 -> 3" in proven.detail
    assert 0.3 <= proven.evidence["allocatable_after_s"] < 1
    assert "exit code 137" in proven.evidence["ended"]["inference/sim-a"]
    assert (there.pod("sim-a").ended, there.pod("sim-a").restarts) == (before, 1)
    assert there.pod("sim-b").restarts == 0, "only the one that held it"
    assert "recovered_after_s" in of(events, "healed").evidence
    assert nothing_left(there)


def test_the_device_is_struck_before_its_server_so_that_a_restart_meets_the_fault(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting: list[int] = []

    def kill(own: Cluster, node: str, ids: list[str]) -> list[str]:
        acting.append(len(there.boards[node].active(2)))
        return there.kill(own, node, ids)

    monkeypatch.setattr(nodes, "kill_containers", kill)
    assert states(run("gpu.lost", **TARGET)) == WHOLE
    assert acting == [1]


def test_a_gpu_can_be_named_and_nobody_need_hold_it(run: Run, there: GpuCluster) -> None:
    events = run("gpu.lost", node="n2", gpu=3)
    assert states(events) == WHOLE, events[-1].detail
    assert "no process was touched" in of(events, "injected").detail
    assert of(events, "proven").evidence["allocatable"] == {"n2": {"nvidia.com/gpu": 3}}
    assert not there.done


def test_a_gpu_whose_controller_hangs_hangs_its_server(run: Run, there: GpuCluster) -> None:
    events = run("gpu.xid", code=119, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    assert of(events, "proven").evidence["states"] == {"inference/sim-a": "TT"}
    ((what, node, seconds, running),) = there.done
    assert (what, node, running) == ("stop", "n1", "0")
    assert float(seconds) == pytest.approx(0.1 + gpu_case.MARGIN), "it ends in the node by itself"
    assert nothing_left(there)


def test_an_applications_error_leaves_the_device_healthy_and_is_seen_in_monitoring(run: Run, there: GpuCluster) -> None:
    events = run("gpu.xid", code=31, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    proven = of(events, "proven").evidence
    assert proven["DCGM_FI_DEV_XID_ERRORS"] == {"GPU 2 of n1": 31}
    assert "exit code 137" in proven["ended"]["inference/sim-a"]
    assert "allocatable" not in proven


@pytest.mark.parametrize(("kind", "xid"), [("uncorrectable", 48), ("uncontained", 95), ("contained", 94)])
def test_an_uncorrected_memory_error_comes_with_its_xid(run: Run, there: GpuCluster, kind: str, xid: int) -> None:
    events = run("gpu.ecc", kind=kind, errors=3, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    assert f"XID {xid} " in of(events, "injected").detail


def test_corrected_memory_errors_are_counted_and_hurt_nobody(run: Run, there: GpuCluster) -> None:
    events = run("gpu.ecc", kind="corrected", errors=7, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    assert of(events, "proven").evidence["DCGM_FI_DEV_ECC_SBE_VOL_TOTAL"] == {"GPU 2 of n1": 7}
    assert not there.done


def test_a_throttled_simulator_is_slow_by_its_own_word(run: Run, there: GpuCluster) -> None:
    events = run("gpu.throttle", clock=0.4, reason="power", **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    proven = of(events, "proven").evidence
    assert proven["latencies_before"]["inference/sim-a"]["inter-token-latency"] == pytest.approx(0.01)
    assert proven["latencies"]["inference/sim-a"]["inter-token-latency"] == pytest.approx(0.025)
    assert not there.done, "the emulator does it"


def test_any_other_server_on_a_throttled_gpu_is_stopped_in_proportion(run: Run, there: GpuCluster) -> None:
    there.pod("sim-a").latencies = None
    events = run("gpu.throttle", clock=0.4, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    assert of(events, "proven").evidence["stopped_share"] == {"inference/sim-a": 0.5}
    assert there.done[0][3] == "0.4"
    assert nothing_left(there)


def test_a_throttle_of_a_gpu_that_nobody_holds_has_no_target(run: Run) -> None:
    assert states(run("gpu.throttle", node="n1", gpu=3)) == ["started", "no_target"]


def test_without_its_device_plugin_a_node_offers_nothing_and_what_runs_goes_on(run: Run, there: GpuCluster) -> None:
    events = run("gpu.plugin-down", count=2, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    assert "on n1, n2" in of(events, "injected").detail
    assert of(events, "proven").evidence["allocatable"] == {"n2": {"nvidia.com/gpu": 0}}
    assert states(run("gpu.plugin-down", node="n2")) == WHOLE
    assert not there.done
    assert nothing_left(there)


def test_a_device_of_the_dra_driver_is_tainted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"n1": GpuGroup(profile="h100", count=2, mode="dra")}
    with gpu_cluster(tmp_path, monkeypatch, groups) as there:
        there.hold("sim", "n1", 1)
        context = Context(there.kube, there.own, "inference", threading.Event())
        life = FAULTS.call("gpu.lost", context, {**TARGET, "hold": "100ms"})
        assert "GPU 1 of n1" in next(life).detail
        proven = next(life)
        assert "gpu.nvidia.com/xid=79:NoSchedule" in proven.values["taints"]["GPU 1 of n1"]
        with pytest.raises(StopIteration):
            next(life)
        life = FAULTS.call("gpu.plugin-down", context, {"node": "n1", "hold": "100ms"})
        next(life)
        assert "no ResourceSlice any more" in next(life).detail
        with pytest.raises(StopIteration):
            next(life)


def test_instances_and_shares_of_a_lost_gpu_are_withheld_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mig = {"strategy": "mixed", "perGpu": [["1g.10gb", "3g.40gb"], []]}
    sharing = {"timeSlicing": {"renameByDefault": True, "resources": [{"name": "nvidia.com/gpu", "replicas": 4}]}}
    group = GpuGroup.model_validate({"profile": "h100", "count": 2, "mig": mig, "sharing": sharing})
    with gpu_cluster(tmp_path, monkeypatch, {"n1": group}) as there:
        there.hold("sim", "n1", 0)
        assert witness.offered(there.kube, "n1") == {
            "nvidia.com/mig-1g.10gb": {0: 1},
            "nvidia.com/mig-3g.40gb": {0: 1},
            "nvidia.com/gpu.shared": {1: 4},
        }
        context = Context(there.kube, there.own, "inference", threading.Event())
        life = FAULTS.call("gpu.lost", context, {**TARGET, "hold": "100ms"})
        next(life)
        shown = next(life).values["allocatable"]["n1"]
        assert shown == {"nvidia.com/mig-1g.10gb": 0, "nvidia.com/mig-3g.40gb": 0, "nvidia.com/gpu.shared": 4}
        life.close()
        assert nothing_left(there)


# who is struck


def test_pods_that_hold_no_gpu_are_no_target(run: Run, there: GpuCluster) -> None:
    there.hold("cpu", "n1", labels={"app": "cpu"})
    events = run("gpu.lost", target={"app": "cpu"})
    assert states(events) == ["started", "no_target"]
    assert "1 ready pods with app=cpu in inference hold 0 GPUs" in of(events, "no_target").detail
    assert "gpus: 1" in of(events, "no_target").detail
    assert states(run("gpu.lost", target={"app": "nobody"})) == ["started", "no_target"]
    assert states(run("gpu.lost", count=4, **TARGET)) == ["started", "no_target"]
    assert states(run("gpu.plugin-down", count=3, **TARGET)) == ["started", "no_target"]
    there.silent = {"n1", "n2"}
    assert "n1: its GPU emulator does not answer" in of(run("gpu.lost", **TARGET), "no_target").detail


def test_several_devices_can_be_struck_at_once(run: Run, there: GpuCluster) -> None:
    events = run("gpu.lost", count=3, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    assert set(of(events, "injected").evidence["devices"]) == {"GPU 2 of n1", "GPU 0 of n1", "GPU 1 of n2"}
    assert of(events, "proven").evidence["allocatable"]["n2"] == {"nvidia.com/gpu": 3}
    assert sorted(there.done) == [("kill", "n1"), ("kill", "n2")]


def test_a_device_with_which_something_is_wrong_already_is_struck_last(run: Run, there: GpuCluster) -> None:
    control.inject(there.kube, {"n1": [Fault("other", time.time() + 60, gpu=2, xid=31)]})
    assert "GPU 0 of n1" in of(run("gpu.lost", **TARGET), "injected").detail


def test_a_gpu_or_node_that_is_not_there_is_refused_with_those_that_are(run: Run, there: GpuCluster) -> None:
    gpu, node = run("gpu.lost", node="n1", gpu=9), run("gpu.lost", node="n9", gpu=0)
    assert states(gpu) == states(node) == ["started", "failed"]
    assert "n1: has no GPU 9" in of(gpu, "failed").detail
    assert "use one of: 0, 1, 2, 3" in of(gpu, "failed").detail
    assert "use one of: n1, n2" in of(node, "failed").detail
    assert "use one of: n1, n2" in of(run("gpu.plugin-down", node="n9"), "failed").detail


def test_a_cluster_without_emulated_gpus_is_refused_with_one_that_has_some(run: Run, there: GpuCluster) -> None:
    there.boards = {}
    failed = of(run("gpu.lost", **TARGET), "failed").detail
    assert "no emulated GPUs" in failed
    assert "solo-gpu" in failed


def test_signals_into_somebody_elses_nodes_are_refused_before_anything_is_done(run: Run, there: GpuCluster) -> None:
    own = replace(there.own, provider="existing")
    there.pod("sim-a").latencies = None
    for name, params in (("gpu.lost", {}), ("gpu.xid", {"code": 119}), ("gpu.throttle", {})):
        events = run(name, own=own, **params, **TARGET)
        assert states(events) == ["started", "failed"]
        assert "the nodes are somebody else's" in of(events, "failed").detail
        assert "inference/sim-a holds the device" in of(events, "failed").detail
    assert there.version == 1, "nothing was declared"
    assert states(run("gpu.lost", own=own, process="none", **TARGET)) == WHOLE


def test_what_becomes_of_the_server_can_be_chosen(run: Run, there: GpuCluster) -> None:
    assert states(run("gpu.xid", code=119, process="crash", **TARGET)) == WHOLE
    assert there.done == [("kill", "n1")]


# what does not count, and what is left


def test_a_kubelet_that_goes_on_offering_the_device_is_no_proof(run: Run, there: GpuCluster) -> None:
    there.deaf = True
    events = run("gpu.lost", **TARGET)
    assert states(events) == ["started", "injected", "failed"]
    assert "the kubelet of n1 offers nvidia.com/gpu=4; healthy are nvidia.com/gpu=3" in events[-1].detail
    assert nothing_left(there)


def test_a_server_that_cannot_be_slowed_is_no_proof(run: Run, there: GpuCluster) -> None:
    there.quick_server = True
    events = run("gpu.throttle", **TARGET)
    assert states(events) == ["started", "injected", "failed"]
    assert "not slower: inference/sim-a" in events[-1].detail
    there.pod("sim-a").latencies = dict.fromkeys(QUICK, "0s")
    events = run("gpu.throttle", **TARGET)
    assert states(events) == ["started", "failed"], "refused before anything is done"


def test_a_process_that_goes_on_is_no_hang(run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "hold", lambda *_, **__: None)
    events = run("gpu.xid", code=119, **TARGET)
    assert states(events) == ["started", "injected", "failed"]
    assert "not stopped: inference/sim-a" in events[-1].detail
    assert nothing_left(there)


def test_a_server_that_never_comes_back_is_the_systems_failure(run: Run, there: GpuCluster) -> None:
    there.stuck = True
    events = run("gpu.lost", within="300ms", **TARGET)
    assert states(events) == ["started", "injected", "proven", "not_healed"]
    assert "2 of 3 pods with app=vllm-sim in inference ready" in events[-1].detail
    assert nothing_left(there)


class EndedWhileHeld(threading.Event):
    """A run that is ended as soon as a fault is to last."""

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None and timeout > 60:
            self.set()
        return super().wait(timeout)


@pytest.mark.parametrize(("name", "more"), [("gpu.lost", {}), ("gpu.xid", {"code": 119}), ("gpu.throttle", {})])
def test_a_run_that_is_ended_in_the_middle_heals_first(
    run: Run, there: GpuCluster, name: str, more: dict[str, Any]
) -> None:
    there.pod("sim-a").latencies = None
    events = run(name, hold="1h", stop=EndedWhileHeld(), **more, **TARGET)
    assert states(events)[:3] == WHOLE[:3]
    assert nothing_left(there)


def test_a_fault_that_is_dropped_in_the_middle_heals_too(there: GpuCluster) -> None:
    context = Context(there.kube, there.own, "inference", threading.Event())
    life = FAULTS.call("gpu.xid", context, {**TARGET, "code": 119})
    next(life)
    assert not nothing_left(there)
    life.close()
    assert nothing_left(there)


def test_every_fault_has_an_end_of_its_own(there: GpuCluster) -> None:
    context = Context(there.kube, there.own, "inference", threading.Event())
    life = FAULTS.call("gpu.lost", context, {**TARGET, "hold": "20s"})
    next(life)
    (fault,) = there.faults
    assert fault["until"] == pytest.approx(time.time() + 20 + gpu_case.MARGIN, abs=5)
    life.close()


def test_an_end_that_fails_is_said_and_the_fault_ends_by_itself(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> list[str]:
        raise UsageError("no")

    monkeypatch.setattr(control, "heal", refused)
    events = run("gpu.lost", **TARGET)
    assert states(events)[-1] == "failed", "what we could not undo is not the system's failure"
    assert "ends by itself" in capsys.readouterr().err


def test_two_faults_on_one_node_do_not_lose_each_other(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_case, "_PROOF_SECONDS", 20.0)
    there.conflicts = 3
    there.delay = 0.2
    found: dict[int, list[FaultEvent]] = {}
    work = [
        threading.Thread(
            target=lambda gpu=gpu: found.update({gpu: run("gpu.lost", node="n1", gpu=gpu, hold="1s", within="20s")})
        )
        for gpu in range(4)
    ]
    for each in work:
        each.start()
    for each in work:
        each.join()
    assert [states(found[gpu]) for gpu in range(4)] == [WHOLE] * 4, [found[gpu][-1].detail for gpu in range(4)]
    assert nothing_left(there)


def test_a_pod_is_replaced_where_that_is_asked_for(run: Run, there: GpuCluster) -> None:
    events = run("gpu.lost", replace=True, **TARGET)
    assert states(events) == WHOLE, events[-1].detail
    assert ("delete", "sim-a") in there.done
    assert of(events, "healed").evidence["replaced"] == ["inference/sim-a"]


def test_a_pod_that_a_node_refused_does_not_stand_in_the_way(run: Run, there: GpuCluster) -> None:
    refused = there.hold("sim-refused", "n1", ready=False)
    ours = refused.as_json()
    refused.as_json = lambda: {**ours, "status": {"phase": "Failed"}}  # type: ignore[method-assign]
    assert states(run("gpu.lost", **TARGET)) == WHOLE


# what is so already, and what is still so


def act(there: GpuCluster, fault: Fault) -> None:
    control.inject(there.kube, {"n1": [replace(fault, id=f"other-{fault.gpu}", until=time.time() + 60)]})


LOST = Fault("", 0, gpu=2, xid=79, unhealthy=True, lost=True)


@pytest.mark.parametrize(
    ("other", "own", "says"),
    [
        (LOST, ("gpu.lost", {"gpu": 2}), "GPU 2 of n1 is unhealthy already (XID 79)"),
        (replace(LOST, lost=False, xid=48), ("gpu.lost", {"gpu": 2}), "GPU 2 of n1 is unhealthy already (XID 48)"),
        (LOST, ("gpu.ecc", {"gpu": 2}), "GPU 2 of n1 is unhealthy already"),
        (Fault("", 0, gpu=2, xid=31), ("gpu.xid", {"gpu": 2, "code": 31}), "GPU 2 of n1 shows XID 31 already"),
        (
            Fault("", 0, gpu=2, throttle="power", clock=0.1),
            ("gpu.throttle", {"gpu": 2}),
            "GPU 2 of n1 is throttled already (power)",
        ),
        (Fault("", 0, plugin_down=True), ("gpu.plugin-down", {}), "the device plugin of n1 is gone already"),
    ],
)
def test_what_is_so_already_cannot_be_this_faults_doing(
    run: Run, there: GpuCluster, other: Fault, own: tuple[str, dict[str, Any]], says: str
) -> None:
    act(there, other)
    events = run(own[0], node="n1", **own[1])
    assert states(events) == ["started", "failed"]
    assert says in events[-1].detail
    assert len(there.faults) == 1, "nothing was added"
    assert not there.done


def test_a_process_that_stands_still_already_cannot_be_stopped(run: Run, there: GpuCluster) -> None:
    there.pod("sim-a").held = "another"
    there.pod("sim-a").latencies = None
    for name, params in (("gpu.xid", {"code": 119}), ("gpu.throttle", {})):
        events = run(name, node="n1", gpu=2, **params)
        assert states(events) == ["started", "failed"]
        assert "inference/sim-a stands still already" in events[-1].detail


@pytest.mark.parametrize(
    ("own", "other", "says"),
    [
        (("gpu.lost", {"gpu": 2}), LOST, "GPU 2 of n1 is still unhealthy"),
        (
            ("gpu.throttle", {"gpu": 2}),
            Fault("", 0, gpu=2, throttle="power", clock=0.1),
            "GPU 2 of n1 is still throttled",
        ),
        (("gpu.throttle", {"gpu": 2}), replace(LOST, lost=False), "GPU 2 of n1 is still unhealthy"),
        (("gpu.plugin-down", {}), Fault("", 0, plugin_down=True), ""),
    ],
)
def test_what_is_still_so_is_not_healed_whoever_does_it(
    run: Run, there: GpuCluster, own: tuple[str, dict[str, Any]], other: Fault, says: str
) -> None:
    threading.Timer(0.7, lambda: act(there, other)).start()
    events = run(own[0], node="n1", hold="1s", within="500ms", **own[1])
    assert states(events) == ["started", "injected", "proven", "not_healed"], events[-1].detail
    assert says in events[-1].detail


def test_a_process_that_is_not_let_go_is_not_healed(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "release", lambda *_: True)
    events = run("gpu.xid", code=119, within="300ms", **TARGET)
    assert states(events)[-1] == "not_healed"
    assert "still stopped: inference/sim-a" in events[-1].detail


def test_what_the_kubelet_has_not_heard_of_yet_is_waited_for_before_the_fault(run: Run, there: GpuCluster) -> None:
    there.delay = 0.5
    act(there, replace(LOST, gpu=3))
    events = run("gpu.lost", node="n1", gpu=1)
    assert states(events) == WHOLE, events[-1].detail
    assert of(events, "proven").evidence["allocatable_before"] == {"nvidia.com/gpu": 3}
    assert "nvidia.com/gpu 3 -> 2" in of(events, "proven").detail


def test_a_kill_that_reaches_nobody_is_told(run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "kill_containers", lambda *_: [])
    events = run("gpu.lost", **TARGET)
    assert states(events) == ["started", "failed"]
    assert "SIGKILL did not reach inference/sim-a" in events[-1].detail
    assert nothing_left(there)


def test_a_server_that_runs_on_has_not_crashed_whatever_was_sent(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "kill_containers", lambda _own, _node, ids: ids)
    events = run("gpu.lost", **TARGET)
    assert states(events) == ["started", "injected", "failed"]
    assert "not ended by SIGKILL: inference/sim-a (running)" in events[-1].detail


def test_a_server_that_ended_by_itself_has_not_crashed_by_this_fault(run: Run, there: GpuCluster) -> None:
    there.pod("sim-a").code = 1
    events = run("gpu.lost", **TARGET)
    assert states(events) == ["started", "injected", "failed"]
    assert "inference/sim-a (exit code 1)" in events[-1].detail


@pytest.mark.parametrize(("runs_on", "proven"), [(True, False), (False, True)])
def test_of_a_server_whose_pod_is_gone_the_node_is_asked_whether_it_ended(
    run: Run, there: GpuCluster, monkeypatch: pytest.MonkeyPatch, runs_on: bool, proven: bool
) -> None:
    container = there.pod("sim-a").container
    monkeypatch.setattr(nodes, "kill_containers", lambda _own, _node, ids: there.pods.pop(0) and ids)
    monkeypatch.setattr(nodes, "running_containers", lambda *_: {container} if runs_on else set())
    events = run("gpu.lost", **TARGET)
    assert ("proven" in states(events)) == proven
    words = of(events, "proven" if proven else "failed").detail
    assert ("its node runs it no more" if proven else "its pod is gone, and it runs on") in words


# parameters


@pytest.mark.parametrize(
    ("name", "params", "keys", "says"),
    [
        ("gpu.xid", {**TARGET, "code": 5}, ("code",), "known: 13, 31, 43"),
        ("gpu.xid", {}, (), "either `target`"),
        ("gpu.xid", {**TARGET, "node": "n1", "gpu": 0}, (), "either `target`"),
        ("gpu.xid", {"node": "n1"}, (), "needs `gpu` too"),
        ("gpu.xid", {"node": "a"}, (), "needs `gpu` too"),
        ("gpu.xid", {"node": "n1", "gpu": 0, "count": 2}, ("count",), "goes with `target`"),
        ("gpu.xid", {"target": {}}, ("target",), "at least 1"),
        ("gpu.lost", {**TARGET, "code": 79}, ("code",), "unknown parameter"),
        ("gpu.ecc", {**TARGET, "kind": "bad"}, ("kind",), "'corrected'"),
        ("gpu.ecc", {**TARGET, "errors": 0}, ("errors",), "greater than or equal to 1"),
        ("gpu.throttle", {**TARGET, "clock": 1.0}, ("clock",), "less than or equal to 0.95"),
        ("gpu.throttle", {**TARGET, "reason": "cold"}, ("reason",), "'thermal' or 'power'"),
        ("gpu.plugin-down", {}, (), "either `target`"),
        ("gpu.plugin-down", {**TARGET, "gpu": 0}, ("gpu",), "unknown parameter"),
        ("gpu.plugin-down", {"node": "n1", "count": 2}, ("count",), "goes with `target`"),
        ("gpu.lost", {**TARGET, "hold": 20}, ("hold",), "with its unit"),
        ("gpu.lost", {**TARGET, "hold": "0s"}, ("hold",), "greater than 0"),
        ("gpu.lost", {**TARGET, "process": "slow"}, ("process",), "'none', 'crash' or 'hang'"),
    ],
)
def test_mistakes_are_refused_before_the_run(
    name: str, params: dict[str, Any], keys: tuple[str, ...], says: str
) -> None:
    found = {tuple(where): message for where, message in FAULTS.problems(name, params)}
    assert says in found[name, *keys], found


# the table of XIDs


def test_what_nvidias_plugin_takes_for_the_applications_error_leaves_the_device_healthy() -> None:
    healthy = {code for code, row in blows.xids().items() if not row.unhealthy}
    assert healthy == {13, 31, 43, 45, 68, 109}


def test_only_a_gpu_off_the_bus_is_lost_and_each_row_makes_a_fault() -> None:
    assert [code for code, row in blows.xids().items() if row.lost] == [blows.LOST]
    assert list(blows.xids()) == sorted(blows.xids())
    for code in blows.xids():
        fault = blows.xid(code).on(1, ident="x", until=2.0)
        assert (fault.xid, fault.gpu, fault.until) == (code, 1, 2.0)


# the ConfigMap


def test_what_is_over_is_dropped_and_what_acts_stays(there: GpuCluster) -> None:
    late, alive = Fault("late", time.time() - 1, gpu=0), Fault("alive", time.time() + 60, gpu=1)
    control.inject(there.kube, {"n1": [late, alive]})
    there.declared["n2.json"] = "no JSON"
    control.inject(there.kube, {"n1": [Fault("new", time.time() + 60, gpu=2)]})
    assert [each["id"] for each in there.faults] == ["alive", "new"]
    assert "n2.json" not in there.declared
    assert control.heal(there.kube, ["alive", "unknown"]) == ["alive"]
    assert control.heal(there.kube) == ["new"]
    assert control.heal(there.kube) == []
    assert there.declared == {}


def test_what_is_declared_is_what_the_emulator_reads(there: GpuCluster) -> None:
    fault = Fault("a", time.time() + 60, gpu=0, xid=48, unhealthy=True, dbe=2)
    control.inject(there.kube, {"n1": [fault]})
    control.states(there.kube)
    assert there.boards["n1"].faults == (fault,)
    assert json.loads(there.declared["n1.json"])[0]["gpu"] == 0


def test_others_that_never_stop_changing_the_faults_are_named(
    there: GpuCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_MOST_PAUSE", 0.0)
    there.conflicts = 1000
    with pytest.raises(ClusterError, match="others keep changing the faults"):
        control.inject(there.kube, {"n1": [Fault("a", time.time() + 60, gpu=0)]})


def test_an_emulator_of_another_version_is_told_from_a_bug(there: GpuCluster) -> None:
    there.server.rules.insert(0, lambda asked: Answer(200, {}) if asked.path.endswith("/state") else None)
    with pytest.raises(ClusterError, match="speaks another language") as caught:
        control.states(there.kube)
    assert caught.value.fix == "sandbox up"


def test_a_duration_of_the_simulator_is_read_as_go_writes_it() -> None:
    assert witness.seconds("1m0.5s") == 60.5
    assert witness.seconds("250ms") == 0.25
    assert witness.seconds("25000000ns") == 0.025


def test_a_metric_is_read_of_its_gpu_only() -> None:
    text = '# HELP x\nDCGM_X{gpu="0",UUID="GPU-a"} 1\nDCGM_X{gpu="1",UUID="GPU-b",pod="p"} 79\n'
    assert witness.metric(text, "DCGM_X", "GPU-b") == 79
    assert witness.metric(text, "DCGM_X", "GPU-c") is None
