"""The DRA driver as a kubelet sees it: over its sockets, in the kubelet's own messages."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from gpu_dra import NODE, FakeApi, eventually, fault, gpus, result

from sandbox.gpu.emulator import claims, dra, rpc, slices
from sandbox.gpu.emulator.api import dra_pb2, health_pb2, registration_pb2
from sandbox.gpu.emulator.cdi import Cdi
from sandbox.gpu.emulator.devices import Board

PLUGIN = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/"
REGISTRATION = "/pluginregistration.Registration/"
TOLERATES = {"tolerations": [{"key": "gpu.nvidia.com/unhealthy", "operator": "Exists"}, {"operator": "Exists"}]}


class Node:
    """A node's folders, its driver while it runs, and what a kubelet asks of it."""

    def __init__(self, board: Board, root: Path) -> None:
        self.board, self.api = board, FakeApi()
        self.home, self.cdi, self.registry = (root / name for name in ("home", "cdi", "reg"))
        for folder in (self.home, self.cdi, self.registry):
            folder.mkdir()
        self.sockets = (self.home / "dra.sock", self.registry / "gpu.nvidia.com-reg.sock")

    @contextmanager
    def driver(self) -> Iterator[None]:
        stop = threading.Event()
        args = (self.board, Cdi(self.cdi, self.home), self.api, self.home, stop)
        thread = threading.Thread(target=dra.run, args=args, kwargs={"registry": self.registry})
        thread.start()
        try:
            eventually(lambda: all(each.exists() for each in self.sockets) and self.api.slices())
            yield
        finally:
            stop.set()
            with self.board.changed:
                self.board.changed.notify_all()
            thread.join(10)
            assert not thread.is_alive()

    def call(self, socket: Path, method: str, request: Any, reply: type) -> Any:
        with rpc.connect(socket) as channel:
            return rpc.stub(channel, method, type(request), reply)(request, timeout=5)

    def prepare(self, *names: str, uid: str = "") -> dict[str, Any]:
        request = dra_pb2.NodePrepareResourcesRequest(claims=[self.claim(name, uid) for name in names])
        answer = self.call(
            self.sockets[0], f"{PLUGIN}NodePrepareResources", request, dra_pb2.NodePrepareResourcesResponse
        )
        return dict(answer.claims)

    def unprepare(self, *names: str) -> dict[str, str]:
        request = dra_pb2.NodeUnprepareResourcesRequest(claims=[self.claim(name) for name in names])
        answer = self.call(
            self.sockets[0], f"{PLUGIN}NodeUnprepareResources", request, dra_pb2.NodeUnprepareResourcesResponse
        )
        return {uid: each.error for uid, each in answer.claims.items()}

    def error(self, name: str) -> str:
        answer = self.prepare(name)[f"uid-{name}"]
        assert not answer.devices
        return str(answer.error)

    @staticmethod
    def claim(name: str, uid: str = "") -> dra_pb2.Claim:
        return dra_pb2.Claim(namespace="work", name=name, uid=uid or f"uid-{name}")

    def specs(self) -> dict[str, list[str]]:
        """The environment of every claim's CDI device."""
        found = {}
        for path in self.cdi.glob("*.json"):
            spec = json.loads(path.read_text())
            for device in spec["devices"]:
                found[f"{spec['kind']}={device['name']}"] = device["containerEdits"]["env"]
        return found

    def remembered(self) -> set[str]:
        return set(json.loads((self.home / "claims.json").read_text())["claims"])


@pytest.fixture
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # a unix socket's path must be short
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def node(root: Path) -> Node:
    return Node(gpus(4), root)


@pytest.fixture
def driver(node: Node) -> Iterator[Node]:
    with node.driver():
        yield node


def test_the_kubelet_finds_what_it_needs_to_register_the_driver(driver: Node) -> None:
    socket = driver.sockets[1]
    info = driver.call(socket, f"{REGISTRATION}GetInfo", registration_pb2.InfoRequest(), registration_pb2.PluginInfo)
    assert (info.type, info.name, info.endpoint) == ("DRAPlugin", "gpu.nvidia.com", str(driver.sockets[0]))
    assert list(info.supported_versions) == ["v1.DRAPlugin", "v1.DRAResourceHealth"]
    for status in (
        registration_pb2.RegistrationStatus(plugin_registered=True),
        registration_pb2.RegistrationStatus(error="no"),
    ):
        driver.call(
            socket, f"{REGISTRATION}NotifyRegistrationStatus", status, registration_pb2.RegistrationStatusResponse
        )


