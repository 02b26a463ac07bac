from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_dra import gpus
from gpu_telemetry import Kubelet

from sandbox.gpu.emulator.cdi import Cdi
from sandbox.gpu.emulator.claims import Claims
from sandbox.gpu.emulator.devices import Board, Holder
from sandbox.gpu.emulator.holders import Holders


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    with Kubelet(tmp_path / "kubelet.sock") as answering:
        yield answering


def ask(board: Board, kubelet: Kubelet, home: Path) -> tuple[Holder, ...]:
    holders = Holders(board, home, socket=kubelet.socket)
    try:
        return holders.read()
    finally:
        holders.close()


def held(pod: str, *uuids: str) -> Holder:
    return Holder("default", pod, "server", uuids)


def test_the_device_plugins_devices_are_found(kubelet: Kubelet, tmp_path: Path) -> None:
    board = gpus(4, mode="device-plugin")
    first, second, third, _ = (gpu.uuid for gpu in board.gpus)
    kubelet.holds("two", second, first)
    kubelet.holds("one", third, resource="nvidia.com/gpu.shared")
    kubelet.holds("network", "GPU-not-ours")
    kubelet.holds("other", first, resource="example.com/gpu")
    assert ask(board, kubelet, tmp_path) == (held("two", first, second), held("one", third))


def test_replicas_of_a_shared_device_are_the_device(kubelet: Kubelet, tmp_path: Path) -> None:
    board = gpus(2, mode="device-plugin")
    uuid = board.gpus[0].uuid
    kubelet.holds("a", f"{uuid}::0")
    kubelet.holds("b", f"{uuid}::1", f"{uuid}::3")
    assert ask(board, kubelet, tmp_path) == (held("a", uuid), held("b", uuid))


def test_instances_are_held_and_the_gpu_around_them_is_not(kubelet: Kubelet, tmp_path: Path) -> None:
    board = gpus(1, mode="device-plugin", mig=[["1g.10gb", "3g.40gb"]])
    small, large = board.gpus[0].mig
    kubelet.holds("small", small.uuid, resource="nvidia.com/mig-1g.10gb")
    kubelet.holds("whole", board.gpus[0].uuid)
    kubelet.claims("large", "claim", large.name)
    assert ask(board, kubelet, tmp_path) == (held("small", small.uuid), held("large", large.uuid))


def test_claimed_devices_are_found_by_their_name_in_the_slice(kubelet: Kubelet, tmp_path: Path) -> None:
    board = gpus(3)
    kubelet.claims("server", "claim", "gpu-2", "gpu-0", "gpu-0")
    kubelet.claims("network", "nic", "gpu-1", driver="nic.example.com")
    kubelet.claims("gone", "claim", "gpu-9")
    assert ask(board, kubelet, tmp_path) == (held("server", board.gpus[0].uuid, board.gpus[2].uuid),)


def test_who_only_looks_on_holds_nothing(kubelet: Kubelet, tmp_path: Path) -> None:
    board = gpus(2)
    kubelet.claims("server", "claim", "gpu-0")
    kubelet.claims("monitor", "look", "gpu-0", "gpu-1")
    holders = Holders(board, tmp_path, socket=kubelet.socket)
    assert len(holders.read()) == 2
    devices = [{"request": "all", "name": name, "uuid": "", "admin": True} for name in ("gpu-0", "gpu-1")]
    devices.append({"request": "own", "name": "gpu-1", "uuid": "", "admin": False})
    claims = {"claims": {"uid": {"namespace": "default", "name": "look", "devices": devices}}}
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    assert holders.read() == (held("server", board.gpus[0].uuid), held("monitor", board.gpus[1].uuid))
    (tmp_path / "claims.json").write_text("{")  # being written by an older driver: what was known holds
    assert len(holders.read()) == 2
    holders.close()


def test_the_claims_file_is_the_dra_drivers(tmp_path: Path, kubelet: Kubelet) -> None:
    board = gpus(1)
    allocation = {
        "driver": "gpu.nvidia.com",
        "pool": "worker-1",
        "device": "gpu-0",
        "request": "r",
        "adminAccess": True,
    }
    claim = {"metadata": {"uid": "u"}, "status": {"allocation": {"devices": {"results": [allocation]}}}}

    class Api:
        def get(self, _path: str) -> dict[str, object]:
            return claim

    (tmp_path / "cdi").mkdir()
    claims = Claims(board, Cdi(tmp_path / "cdi", tmp_path), Api(), tmp_path / "claims.json")  # type: ignore[arg-type]
    claims.prepare("u", "default", "look")
    kubelet.claims("monitor", "look", "gpu-0")
    assert ask(board, kubelet, tmp_path) == ()


def test_a_kubelet_that_is_away_changes_nothing_and_is_heard_again_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = gpus(1)
    holders = Holders(board, tmp_path, socket=tmp_path / "kubelet.sock")
    assert holders.read() == holders.read() == ()
    assert caplog.text.count("the kubelet does not say") == 1
    with Kubelet(tmp_path / "kubelet.sock") as kubelet:
        kubelet.claims("server", "claim", "gpu-0")
        assert holders.read() == (held("server", board.gpus[0].uuid),)
    assert holders.read() == (held("server", board.gpus[0].uuid),)
    with Kubelet(tmp_path / "kubelet.sock"):
        assert holders.read() == ()
    holders.close()
