"""A cluster with emulated GPUs behind an API server on loopback.

What the emulator says is its own code; kubelet, container runtime and the nodes' kernels are a few lines each.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.cluster import Cluster, Node, nodes, signals
from sandbox.gpu.emulator import config, devices, faults, plugin, slices, snapshot
from sandbox.gpu.emulator.devices import Board, Holder
from sandbox.kube import Kube
from sandbox.spec.gpu import GpuGroup, node_document
from tests.unit.api_server import Answer, ApiServer, Asked, Json, serving, status

EMULATOR = "/api/v1/namespaces/gpu-emulator"
SLICES = "/apis/resource.k8s.io/v1"
QUICK = {"time-to-first-token": "50ms", "inter-token-latency": "10ms", "prefill-overhead": "0s"}


@dataclass
class Pod:
    name: str
    node: str
    gpus: list[int]
    labels: dict[str, str] = field(default_factory=lambda: {"app": "vllm-sim"})
    latencies: dict[str, str] | None = None  # of a server that can be told to be slow
    namespace: str = "inference"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    container: str = field(default_factory=lambda: uuid.uuid4().hex * 2)
    ended: str = ""
    restarts: int = 0
    ready: bool = True
    held: str = ""  # hang or slow
    code: int = 137  # with which its last container ended

    def as_json(self) -> Json:
        state = {"running": {}} if self.container else {"waiting": {"reason": "CreateContainerError"}}
        last = (
            {"terminated": {"containerID": f"containerd://{self.ended}", "exitCode": self.code}} if self.ended else {}
        )
        container = {
            "name": "server",
            "ready": self.ready,
            "restartCount": self.restarts,
            "containerID": f"containerd://{self.container or self.ended}",
            "state": state,
            "lastState": last,
        }
        ready = {"type": "Ready", "status": str(self.ready and bool(self.container))}
        return {
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": self.labels},
            "spec": {
                "nodeName": self.node,
                "containers": [{"name": "server", "ports": [{"name": "http", "containerPort": 8000}]}],
            },
            "status": {"phase": "Running", "conditions": [ready], "containerStatuses": [container]},
        }


@dataclass
class GpuCluster:
    """`delay` is how long the kubelet takes to say in the node's status what it was told."""

    server: ApiServer
    kube: Kube
    boards: dict[str, Board]
    documents: dict[str, str]
    pods: list[Pod] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)
    version: int = 1
    conflicts: int = 0
    delay: float = 0.0
    deaf: bool = False  # the kubelet hears nothing of its devices
    stuck: bool = False  # and never starts a container again
    quick_server: bool = False  # a simulator that takes no other latencies
    silent: set[str] = field(default_factory=set)  # nodes whose emulator does not answer
    told: dict[str, tuple[float, dict[str, int]]] = field(default_factory=dict)
    done: list[tuple[str, ...]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def own(self) -> Cluster:
        there = tuple(Node(name, "worker", "10.0.0.1", f"c-{name}") for name in self.boards)
        return Cluster("solo-gpu", "kind", Path("/k"), "c", "r", "u", "s", "i", 0.0, there)

    def hold(self, name: str, node: str, *gpus: int, **more: Any) -> Pod:
        pod = Pod(name, node, list(gpus), **more)
        self.pods.append(pod)
        return pod

    def pod(self, name: str) -> Pod:
        return next(each for each in self.pods if each.name == name)

    @property
    def faults(self) -> list[Json]:
        return [each for text in self.declared.values() for each in json.loads(text)]

    def answer(self, asked: Asked) -> Answer | None:
        with self.lock:
            self.now()
            if "watch" in asked.query:
                time.sleep(0.01)
                return Answer(lines=[])
            for rule in (self._configmaps, self._emulators, self._pods, self._nodes, self._slices):
                if found := rule(asked):
                    return found
        return None

    def now(self) -> None:
        """Let emulator, kubelet and containers come to where they would be by now."""
        for name, board in self.boards.items():
            with contextlib.suppress(ValueError):  # what cannot be read changes nothing
                board.set_faults(faults.parse(self.declared.get(f"{name}.json", "[]")))
            uuids = {gpu.index: gpu.uuids for gpu in board.gpus}
            board.holders = tuple(
                Holder(pod.namespace, pod.name, "server", tuple(one for index in pod.gpus for one in uuids[index]))
                for pod in self.pods
                if pod.node == name and pod.gpus
            )
        for pod in self.pods:
            lost = pod.node in self.boards and any(self.boards[pod.node].lost(index) for index in pod.gpus)
            if not pod.container and not lost and not self.stuck:
                pod.container = uuid.uuid4().hex * 2
                pod.restarts += 1

    def kill(self, _own: Cluster, node: str, ids: list[str]) -> list[str]:
        with self.lock:
            self.done.append(("kill", node))
            for pod in self.pods:
                if pod.container in ids:
                    pod.ended, pod.container = pod.container, ""
        return ids

    def running(self, _own: Cluster, node: str) -> set[str]:
        return {pod.container for pod in self.pods if pod.node == node and pod.container}

    def stop(self, _own: Cluster, node: str, ids: list[str], *, tag: str, seconds: float, running: float = 0.0) -> None:
        self.done.append(("stop", node, f"{seconds:g}", f"{running:g}"))
        for pod in self.pods:
            if pod.container in ids:
                pod.held, pod.ready = tag, bool(running)

    def release(self, _own: Cluster, node: str, tag: str = "") -> bool:
        those = [pod for pod in self.pods if pod.held and pod.node == node and tag in {"", pod.held}]
        for pod in those:
            pod.held, pod.ready = "", True
        return bool(those)

    def letters(self, _own: Cluster, _node: str, ids: list[str], *, looks: int = 1) -> dict[str, str]:
        held = {pod.container: pod.held for pod in self.pods}
        return {each: ("TS" if looks > 1 else "TT") * looks if held.get(each) else "SR" * looks for each in ids}

    def _configmaps(self, asked: Asked) -> Answer | None:
        if asked.path == f"{EMULATOR}/configmaps/config":
            return Answer(200, {"metadata": {"name": "config"}, "data": self.documents})
        if asked.path != f"{EMULATOR}/configmaps/faults":
            return None
        if asked.method == "PATCH":
            sent = asked.body["metadata"]["resourceVersion"]
            if self.conflicts or sent != str(self.version):
                self.conflicts = max(0, self.conflicts - 1)
                return status(409, "Conflict", "the object has been modified")
            for key, text in asked.body["data"].items():
                self.declared.pop(key, None)
                if text is not None:
                    self.declared[key] = text
            self.version += 1
        meta = {"name": "faults", "resourceVersion": str(self.version)}
        return Answer(200, {"metadata": meta, **({"data": dict(self.declared)} if self.declared else {})})

    def _emulators(self, asked: Asked) -> Answer | None:
        if asked.path == f"{EMULATOR}/pods":
            pods = [
                {
                    "metadata": {"name": f"gpu-emulator-{name}", "namespace": "gpu-emulator"},
                    "spec": {"nodeName": name},
                    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
                }
                for name in self.boards
            ]
            return listed(pods)
        for name, board in self.boards.items():
            proxy = f"{EMULATOR}/pods/gpu-emulator-{name}:9400/proxy"
            if asked.path.startswith(proxy) and name in self.silent:
                return status(503, "ServiceUnavailable", "no route to host")
            if asked.path == f"{proxy}/state":
                return Answer(200, json.loads(json.dumps(snapshot.state(board))))
            if asked.path == f"{proxy}/metrics":
                return Answer(200, metrics(board))
        return None

    def _pods(self, asked: Asked) -> Answer | None:
        root = "/api/v1/namespaces/inference/pods"
        if asked.path == root:
            wanted = dict(pair.split("=") for pair in asked.query.get("labelSelector", [""])[0].split(",") if pair)
            return listed([pod.as_json() for pod in self.pods if wanted.items() <= pod.labels.items()])
        for pod in self.pods:
            if asked.path == f"{root}/{pod.name}":
                if asked.method == "DELETE":
                    self.done.append(("delete", pod.name))
                    self.pods.remove(pod)
                    self.hold(f"{pod.name}-next", pod.node, *pod.gpus, latencies=pod.latencies)
                return Answer(200, pod.as_json())
            if asked.path == f"{root}/{pod.name}:8000/proxy/admin/config" and pod.latencies:
                clock = min([each.clock for gpu in pod.gpus for each in self.boards[pod.node].active(gpu)], default=1.0)
                clock = 1.0 if self.quick_server else clock
                return Answer(200, {name: slower(text, clock) for name, text in pod.latencies.items()})
        return None

    def _nodes(self, asked: Asked) -> Answer | None:
        found = {}
        for name, board in self.boards.items():
            offered = plugin.resources(board)
            capacity = {resource: len(those) for resource, those in offered.items()}
            allocatable = {
                resource: 0 if board.plugin_down() else sum(not board.unhealthy(each.gpu) for each in those)
                for resource, those in offered.items()
            }
            since, before = self.told.get(name, (0.0, capacity))
            if before != allocatable and not since:
                self.told[name] = (time.monotonic(), before)
            if self.deaf or (before != allocatable and time.monotonic() - self.told[name][0] < self.delay):
                allocatable = before
            else:
                self.told[name] = (0.0, allocatable)
            shown = {
                key: {each: str(amount) for each, amount in those.items()}
                for key, those in (("capacity", capacity), ("allocatable", allocatable))
            }
            found[name] = {"metadata": {"name": name}, "status": shown}
        if asked.path == "/api/v1/nodes":
            field_ = asked.query.get("fieldSelector", [""])[0].removeprefix("metadata.name=")
            return listed([each for name, each in found.items() if field_ in {"", name}])
        name = asked.path.removeprefix("/api/v1/nodes/")
        return Answer(200, found[name]) if name in found else None

    def _slices(self, asked: Asked) -> Answer | None:
        if asked.path == SLICES:
            kind = {"name": "resourceslices", "kind": "ResourceSlice", "namespaced": False}
            return Answer(200, {"resources": [kind]})
        if asked.path != f"{SLICES}/resourceslices":
            return None
        node = asked.query["fieldSelector"][0].partition(",")[0].removeprefix("spec.nodeName=")
        board = self.boards[node]
        there = [] if board.plugin_down() else slices.devices(board)
        return listed([{"metadata": {"name": node}, "spec": {"devices": there}}] if there else [])


def listed(items: list[Json]) -> Answer:
    return Answer(200, {"items": items, "metadata": {"resourceVersion": "1"}})


def metrics(board: Board) -> str:
    lines = []
    for gpu in board.gpus:
        mark = f'{{gpu="{gpu.index}",UUID="{gpu.uuid}",modelName="emulated"}}'
        lines.append(f"DCGM_FI_DEV_XID_ERRORS{mark} {snapshot.xid(board, gpu)}")
        lines.append(f"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL{mark} {sum(each.sbe for each in board.active(gpu.index))}")
    return "\n".join(lines) + "\n"


def slower(text: str, clock: float) -> str:
    number = float(text.rstrip("ms"))
    return f"{number / clock:g}{text.lstrip('0123456789.')}"


@contextmanager
def gpu_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, groups: dict[str, GpuGroup]) -> Iterator[GpuCluster]:
    """Such a cluster; what the harness does below Kubernetes is done to it instead."""
    documents = {f"{name}.json": json.dumps(node_document(group, name)) for name, group in groups.items()}
    boards = {name: devices.board(config.parse(json.loads(documents[f"{name}.json"]))) for name in groups}
    with serving(folder) as (server, kube):
        made = GpuCluster(server, kube, boards, documents)
        server.rules.append(made.answer)
        doings: dict[tuple[Any, str], Callable[..., Any]] = {
            (nodes, "kill_containers"): made.kill,
            (nodes, "running_containers"): made.running,
            (signals, "hold"): made.stop,
            (signals, "release"): made.release,
            (signals, "states"): made.letters,
        }
        for (module, name), doing in doings.items():
            monkeypatch.setattr(module, name, doing)
        yield made