def test_a_claim_gets_its_devices_and_tells_its_containers_which(driver: Node) -> None:
    driver.api.claim("pair", result("gpu-1"), result("gpu-3"), {**result("nic-0"), "driver": "nic.example.com"})
    answer = driver.prepare("pair")["uid-pair"]
    uuids = [driver.board.gpus[index].uuid for index in (1, 3)]
    own = "k8s.gpu.nvidia.com/claim=uid-pair-gpu"
    assert not answer.error
    assert [(list(each.request_names), each.pool_name, each.device_name) for each in answer.devices] == [
        (["gpu"], NODE, "gpu-1"),
        (["gpu"], NODE, "gpu-3"),
    ]
    assert [list(each.cdi_device_ids) for each in answer.devices] == [[f"nvidia.com/gpu={uuid}", own] for uuid in uuids]
    seen = ",".join(uuids)
    assert driver.specs() == {own: [f"NVIDIA_VISIBLE_DEVICES={seen}", f"NVIDIA_VISIBLE_DEVICES_uid_pair_gpu={seen}"]}


def test_an_instance_of_a_cut_gpu_is_claimed_by_its_own_name(root: Path) -> None:
    node = Node(gpus(1, mig=[["1g.10gb", "3g.40gb"]]), root)
    with node.driver():
        _, big = node.board.gpus[0].mig
        node.api.claim("big", result(big.name))
        (device,) = node.prepare("big")["uid-big"].devices
        assert device.cdi_device_ids[0] == f"nvidia.com/gpu={big.uuid}"
        node.api.claim("whole", result("gpu-0"))
        assert "no device of this node" in node.error("whole")


def test_containers_see_the_request_they_ask_for_and_all_of_a_claim_they_ask_for_whole(driver: Node) -> None:
    driver.api.claim("split", result("gpu-0", "left"), result("gpu-1", "right/first"))
    devices = driver.prepare("split")["uid-split"].devices
    first, second = (driver.board.gpus[index].uuid for index in (0, 1))

    def seen(request: str) -> str:
        """As kubelet and runtime put it together: every CDI device in turn, the last environment counts."""
        names = [
            name for each in devices if not request or request in each.request_names for name in each.cdi_device_ids
        ]
        *_, last = (name for name in names if name.startswith("k8s."))
        return driver.specs()[last][0].partition("=")[2]

    assert (seen("left"), seen("right"), seen("")) == (first, second, f"{first},{second}")
    driver.unprepare("split")
    assert not driver.specs()


def test_prepare_and_unprepare_can_be_repeated(driver: Node) -> None:
    driver.api.claim("one", result("gpu-0"))
    assert driver.prepare("one") == driver.prepare("one")
    assert driver.remembered() == {"uid-one"}
    assert driver.unprepare("one") == driver.unprepare("one") == {"uid-one": ""}
    assert driver.unprepare("never-seen") == {"uid-never-seen": ""}
    assert not driver.remembered()
    assert not driver.specs()


def test_the_claims_of_a_request_fail_one_by_one(driver: Node) -> None:
    driver.api.claim("good", result("gpu-0"))
    driver.api.claim("bad", result("gpu-9"))
    answers = driver.prepare("good", "bad", "missing")
    assert len(answers["uid-good"].devices) == 1
    assert "gpu-9 is no device of this node" in answers["uid-bad"].error
    assert "NotFound" in answers["uid-missing"].error
    assert driver.remembered() == {"uid-good"}


def test_a_claim_that_is_not_what_the_kubelet_thinks_is_refused(driver: Node) -> None:
    driver.api.claim("again", result("gpu-0"), uid="another")
    assert "another UID" in driver.error("again")
    driver.api.claim("waiting")
    assert "not allocated" in driver.error("waiting")
    driver.api.claim("elsewhere", {**result("gpu-0"), "pool": "worker-2"}, {**result("x"), "driver": "x.example.com"})
    assert f"no device of gpu.nvidia.com on {NODE}" in driver.error("elsewhere")


def test_a_device_has_one_claim_at_a_time_and_admins_may_look(driver: Node) -> None:
    driver.api.claim("holder", result("gpu-0"))
    driver.api.claim("thief", result("gpu-0"))
    driver.api.claim("admin", result("gpu-0", adminAccess=True))
    assert driver.prepare("admin")["uid-admin"].devices
    assert driver.prepare("holder")["uid-holder"].devices
    assert "in the hands of the claim work/holder" in driver.error("thief")
    assert driver.prepare("admin")["uid-admin"].devices
    driver.unprepare("holder")
    assert driver.prepare("thief")["uid-thief"].devices


