"""What a node's emulator reads and writes: faults, CDI specs, labels; and all its parts together."""

from __future__ import annotations

import importlib
import json
import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api_server import Answer, Asked, serving, status
from kubelet import PROFILE, Kubelet, board, kubelet

from sandbox.gpu.emulator import apiserver, cdi, config, devices, faults, labels
from sandbox.gpu.emulator.apiserver import ApiError, ApiServer
from sandbox.gpu.emulator.devices import Board, Fault
from sandbox.spec.gpu import GpuGroup, node_document
from sandbox.spec.gpu_profile import profile_names

# the module's name is that of the program; `import` would give the one that runs the tests
emulator = importlib.import_module("sandbox.gpu.emulator.__main__")
NODE = "/api/v1/nodes/node-1"
MAPS = "/api/v1/namespaces/gpu-emulator/configmaps"
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")  # of a CDI device
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apiserver, "_SHORTEST", 0.1)
        patch.setattr(labels, "_SHORTEST", 0.1)
        yield


@dataclass
class Cluster:
    """One node and one ConfigMap, as the API server keeps them."""

    labels: dict[str, str] = field(default_factory=lambda: {"kubernetes.io/hostname": "node-1"})
    faults: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # type of the event, data
    down: bool = False

    def declare(self, text: str | None) -> None:
        if text is None:
            self.faults.append(("DELETED", {}))
        else:
            self.faults.append(("MODIFIED", {"node-1.json": text, "node-2.json": "[{]"}))

    def answer(self, asked: Asked) -> Answer | None:
        if self.down:
            return status(503, "Unavailable", "not now")
        if asked.path == NODE:
            if asked.method == "PATCH":
                assert asked.headers["content-type"] == "application/merge-patch+json"
                change = asked.body["metadata"]["labels"]
                self.labels |= change
                self.labels = {key: value for key, value in self.labels.items() if value is not None}
            return Answer(200, {"metadata": {"name": "node-1", "uid": "u-1", "labels": self.labels}})
        if asked.path == MAPS:
            assert asked.query["fieldSelector"] == ["metadata.name=faults"]
            events = [self._object(number) for number in range(len(self.faults))]
            if "watch" in asked.query:
                since = int(asked.query["resourceVersion"][0])
                lines = [{"type": self.faults[number][0], "object": events[number]} for number in range(len(events))]
                return Answer(200, lines=lines[since:])
            there = events[-1:] if events and self.faults[-1][0] != "DELETED" else []
            return Answer(200, {"metadata": {"resourceVersion": str(len(events))}, "items": there})
        return None

    def _object(self, number: int) -> dict[str, Any]:
        meta = {"name": "faults", "resourceVersion": str(number + 1)}
        return {"metadata": meta, "data": self.faults[number][1]}


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Cluster, ApiServer]]:
    found = Cluster()
    with serving(folder) as (server, kube):
        server.rules.append(found.answer)
        client = ApiServer(kube.server, timeout=5)
        try:
            yield found, client
        finally:
            client.close()


