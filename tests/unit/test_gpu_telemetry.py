from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gpu_dra import NODE, PROFILE, eventually, fault, gpus
from gpu_telemetry import LATENCIES, SIMULATOR, Kubelet, PodApi, Served, known, pod, reading, simulator

from sandbox.gpu.emulator import snapshot, telemetry
from sandbox.gpu.emulator.devices import Board
from sandbox.gpu.emulator.holders import Holders
from sandbox.gpu.emulator.pods import Pods
from sandbox.gpu.emulator.snapshot import Pulse
from sandbox.gpu.emulator.telemetry import Loop

BUSY = SIMULATOR.replace('running{model_name="test"} 2', 'running{model_name="test"} 5')

DEVICE = (
    "index minor uuid name brand architecture serial pciBusId pciDeviceId computeCap temperatureGpu temperatureMemory "
    "powerDraw powerLimit powerDefaultLimit energyMj utilizationGpu utilizationMemory memoryTotal memoryUsed "
    "memoryFree clocksSm clocksMem clocksMaxSm clocksMaxMem pstate eccCorrected eccUncorrected xid throttle migMode "
    "lost migDevices"
)


class Node:
    """A node's telemetry, one tick at a time."""

    def __init__(self, board: Board, home: Path, source: PodApi, pods: Pods, kubelet: Kubelet) -> None:
        self.board, self.home, self.source, self.pods, self.kubelet = board, home, source, pods, kubelet
        self.pulse = Pulse()
        self.holders = Holders(board, home, socket=kubelet.socket)
        self.loop = Loop(board, home, pods, self.holders, self.pulse)

    def runs(self, served: Served, *uuids: str, name: str = "server-0", **more: object) -> None:
        self.source.put(pod(name, port=served.port, **more))
        self.kubelet.holds(name, *uuids)
        known(self.pods, name)

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            asyncio.run(self.loop.tick())

    def document(self) -> dict:
        return json.loads((self.home / "state" / "devices.json").read_text())


@contextmanager
def node(home: Path, board: Board) -> Iterator[Node]:
    source = PodApi()
    with Kubelet(home / "kubelet.sock") as kubelet, reading(source) as pods:
        made = Node(board, home, source, pods, kubelet)
        try:
            yield made
        finally:
            made.holders.close()


def test_a_node_at_rest_is_idle_and_says_so(tmp_path: Path) -> None:
    with node(tmp_path, gpus(2, mode="device-plugin")) as here:
        here.tick()
        assert here.board.holders == ()
        document = here.document()
        assert (document["emulated"], document["node"], len(document["devices"])) == (True, NODE, 2)
        first = document["devices"][0]
        assert (first["utilizationGpu"], first["memoryUsed"], first["powerDraw"]) == (0, 0, PROFILE.idle_power)
        assert first["memoryFree"] == first["memoryTotal"] == PROFILE.memory_mib
        assert first["clocksSm"] == PROFILE.idle_sm_clock
        assert here.pulse.alive


def test_the_sensors_follow_the_work_of_the_server_that_holds_the_gpu(tmp_path: Path) -> None:
    with node(tmp_path, gpus(2, mode="device-plugin")) as here, simulator() as served:
        served.text = BUSY
        here.runs(served, here.board.gpus[0].uuid)
        here.tick()
        busy, idle = (here.board.readings[gpu.uuid] for gpu in here.board.gpus)
        assert busy.utilization == 1
        assert idle.utilization == 0
        assert busy.sm_clock == PROFILE.max_sm_clock
        assert round(busy.memory_used) == round(0.92 * PROFILE.memory_mib)
        served.text = SIMULATOR.replace('running{model_name="test"} 2', 'running{model_name="test"} 0')
        here.tick()
        assert here.board.readings[here.board.gpus[0].uuid].utilization == 0


def test_a_declared_job_is_busy_without_metrics(tmp_path: Path) -> None:
    with node(tmp_path, gpus(1, mode="device-plugin")) as here:
        here.source.put(pod(notes={"gpu-utilization": "0.8", "gpu-memory": "30000Mi"}))
        here.kubelet.holds("server-0", here.board.gpus[0].uuid)
        known(here.pods)
        here.tick()
        device = here.document()["devices"][0]
        assert (device["utilizationGpu"], device["memoryUsed"]) == (80, 30000)