def test_a_claim_that_was_allocated_anew_leaves_nothing_of_before(driver: Node) -> None:
    driver.api.claim("moved", result("gpu-0", "old"))
    driver.prepare("moved")
    driver.api.claim("moved", result("gpu-1", "new"))
    assert driver.prepare("moved")["uid-moved"].devices[0].device_name == "gpu-1"
    assert set(driver.specs()) == {"k8s.gpu.nvidia.com/claim=uid-moved-new"}


@pytest.mark.parametrize(
    ("what", "words"),
    [({"xid": 48, "unhealthy": True}, "unhealthy: XID 48"), ({"unhealthy": True, "lost": True}, "fallen off the bus")],
)
def test_a_device_that_is_ill_is_refused_until_it_is_well(driver: Node, what: dict[str, Any], words: str) -> None:
    driver.api.claim("one", result("gpu-0"))
    driver.board.set_faults([fault(**what)])
    assert words in driver.error("one")
    driver.board.set_faults([])
    assert driver.prepare("one")["uid-one"].devices


def test_whoever_accepts_an_ill_device_or_is_an_admin_gets_it_unless_it_is_lost(driver: Node) -> None:
    driver.api.claim("brave", result("gpu-0", **TOLERATES))
    driver.api.claim("half", result("gpu-0", tolerations=TOLERATES["tolerations"][:1]))
    driver.api.claim("admin", result("gpu-0", adminAccess=True))
    driver.board.set_faults([fault(xid=48, unhealthy=True)])
    assert "unhealthy" in driver.error("half"), "the taint of the XID is not tolerated"
    assert driver.prepare("brave")["uid-brave"].devices
    assert driver.prepare("admin")["uid-admin"].devices
    driver.board.set_faults([fault(xid=79, unhealthy=True, lost=True)])
    assert "fallen off" in driver.error("brave")
    assert "fallen off" in driver.error("admin")


def test_a_toleration_covers_what_it_names() -> None:
    mark = {"key": "gpu.nvidia.com/xid", "value": "48", "effect": "NoSchedule"}
    fits = [{"operator": "Exists"}, {"key": mark["key"], "value": "48"}, {"key": mark["key"], "operator": "Exists"}]
    fits.append({"operator": "Exists", "effect": "NoSchedule"})
    others = [{"key": mark["key"], "value": "79"}, {"key": "x", "operator": "Exists"}, {"operator": "Equal"}]
    others.append({"operator": "Exists", "effect": "NoExecute"})
    assert [claims._tolerated([mark], [each]) for each in fits] == [True] * 4
    assert [claims._tolerated([mark], [each]) for each in others] == [False] * 4
    assert claims._tolerated([mark | {"effect": "None"}], [])


def test_a_driver_that_was_restarted_remembers(node: Node) -> None:
    node.api.claim("kept", result("gpu-0"))
    node.api.claim("thief", result("gpu-0"))
    with node.driver():
        node.prepare("kept")
        before = node.specs()
        offered = node.api.slices()
    assert not node.api.slices(), "a driver that leaves takes its offer back"
    assert node.specs() == before, "and leaves its claims as they are"

    for path in node.cdi.glob("*.json"):  # a node that was restarted
        path.unlink()
    node.api.objects.update({f"/apis/resource.k8s.io/v1/resourceslices/{name}": each for name, each in offered.items()})
    with node.driver():  # as after a crash: its slices are still there
        assert node.api.slices() == offered
        assert node.specs() == before
        assert "work/kept" in node.error("thief")
        node.unprepare("kept")
        assert node.prepare("thief")["uid-thief"].devices


def test_a_checkpoint_that_cannot_be_read_is_begun_anew(node: Node) -> None:
    (node.home / "claims.json").write_text('{"claims": {"x": {}}}')
    node.api.claim("one", result("gpu-0"))
    with node.driver():
        assert node.prepare("one")["uid-one"].devices
    assert node.remembered() == {"uid-one"}


def test_an_api_server_that_is_away_is_an_error_of_the_claim(driver: Node) -> None:
    driver.api.down = True
    assert "no answer" in driver.error("one")
    driver.api.down = False