@contextmanager
def going(node: Board, stop: threading.Event, work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        with node.changed:
            node.changed.notify_all()
        thread.join(5)
        assert not thread.is_alive()


def until(look: Callable[[], object], within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


FAULT = {"id": "f-1", "until": 4e9, "gpu": 1, "xid": 79, "unhealthy": True, "lost": True}


def test_a_document_of_faults_becomes_faults() -> None:
    text = json.dumps([FAULT, {"id": "f-2", "until": 2, "plugin_down": True}, {"id": "f-3", "until": 3.5, "gpu": None}])
    assert faults.parse(text) == [
        Fault("f-1", 4e9, gpu=1, xid=79, unhealthy=True, lost=True),
        Fault("f-2", 2, plugin_down=True),
        Fault("f-3", 3.5),
    ]
    assert faults.parse("[]") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[{]", "Expecting property name"),
        ("{}", "a list of faults is needed, not dict"),
        ("[1]", "a fault is a mapping, not int"),
        ('[{"id": "f"}]', "a fault needs until"),
        ('[{"id": "f", "until": 1, "gpus": 1, "colour": 1}]', "a fault has no colour, gpus"),
        ('[{"id": "f", "until": "1"}]', "until: '1' is no float"),
        ('[{"id": "f", "until": true}]', "until: True is no float"),
        ('[{"id": "f", "until": 1, "gpu": 1.5}]', "gpu: 1.5 is no int | None"),
        ('[{"id": "f", "until": 1, "gpu": true}]', "gpu: True is no int | None"),
        ('[{"id": "f", "until": 1, "lost": 1}]', "lost: 1 is no bool"),
        ('[{"id": null, "until": 1}]', "id: None is no str"),
    ],
)
def test_a_broken_document_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        faults.parse(text)


def test_the_board_has_what_is_declared_for_its_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node, stop = board(2), threading.Event()
    with cluster(tmp_path) as (there, api), caplog.at_level(logging.INFO):
        there.declare(json.dumps([FAULT]))
        work = going(node, stop, lambda: faults.watch(api, node, "gpu-emulator", stop))
        with work:
            until(lambda: node.lost(1))
            there.declare("[{]")
            until(lambda: "cannot be read, those before them stay: Expecting property name" in caplog.text)
            assert node.lost(1)
            there.declare(json.dumps([FAULT | {"lost": False}]))
            until(lambda: not node.lost(1))
            assert node.unhealthy(1) == "XID 79"
            there.down = True
            until(lambda: "503 Unavailable not now; again in 0.1 s" in caplog.text)
            assert node.unhealthy(1)
            there.declare(None)
            there.down = False
            until(lambda: not node.faults)
        assert "faults: f-1" in caplog.text
        assert "faults: none" in caplog.text


def test_how_long_nothing_can_change_is_until_the_next_end() -> None:
    node = board(1)
    now = time.time()
    assert faults.next_end(node, most=7) == 7
    node.set_faults([Fault("a", now - 1), Fault("b", now + 5), Fault("c", now + 3)])
    assert 2 < faults.next_end(node, most=7) <= 3
    assert faults.next_end(node, most=1) == 1


def spec(folder: Path, name: str = "nvidia.com-gpu") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def names(folder: Path) -> list[str]:
    path = folder / "nvidia.com-gpu.json"
    return [each["name"] for each in json.loads(path.read_text())["devices"]] if path.exists() else []


def null(path: str) -> dict[str, Any]:
    return {"path": path, "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3} | {
        "fileMode": 0o666,
        "permissions": "rw",
    }


def test_a_device_brings_its_node_the_common_ones_and_nvidia_smi(tmp_path: Path) -> None:
    node = board(2)
    assert cdi.Cdi(tmp_path, Path("/home")).write_devices(node) == [gpu.uuid for gpu in node.gpus]
    mounted = {"options": ["ro", "nosuid", "nodev", "bind"]}
    assert spec(tmp_path) == {
        "cdiVersion": "0.6.0",
        "kind": "nvidia.com/gpu",
        "annotations": {"ai-k8s-sandbox.emulated": "true"},
        "devices": [
            {"name": gpu.uuid, "containerEdits": {"deviceNodes": [null(f"/dev/nvidia{gpu.index}")]}}
            for gpu in node.gpus
        ],
        "containerEdits": {
            "deviceNodes": [null("/dev/nvidiactl"), null("/dev/nvidia-uvm")],
            "mounts": [
                {"hostPath": "/home/bin/nvidia-smi", "containerPath": "/usr/bin/nvidia-smi", **mounted},
                {"hostPath": "/home/state", "containerPath": "/run/nvidia-emulated", **mounted},
            ],
        },
    }
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia.com-gpu.json"]
    assert (tmp_path / "nvidia.com-gpu.json").stat().st_mode & 0o777 == 0o644


def test_instances_are_devices_of_their_gpu(tmp_path: Path) -> None:
    node = board(2, mode="both", mig_strategy="mixed", mig=[[], ["1g.10gb", "3g.40gb"]])
    cdi.Cdi(tmp_path, tmp_path).write_devices(node)
    paths = {
        each["name"]: [one["path"] for one in each["containerEdits"]["deviceNodes"]]
        for each in spec(tmp_path)["devices"]
    }
    first, second = node.gpus
    assert paths == {first.uuid: ["/dev/nvidia0"], **{uuid: ["/dev/nvidia1"] for uuid in second.uuids}}
    assert all(NAME.fullmatch(name) for name in paths)


def test_a_claim_has_a_spec_of_its_own(tmp_path: Path) -> None:
    specs = cdi.Cdi(tmp_path, tmp_path)
    assert specs.write_claim("uid-1", ["GPU-a", "GPU-b"]) == "k8s.gpu.nvidia.com/claim=uid-1"
    assert specs.device_name("GPU-a") == "nvidia.com/gpu=GPU-a"
    found = spec(tmp_path, "k8s.gpu.nvidia.com-claim_uid-1")
    assert found["kind"] == "k8s.gpu.nvidia.com/claim"
    env = ["NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b", "NVIDIA_VISIBLE_DEVICES_uid_1=GPU-a,GPU-b"]
    assert found["devices"] == [{"name": "uid-1", "containerEdits": {"env": env}}]
    specs.remove_claim("uid-1")
    specs.remove_claim("uid-1")
    assert not list(tmp_path.iterdir())


def test_a_lost_gpu_is_in_no_spec_until_it_is_back(tmp_path: Path) -> None:
    node, stop = board(2), threading.Event()
    specs = cdi.Cdi(tmp_path, tmp_path)
    specs.write_claim("uid-1", ["GPU-a"])
    both = [gpu.uuid for gpu in node.gpus]
    with going(node, stop, lambda: specs.follow(node, stop)):
        until(lambda: names(tmp_path) == both)
        node.set_faults([Fault("f", time.time() + 60, gpu=0, lost=True)])
        until(lambda: names(tmp_path) == both[1:])
        node.set_faults([Fault("f", time.time() + 0.4, gpu=each, lost=True) for each in (0, 1)])
        until(lambda: not (tmp_path / "nvidia.com-gpu.json").exists())  # a spec without devices is an error
        until(lambda: names(tmp_path) == both)
    assert [path.name for path in tmp_path.iterdir()] == ["k8s.gpu.nvidia.com-claim_uid-1.json"]


WHOLE = {
    "ai-k8s-sandbox/emulated-gpu": "true",
    "nvidia.com/cuda.driver-version.full": "570.124.06",
    "nvidia.com/cuda.driver-version.major": "570",
    "nvidia.com/cuda.driver-version.minor": "124",
    "nvidia.com/cuda.driver-version.revision": "06",
    "nvidia.com/cuda.driver.major": "570",
    "nvidia.com/cuda.driver.minor": "124",
    "nvidia.com/cuda.driver.rev": "06",
    "nvidia.com/cuda.runtime-version.full": "12.8",
    "nvidia.com/cuda.runtime-version.major": "12",
    "nvidia.com/cuda.runtime-version.minor": "8",
    "nvidia.com/cuda.runtime.major": "12",
    "nvidia.com/cuda.runtime.minor": "8",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
    "nvidia.com/gpu.count": "4",
    "nvidia.com/gpu.family": "hopper",
    "nvidia.com/gpu.machine": "emulated",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.mode": "compute",
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.replicas": "1",
    "nvidia.com/gpu.sharing-strategy": "none",
    "nvidia.com/mig.capable": "true",
    "nvidia.com/mps.capable": "false",
}


def changes(node: Board) -> dict[str, str]:
    """The labels that differ from those of four whole GPUs."""
    found = labels.labels(node)
    assert all(LABEL.fullmatch(value) for value in found.values())
    assert all(re.fullmatch(r"[\w.-]{1,63}", key.partition("/")[2]) for key in found)
    return {key: value for key, value in found.items() if WHOLE.get(key) != value}


def test_whole_gpus_are_labelled_as_feature_discovery_does() -> None:
    assert labels.labels(board(4)) == WHOLE
    assert changes(board(4, mode="dra")) == {}
    ada = {"architecture": "Ada Lovelace", "compute_capability": "8.9", "mig": {}, "product": "NVIDIA L4 (x)"}
    assert changes(board(4, profile={**ada, "driver_version": "550.54"})) == {
        "nvidia.com/cuda.driver-version.full": "550.54",
        "nvidia.com/cuda.driver-version.major": "550",
        "nvidia.com/cuda.driver-version.minor": "54",
        "nvidia.com/cuda.driver-version.revision": "",
        "nvidia.com/cuda.driver.major": "550",
        "nvidia.com/cuda.driver.minor": "54",
        "nvidia.com/cuda.driver.rev": "",
        "nvidia.com/gpu.compute.major": "8",
        "nvidia.com/gpu.compute.minor": "9",
        "nvidia.com/gpu.family": "ada-lovelace",
        "nvidia.com/gpu.product": "NVIDIA-L4-x",
        "nvidia.com/mig.capable": "false",
    }


def test_shared_gpus_say_so_in_their_product_or_in_their_resource() -> None:
    shared = {"nvidia.com/gpu.replicas": "3", "nvidia.com/gpu.sharing-strategy": "time-slicing"}
    sharing = {"replicas": {"nvidia.com/gpu": 3}}
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-SHARED"}
    assert changes(board(4, sharing=sharing)) == shared | product
    assert changes(board(4, sharing=sharing | {"rename_by_default": True})) == shared


def test_instances_have_labels_of_their_own_or_take_the_gpus() -> None:
    cut = [["1g.10gb", "1g.10gb", "3g.40gb"]] * 4
    unoffered = {"nvidia.com/mig.strategy": "mixed", "nvidia.com/gpu.replicas": "0"}
    small = {
        "product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb",
        "count": "8",
        "replicas": "1",
        "sharing-strategy": "none",
        "memory": "9984",
        "multiprocessors": "16",
        "slices.gi": "1",
        "slices.ci": "1",
    }
    large = small | {
        "product": "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb",
        "count": "4",
        "memory": "40448",
        "multiprocessors": "60",
        "slices.gi": "3",
        "slices.ci": "3",
    }
    assert changes(board(4, mig_strategy="mixed", mig=cut)) == {
        **unoffered,
        **{f"nvidia.com/mig-1g.10gb.{key}": value for key, value in small.items()},
        **{f"nvidia.com/mig-3g.40gb.{key}": value for key, value in large.items()},
    }
    single = {f"nvidia.com/gpu.{key}": value for key, value in small.items()}
    assert changes(board(4, mig_strategy="single", mig=[["1g.10gb"] * 2] * 4)) == {
        "nvidia.com/mig.strategy": "single",
        **{key: value for key, value in single.items() if WHOLE.get(key) != value},
    }
    sharing = {"replicas": {"nvidia.com/mig-1g.10gb.me": 2}}
    mixed = labels.labels(board(4, mig_strategy="mixed", mig=[["1g.10gb+me"]], sharing=sharing))
    assert mixed["nvidia.com/mig-1g.10gb.me.product"] == "NVIDIA-H100-80GB-HBM3-MIG-1g.10gbme-SHARED"
    assert mixed["nvidia.com/gpu.replicas"] == "1"


@pytest.mark.parametrize("name", profile_names())
def test_every_model_has_labels_that_kubernetes_takes(name: str) -> None:
    model = GpuGroup(profile=name, count=2)
    found = labels.labels(devices.board(config.parse(node_document(model, "node-1"))))
    assert set(found) == set(WHOLE)
    assert all(LABEL.fullmatch(value) for value in found.values()), found
    assert found["nvidia.com/gpu.product"].startswith(("NVIDIA-", "Tesla-"))
    assert found["nvidia.com/gpu.family"] in {"turing", "ampere", "ada-lovelace", "hopper", "blackwell"}


def test_labels_are_given_once_and_taken_away_again(tmp_path: Path) -> None:
    mine = {
        "nvidia.com/mig.config": "all-1g.10gb",
        "nvidia.com/gpu.deploy.driver": "true",
        "ai-k8s-sandbox/gpu": "true",
    }
    with cluster(tmp_path) as (there, api):
        there.labels = {**mine, "nvidia.com/mig-1g.10gb.count": "7", "nvidia.com/mig-1g.10gb.slices.gi": "1"}
        node = board(4)
        assert set(labels.apply(api, node)) == {
            *WHOLE,
            "nvidia.com/mig-1g.10gb.count",
            "nvidia.com/mig-1g.10gb.slices.gi",
        }
        stamp = there.labels.pop("nvidia.com/gfd.timestamp")
        assert abs(int(stamp) - time.time()) < 60
        assert there.labels == {**mine, **WHOLE}
        assert labels.apply(api, node) == {}
        assert "nvidia.com/gfd.timestamp" not in there.labels, "nothing was sent"
        labels.remove(api, node.config)
        assert there.labels == mine


def test_labels_wait_for_the_api_server_and_are_gone_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node, stop = board(4), threading.Event()
    with cluster(tmp_path) as (there, api), caplog.at_level(logging.INFO):
        there.down = True
        with going(node, stop, lambda: labels.keep(api, node, stop)):
            until(lambda: "not now; again in 0.1 s" in caplog.text)
            there.down = False
            until(lambda: "nvidia.com/gpu.count" in there.labels)
        assert there.labels == {"kubernetes.io/hostname": "node-1"}
        there.down = True
        with pytest.raises(ApiError):
            labels.remove(api, node.config)


@dataclass
class Emulator:
    """The whole of it, beside a kubelet and an API server; what others own is stood in for."""

    cluster: Cluster
    kubelet: Kubelet
    places: Any
    stop: threading.Event
    calls: list[str] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    fail: threading.Event = field(default_factory=threading.Event)


@contextmanager
def emulating(folder: Path, monkeypatch: pytest.MonkeyPatch, **document: Any) -> Iterator[Emulator]:
    with cluster(folder) as (there, api), kubelet() as found:
        places = emulator.Places(
            config=folder / "config",
            home=found.folder / "home",
            plugins=found.plugin_folder,
            cdi=found.folder / "cdi",
            nvidia_smi=folder / "nvidia-smi",
        )
        places.config.mkdir()
        whole = {"node": "node-1", "mode": "device-plugin", "count": 2, "profile": PROFILE, **document}
        (places.config / "node-1.json").write_text(json.dumps(whole))
        places.nvidia_smi.write_text("#!/bin/true")
        running = Emulator(there, found, places, threading.Event())

        def telemetry(_board: Board, _api: ApiServer, home: Path, stop: threading.Event) -> None:
            running.calls.append(f"telemetry {home.name}")
            while not stop.wait(0.05):
                if running.fail.is_set():
                    raise ZeroDivisionError

        def dra(_board: Board, _cdi: cdi.Cdi, _api: ApiServer, home: Path, stop: threading.Event) -> None:
            running.calls.append(f"dra {home.name}")
            stop.wait()

        def exporter(_board: Board, port: int) -> SimpleNamespace:
            running.calls.append(f"exporter {port}")
            return SimpleNamespace(shutdown=lambda: running.calls.append("shut down"), server_close=lambda: None)

        fakes = {"telemetry": {"run": telemetry}, "dra": {"run": dra}, "exporter": {"serve": exporter}}
        for name, fake in fakes.items():
            module = SimpleNamespace(**fake)
            monkeypatch.setitem(sys.modules, f"sandbox.gpu.emulator.{name}", module)
            monkeypatch.setattr(sys.modules["sandbox.gpu.emulator"], name, module, raising=False)
        work = (places, "node-1", "gpu-emulator", api, running.stop)
        thread = threading.Thread(target=lambda: running.status.append(emulator.run(*work)))
        thread.start()
        try:
            yield running
        finally:
            running.stop.set()
            thread.join(6)
            assert not thread.is_alive()


def test_everything_comes_up_follows_a_fault_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulating(tmp_path, monkeypatch, mode="both", count=3) as running:
        home, found = running.places.home, running.kubelet
        found.registered("nvidia.com/gpu", 2)
        until(lambda: running.cluster.labels.get("nvidia.com/gpu.count") == "3")
        assert len(names(running.places.cdi)) == 3
        assert (home / "bin" / "nvidia-smi").stat().st_mode & 0o777 == 0o755
        assert {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()} == dict.fromkeys(
            ["bin", "state", "undo"], 0o755
        )
        assert sorted(running.calls) == ["dra home", "exporter 9400", "telemetry home"]
        running.cluster.declare(json.dumps([FAULT | {"until": time.time() + 60}]))
        found.wait(lambda: "Unhealthy" in found.plugins["nvidia.com/gpu"].health.values())
        until(lambda: len(names(running.places.cdi)) == 2)
        began = time.monotonic()
        running.stop.set()
        until(lambda: running.status == [0])
        assert time.monotonic() - began < 5
        assert running.cluster.labels == {"kubernetes.io/hostname": "node-1"}
        assert running.calls[-1] == "shut down"
        assert not list(running.places.cdi.iterdir())
        assert not list(found.plugin_folder.glob("nvidia*"))


def test_it_ends_with_an_error_when_one_of_its_parts_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), emulating(tmp_path, monkeypatch) as running:
        running.kubelet.registered("nvidia.com/gpu", 2)
        running.fail.set()
        until(lambda: running.status == [1])
        assert sorted(running.calls) == ["exporter 9400", "shut down", "telemetry home"]
    assert "ZeroDivisionError" in caplog.text
    assert "stopped; telemetry: it has failed" in caplog.text