def test_a_pod_that_has_ended_holds_nothing(tmp_path: Path) -> None:
    with node(tmp_path, gpus(1, mode="device-plugin")) as here:
        here.source.put(pod(phase="Succeeded"))
        here.kubelet.holds("server-0", here.board.gpus[0].uuid)
        known(here.pods)
        here.tick()
        assert here.board.holders == ()


def test_a_lost_gpu_has_no_reading_and_its_energy_goes_on_after_it(tmp_path: Path) -> None:
    with node(tmp_path, gpus(1, mode="device-plugin")) as here, simulator() as served:
        uuid = here.board.gpus[0].uuid
        here.runs(served, uuid)
        here.tick(2)
        before = here.board.readings[uuid].energy
        here.board.set_faults([fault(lost=True, unhealthy=True, xid=79)])
        here.tick()
        assert here.board.readings == {}
        device = here.document()["devices"][0]
        assert (device["lost"], device["xid"], device["powerDraw"], device["utilizationGpu"]) == (True, 79, 0, 0)
        here.board.set_faults([])
        here.tick()
        assert here.board.readings[uuid].energy > before > 0
        assert here.document()["devices"][0]["xid"] == 0


def test_a_throttled_gpu_slows_its_server_and_both_recover(tmp_path: Path) -> None:
    with node(tmp_path, gpus(2, mode="device-plugin")) as here, simulator() as served:
        here.runs(served, here.board.gpus[0].uuid)
        here.board.set_faults([fault(throttle="thermal", clock=0.5), fault("g", gpu=1, throttle="power", clock=0.1)])
        here.tick()
        assert served.config
        assert served.config["time-to-first-token"] == "200ms"
        device = here.document()["devices"][0]
        assert (device["throttle"], device["clocksSm"], device["temperatureGpu"]) == ("thermal", 990, 89)
        state = snapshot.state(here.board, here.pulse)
        assert state["slowed"] == [{"namespace": "default", "pod": "server-0"}]
        here.board.set_faults([fault(throttle="thermal", clock=0.5, seconds=-1)])  # it ends by itself
        here.tick()
        assert {name: served.config[name] for name in LATENCIES} == LATENCIES
        assert snapshot.state(here.board, here.pulse)["slowed"] == []


def test_a_server_that_cannot_be_slowed_is_in_the_state(tmp_path: Path) -> None:
    with node(tmp_path, gpus(1, mode="device-plugin")) as here, Served() as served:
        here.runs(served, here.board.gpus[0].uuid)
        here.board.set_faults([fault(throttle="power", clock=0.5)])
        here.tick()
        (only,) = snapshot.state(here.board, here.pulse)["notSlowed"]
        assert only == {"namespace": "default", "pod": "server-0", "why": "it has no /admin/config"}


def test_a_server_whose_work_nobody_can_see_is_in_the_state(tmp_path: Path) -> None:
    with node(tmp_path, gpus(1, mode="device-plugin")) as here, Served("up 1\n") as served:
        here.runs(served, here.board.gpus[0].uuid)
        here.tick()
        (only,) = snapshot.state(here.board, here.pulse)["unread"]
        assert only == {"namespace": "default", "pod": "server-0", "why": "it has no metrics that are known"}
        here.kubelet.answer.Clear()
        here.tick()
        assert snapshot.state(here.board, here.pulse)["unread"] == []