def test_a_folder_that_cannot_be_written_is_an_error_of_the_claim(
    driver: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    driver.api.claim("one", result("gpu-0"))
    monkeypatch.setattr(Cdi, "write_claim", full)
    assert "No space left" in driver.error("one")
    monkeypatch.setattr(Cdi, "remove_claim", full)
    assert "No space left" in driver.unprepare("one")["uid-one"]
    monkeypatch.undo()
    assert driver.unprepare("one") == {"uid-one": ""}
    assert not driver.remembered()


def test_taints_come_within_a_second_and_end_by_themselves(driver: Node) -> None:
    driver.board.set_faults([fault(seconds=0.6, xid=79, unhealthy=True)])
    eventually(lambda: driver.api.taints("gpu-0"), within=0.5)
    eventually(lambda: not driver.api.taints("gpu-0"), within=1.5)


def test_slices_that_a_starting_kubelet_deleted_come_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "CHECK_SECONDS", 0.0)
    with node.driver():
        node.api.objects = {path: each for path, each in node.api.objects.items() if "resourceslices" not in path}
        eventually(node.api.slices, within=2)


def test_a_plugin_that_is_down_is_gone_from_the_node_and_comes_back(driver: Node) -> None:
    driver.api.claim("one", result("gpu-0"))
    driver.board.set_faults([fault(gpu=None, plugin_down=True), fault("x", xid=79, unhealthy=True)])
    eventually(lambda: not any(each.exists() for each in driver.sockets))
    with pytest.raises(grpc.RpcError):
        driver.prepare("one")
    assert driver.api.slices(), "the dead delete nothing"
    assert not driver.api.taints("gpu-0"), "and tell nothing"
    driver.api.objects = {path: each for path, each in driver.api.objects.items() if "resourceslices" not in path}

    driver.board.set_faults([])
    eventually(lambda: all(each.exists() for each in driver.sockets))
    assert eventually(driver.api.slices)
    assert driver.prepare("one")["uid-one"].devices


def health(node: Node, reports: Callable[[Iterator[Any]], None]) -> None:
    method, request = "/v1.DRAResourceHealth/NodeWatchResources", health_pb2.NodeWatchResourcesRequest
    with rpc.connect(node.sockets[0]) as channel:
        stream = rpc.stream_stub(channel, method, request, health_pb2.NodeWatchResourcesResponse)(request(), timeout=10)
        reports(stream)
        stream.cancel()


def states(report: Any) -> dict[str, tuple[str, str]]:
    return {
        each.device.device_name: (health_pb2.HealthStatus.Name(each.health), each.message) for each in report.devices
    }


def test_the_kubelet_hears_how_its_devices_are(driver: Node) -> None:
    def reports(stream: Iterator[Any]) -> None:
        first = next(stream)
        assert states(first) == {f"gpu-{index}": ("HEALTHY", "") for index in range(4)}
        assert {(each.device.pool_name, each.health_check_timeout_seconds) for each in first.devices} == {(NODE, 30)}
        driver.board.set_faults([fault(xid=79, unhealthy=True, seconds=1.0), fault("t", gpu=1, throttle="thermal")])
        second = states(next(stream))
        assert second["gpu-0"] == ("UNHEALTHY", "emulated: XID 79")
        assert second["gpu-1"] == ("HEALTHY", "emulated: thermal throttle")
        assert states(next(stream))["gpu-0"] == ("HEALTHY", "")

    health(driver, reports)


def test_health_is_told_again_before_the_kubelet_forgets_it(driver: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dra, "HEARTBEAT_SECONDS", 0.1)
    health(driver, lambda stream: [next(stream) for _ in range(3)])


def test_a_stream_ends_with_the_driver(node: Node) -> None:
    with node.driver(), rpc.connect(node.sockets[0]) as channel:
        method, request = "/v1.DRAResourceHealth/NodeWatchResources", health_pb2.NodeWatchResourcesRequest
        stream = rpc.stream_stub(channel, method, request, health_pb2.NodeWatchResourcesResponse)(request(), timeout=10)
        next(stream)
        node.board.set_faults([fault(gpu=None, plugin_down=True)])
        with pytest.raises(grpc.RpcError):
            list(stream)


def test_a_node_without_devices_for_dra_has_no_driver(root: Path) -> None:
    node = Node(gpus(2, mode="device-plugin"), root)
    dra.run(node.board, Cdi(node.cdi, node.home), node.api, node.home, threading.Event(), registry=node.registry)
    assert not node.api.calls