def test_nvidia_smi_is_replaced_only_by_another_one(tmp_path: Path) -> None:
    source, home = tmp_path / "nvidia-smi", tmp_path / "home"
    places = emulator.Places(home=home, cdi=tmp_path / "cdi", nvidia_smi=source)
    source.write_text("1")
    seen = []
    for text in ("1", "1", "2"):
        source.write_text(text)
        emulator.prepare(places)
        seen.append((home / "bin" / "nvidia-smi").stat().st_ino)
        assert (home / "bin" / "nvidia-smi").read_text() == text
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize(("outcome", "exits"), [(0, 0), (1, 1), (OSError("the port is taken"), 1)])
def test_the_program_ends_with_its_status_whatever_still_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, outcome: int | Exception, exits: int
) -> None:
    handlers: dict[int, Any] = {}
    seen: list[Any] = []

    def run(places: Any, node: str, namespace: str, api: str, stop: threading.Event) -> int:
        seen.extend([places.port, node, namespace, api])
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        assert stop.is_set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setenv("NODE_NAME", "node-1")
    monkeypatch.setenv("POD_NAMESPACE", "gpu-emulator")
    monkeypatch.setattr(emulator, "run", run)
    monkeypatch.setattr(emulator.ApiServer, "in_cluster", lambda: "api")
    monkeypatch.setattr(emulator.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(emulator.os, "_exit", seen.append)
    emulator.main()
    assert seen == [9400, "node-1", "gpu-emulator", "api", exits]
    assert set(handlers) == {signal.SIGTERM, signal.SIGINT}
    assert ("the port is taken" in caplog.text) == isinstance(outcome, Exception)