def test_the_state_says_who_holds_what_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    board = gpus(2, mode="both", mig=[[], ["1g.10gb", "3g.40gb"]])
    with node(tmp_path, board) as here, simulator() as served:
        here.runs(served, board.gpus[0].uuid, board.gpus[1].mig[1].uuid)
        board.set_faults(
            [fault("f-1", gpu=1, unhealthy=True, xid=48, dbe=2, sbe=1), fault("f-2", plugin_down=True, gpu=None)]
        )
        here.tick()
        state = snapshot.state(board, here.pulse)
        whole, cut = state["devices"]
        assert (state["node"], state["mode"], state["emulated"], state["pluginDown"]) == (NODE, "both", True, True)
        assert (whole["offeredBy"], whole["health"], whole["faults"]) == ("device-plugin", "Healthy", [])
        assert (cut["offeredBy"], cut["health"], cut["faults"]) == ("dra", "XID 48", ["f-1"])
        assert (cut["eccUncorrected"], cut["eccCorrected"], cut["migMode"]) == (2, 1, "Enabled")
        who = {"namespace": "default", "pod": "server-0", "container": "server"}
        assert whole["holders"] == [who | {"uuids": [board.gpus[0].uuid]}]
        assert cut["holders"] == [who | {"uuids": [board.gpus[1].mig[1].uuid]}]
        used = [each["memoryUsed"] for each in cut["migDevices"]]
        assert used == [0, round(0.92 * 40448)]
        assert json.loads(json.dumps(state)) == state


def test_what_nvidia_smi_reads_has_everything_it_reads(tmp_path: Path) -> None:
    document = snapshot.devices(gpus(1, mig=[["1g.10gb"]]))
    assert list(document) == ["emulated", "node", "driverVersion", "cudaVersion", "devices"]
    assert " ".join(document["devices"][0]) == DEVICE
    (instance,) = document["devices"][0]["migDevices"]
    assert " ".join(instance) == "index gi ci profile uuid memoryTotal memoryUsed multiprocessors"


def test_the_document_is_replaced_in_one_go_and_everybody_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    snapshot.write(path, {"a": 1})
    old = path.open()
    snapshot.write(path, {"a": 2})
    with old:
        assert json.load(old) == {"a": 1}
    assert json.loads(path.read_text()) == {"a": 2}
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("broken", ["_kubelet", "_servers", "_sense", "_throttle"])
def test_whatever_part_breaks_the_others_go_on(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with node(tmp_path, gpus(1, mode="device-plugin")) as here, simulator() as served:
        here.runs(served, here.board.gpus[0].uuid)
        here.tick()
        before = here.pulse.ticked
        with monkeypatch.context() as patch:
            patch.setattr(here.loop, broken, None)
            here.tick(3)
        assert here.pulse.ticked > before
        assert (
            len([each for each in caplog.records if each.name.endswith("telemetry")]) == 1
        )  # said once, not each second
        here.tick()
        assert here.board.readings[here.board.gpus[0].uuid].utilization > 0


def test_the_loop_runs_until_it_is_stopped_and_leaves_no_server_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "SECONDS", 0.05)
    board, pulse, stop, source = gpus(1, mode="device-plugin"), Pulse(), threading.Event(), PodApi()
    with Kubelet(tmp_path / "kubelet.sock") as kubelet, simulator() as served:
        source.put(pod(port=served.port))
        kubelet.holds("server-0", board.gpus[0].uuid)
        board.set_faults([fault(throttle="power", clock=0.5)])
        running = threading.Thread(
            target=telemetry.run,
            args=(board, source, tmp_path, stop),
            kwargs={"pulse": pulse, "socket": kubelet.socket},
        )
        running.start()
        try:
            eventually(lambda: pulse.slowed)
            eventually(lambda: board.readings[board.gpus[0].uuid].utilization > 0)
        finally:
            stop.set()
            running.join(5)
        assert not running.is_alive()
        assert served.config
        assert {name: served.config[name] for name in LATENCIES} == LATENCIES
        assert not list((tmp_path / "undo").iterdir())


def test_a_tick_at_rest_costs_less_than_a_hundredth_of_a_core(tmp_path: Path) -> None:
    with node(tmp_path, gpus(8, mode="device-plugin")) as here, simulator() as served:
        for number, gpu in enumerate(here.board.gpus):
            here.runs(served, gpu.uuid, name=f"server-{number}")

        async def ticks(count: int) -> float:
            begun = time.thread_time()
            for _ in range(count):
                await here.loop.tick()
            return (time.thread_time() - begun) / count

        asyncio.run(ticks(3))
        # with eight servers to read, and room for a slow machine
        assert asyncio.run(ticks(10)) < 0.03
