"""ResourceSlices: what the API wants to see, and that they stay as the devices are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpu_dra import NODE, SLICES, FakeApi, fault, gpus

from sandbox.gpu.emulator import slices
from sandbox.gpu.emulator.apiserver import ApiError
from sandbox.gpu.emulator.devices import Board
from sandbox.gpu.emulator.slices import Publisher, devices, quantity, semver

CUT = [["1g.10gb", "1g.10gb", "3g.40gb"]] * 2
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
NAME = re.compile(r"(?:[a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z_][A-Za-z0-9_]{0,31}")


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def values(device: dict[str, Any], what: str = "attributes") -> dict[str, Any]:
    return {name: next(iter(each.values())) for name, each in device[what].items()}


def test_a_whole_gpu_reads_as_nvidias_driver_writes_it() -> None:
    first, second = devices(gpus(2))
    assert [first["name"], second["name"]] == ["gpu-0", "gpu-1"]
    assert values(second) == {
        "type": "gpu",
        "uuid": gpus(2).gpus[1].uuid,
        "minor": 1,
        "index": 1,
        "productName": "NVIDIA H100 80GB HBM3",
        "brand": "NVIDIA",
        "architecture": "Hopper",
        "cudaComputeCapability": "9.0.0",
        "driverVersion": "580.105.8",
        "cudaDriverVersion": "13.0.0",
        "resource.kubernetes.io/pciBusID": "0000:18:00.0",
        "resource.kubernetes.io/pcieRoot": "pci0000:10",
        "ai-k8s-sandbox/emulated": True,
    }
    assert values(second, "capacity") == {"memory": "81559Mi"}
    assert "taints" not in second


def test_a_gpu_that_is_cut_offers_its_instances_only() -> None:
    board = gpus(2, mig=[["1g.10gb", "3g.40gb"], []])
    by_name = {each["name"]: each for each in devices(board)}
    small, big = (each.name for each in board.gpus[0].mig)
    assert by_name.keys() == {small, big, "gpu-1"}
    found = by_name[big]
    told = values(found)
    assert (told["type"], told["profile"]) == ("mig", "3g.40gb")
    assert told["parentUUID"] == board.gpus[0].uuid
    assert told["uuid"] == board.gpus[0].mig[1].uuid
    assert values(found, "capacity") == {"memory": "40448Mi", "multiprocessors": "60"}


@pytest.mark.parametrize("board", [gpus(16), gpus(2, mig=CUT)], ids=["whole", "cut"])
def test_what_is_published_is_what_the_api_takes(board: Board) -> None:
    board.set_faults([fault("a", xid=79, unhealthy=True, lost=True), fault("b", throttle="thermal")])
    found = devices(board)
    assert len({each["name"] for each in found}) == len(found)
    for device in found:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", device["name"])
        assert len(device["attributes"]) + len(device["capacity"]) <= 32
        for name, value in device["attributes"].items():
            assert NAME.fullmatch(name)
            (kind,) = value
            assert kind in {"string", "int", "bool", "version"}
            assert len(str(value[kind])) <= 64
            assert kind != "version" or SEMVER.fullmatch(value[kind])
        for taint in device.get("taints", ()):
            assert re.fullmatch(r"gpu\.nvidia\.com/[a-z-]+", taint["key"])
            assert re.fullmatch(r"[a-z0-9-]{0,63}", taint.get("value", ""))


def test_versions_are_three_numbers_and_memory_is_written_as_the_server_writes_it() -> None:
    assert [semver(each) for each in ("8.6", "12", "535.104.05", "")] == ["8.6.0", "12.0.0", "535.104.5", "0.0.0"]
    assert [quantity(each) for each in (81559, 81920, 1048576)] == ["81559Mi", "80Gi", "1Ti"]


def test_in_the_mode_both_the_upper_half_is_for_dra() -> None:
    assert [each["name"] for each in devices(gpus(5, mode="both"))] == ["gpu-3", "gpu-4"]


DEAD = {"xid": 79, "unhealthy": True}
DEAD_TAINTS = ["unhealthy=xid-79:NoExecute", "xid=79:NoSchedule"]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([DEAD], DEAD_TAINTS),
        ([DEAD, DEAD], DEAD_TAINTS),
        ([DEAD | {"lost": True}], [DEAD_TAINTS[0], "gpu-lost:NoSchedule", DEAD_TAINTS[1]]),
        ([{"unhealthy": True, "lost": True}], ["unhealthy=lost:NoExecute", "gpu-lost:NoSchedule"]),
        ([{"lost": True}], ["unhealthy=lost:NoExecute", "gpu-lost:NoSchedule"]),
        ([{"xid": 31}], ["xid=31:None"]),
        ([{"throttle": "power", "clock": 0.5}], ["throttled=power:None"]),
        ([DEAD | {"seconds": -1}], []),
        ([DEAD | {"gpu": 1}], []),
    ],
)
def test_faults_become_taints(faults: list[dict[str, Any]], expected: list[str]) -> None:
    board = gpus(2)
    board.set_faults([fault(f"f{number}", **each) for number, each in enumerate(faults)])
    found = [
        f"{each['key'].partition('/')[2]}{'=' if 'value' in each else ''}{each.get('value', '')}:{each['effect']}"
        for each in slices.taints(board, 0)
    ]
    assert found == expected


def test_a_fault_of_a_gpu_is_one_of_all_its_instances(api: FakeApi) -> None:
    board = gpus(2, mig=CUT)
    board.set_faults([fault(gpu=1, xid=95, unhealthy=True)])
    Publisher(board, api).publish()
    assert {name for name in api.devices() if api.taints(name)} == {each.name for each in board.gpus[1].mig}


def test_the_slice_belongs_to_the_node_and_is_stamped(api: FakeApi) -> None:
    Publisher(gpus(2), api).publish()
    ((name, found),) = api.slices().items()
    assert name == f"{NODE}-gpu.nvidia.com-0"
    assert found["metadata"]["labels"] == {"ai-k8s-sandbox/emulated": "true"}
    owner = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": "node-uid", "controller": True}
    assert found["metadata"]["ownerReferences"] == [owner]
    spec = found["spec"]
    assert (spec["driver"], spec["nodeName"]) == ("gpu.nvidia.com", NODE)
    assert spec["pool"] == {"name": NODE, "generation": 1, "resourceSliceCount": 1}


def test_nothing_is_written_while_nothing_changes(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    board = gpus(2)
    publisher = Publisher(board, api)
    publisher.publish()
    before = api.slices()
    publisher.publish()
    assert api.calls.count(f"GET {SLICES}") == 1
    publisher.publish(now=True)
    monkeypatch.setattr(slices, "CHECK_SECONDS", 0.0)
    Publisher(board, api).publish()  # a driver that was restarted
    assert api.calls.count(f"GET {SLICES}") == 3
    assert api.slices() == before


def test_a_taint_comes_and_goes_with_its_fault_and_keeps_its_time(api: FakeApi) -> None:
    board = gpus(2)
    publisher = Publisher(board, api)
    publisher.publish()
    board.set_faults([fault("a", xid=79, unhealthy=True)])
    publisher.publish()
    assert api.taints("gpu-0") == {("unhealthy", "xid-79", "NoExecute"), ("xid", "79", "NoSchedule")}
    assert not api.taints("gpu-1")
    times = {each["key"]: each["timeAdded"] for each in api.devices()["gpu-0"]["taints"]}

    board.set_faults([*board.faults, fault("b", throttle="thermal")])
    publisher.publish()
    again = {each["key"]: each["timeAdded"] for each in api.devices()["gpu-0"]["taints"]}
    assert {key: again[key] for key in times} == times
    assert "gpu.nvidia.com/throttled" in again

    board.set_faults([])
    publisher.publish()
    assert not api.taints("gpu-0")
    assert next(iter(api.slices().values()))["spec"]["pool"]["generation"] == 4


@pytest.mark.parametrize("meddle", ["delete", "change"])
def test_what_somebody_deletes_or_changes_is_put_right(api: FakeApi, meddle: str) -> None:
    publisher = Publisher(gpus(2), api)
    publisher.publish()
    (path,) = (path for path in api.objects if path.startswith(SLICES))
    if meddle == "delete":
        del api.objects[path]
    else:
        api.objects[path]["spec"]["devices"].pop()
    publisher.publish()
    assert len(api.devices() if api.slices() else ()) < 2, "it looks now and then only"
    publisher.publish(now=True)
    assert set(api.devices()) == {"gpu-0", "gpu-1"}
    assert api.objects[path]["spec"]["pool"]["generation"] == 2


def test_slices_of_an_earlier_configuration_go(api: FakeApi) -> None:
    Publisher(gpus(16, mig=[["1g.10gb"] * 7] * 16), api).publish()
    found = api.slices()
    assert [len(each["spec"]["devices"]) for each in found.values()] == [64, 48]
    assert {each["spec"]["pool"]["resourceSliceCount"] for each in found.values()} == {2}
    Publisher(gpus(2), api).publish()
    ((_, left),) = api.slices().items()
    assert left["spec"]["pool"] == {"name": NODE, "generation": 2, "resourceSliceCount": 1}


def test_a_server_that_does_not_answer_is_asked_again(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_RETRY_SECONDS", 0.0)
    publisher = Publisher(gpus(2), api)
    api.down = True
    publisher.publish()
    publisher.publish()
    publisher.withdraw()
    api.down = False
    publisher.publish()
    assert set(api.devices()) == {"gpu-0", "gpu-1"}


def test_withdrawn_is_gone_and_gone_already_is_fine(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(gpus(2), api)
    publisher.publish()

    def lost(path: str) -> None:
        del api.objects[path]
        raise ApiError(404, f"DELETE {path}", "NotFound")

    monkeypatch.setattr(api, "delete", lost)
    publisher.withdraw()
    assert not api.slices()


def test_the_device_classes_are_those_of_nvidias_driver() -> None:
    path = Path(__file__).parents[2] / "clusters" / "addons" / "gpu-dra.yaml"
    classes = {each["metadata"]["name"]: each for each in yaml.safe_load_all(path.read_text())}
    for name, kind in {"gpu.nvidia.com": "gpu", "mig.nvidia.com": "mig"}.items():
        ((selector),) = classes.pop(name)["spec"]["selectors"]
        wanted = f"device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == '{kind}'"
        assert selector["cel"]["expression"] == wanted
    assert not classes
