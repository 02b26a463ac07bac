"""A board of emulated GPUs and the part of an API server that a DRA driver talks to."""

from __future__ import annotations

import copy
import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from sandbox.gpu.emulator.apiserver import CONFLICT, NOT_FOUND, ApiError
from sandbox.gpu.emulator.config import Config, MigProfile, Profile
from sandbox.gpu.emulator.devices import Board, Fault, board

Object = dict[str, Any]
NODE = "worker-1"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
PROFILE = Profile(
    name="h100",
    product="NVIDIA H100 80GB HBM3",
    brand="NVIDIA",
    architecture="Hopper",
    compute_capability="9.0",
    driver_version="580.105.08",
    cuda_version="13.0",
    pci_device_id="0x233010DE",
    memory_mib=81559,
    memory_bandwidth_gbs=3350,
    hbm=True,
    idle_power=69,
    power_limit=700,
    idle_sm_clock=345,
    max_sm_clock=1980,
    memory_clock=2619,
    idle_temperature=29,
    load_temperature=65,
    slowdown_temperature=89,
    nvlinks=18,
    mig={"1g.10gb": MigProfile(19, 1, 1, 9984, 16, 7), "3g.40gb": MigProfile(9, 3, 4, 40448, 60, 2)},
)


def gpus(count: int = 2, mode: str = "dra", mig: list[list[str]] | None = None) -> Board:
    strategy = "mixed" if mig else "none"
    return board(Config(NODE, mode, count, PROFILE, strategy, mig or []))  # type: ignore[arg-type]


def fault(name: str = "f", seconds: float = 600.0, **more: Any) -> Fault:
    return Fault(name, time.time() + seconds, **{"gpu": 0, **more})


def eventually(what: Callable[[], Any], within: float = 5.0) -> Any:
    deadline = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found


class FakeApi:
    """Nodes, claims and slices by path; slices are changed as the API server changes them."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {f"/api/v1/nodes/{NODE}": {"metadata": {"name": NODE, "uid": "node-uid"}}}
        self.calls: list[str] = []
        self.down = False
        self._versions = itertools.count(1)
        self._lock = threading.Lock()

    def slices(self) -> dict[str, Object]:
        with self._lock:
            found = {path: each for path, each in self.objects.items() if path.startswith(SLICES)}
            return copy.deepcopy({path.rpartition("/")[2]: each for path, each in found.items()})

    def devices(self) -> dict[str, Object]:
        return {device["name"]: device for each in self.slices().values() for device in each["spec"]["devices"]}

    def taints(self, device: str) -> set[tuple[str, str, str]]:
        marks = self.devices()[device].get("taints", ())
        return {(each["key"].partition("/")[2], each.get("value", ""), each["effect"]) for each in marks}

    def claim(self, name: str, *results: Object, uid: str = "") -> Object:
        path = f"/apis/resource.k8s.io/v1/namespaces/work/resourceclaims/{name}"
        claim = {"metadata": {"name": name, "namespace": "work", "uid": uid or f"uid-{name}"}, "status": {}}
        if results:
            claim["status"]["allocation"] = {"devices": {"results": list(results)}}
        self.objects[path] = claim
        return claim

    def get(self, path: str, query: dict[str, str] | None = None) -> Object:
        self._called("GET", path)
        if path == SLICES:
            assert query == {"fieldSelector": f"spec.nodeName={NODE},spec.driver=gpu.nvidia.com"}
            return {"items": list(self.slices().values())}
        return copy.deepcopy(self._find("GET", path))

    def create(self, path: str, body: Object) -> Object:
        self._called("POST", path)
        target = f"{path}/{body['metadata']['name']}"
        if target in self.objects:
            raise ApiError(CONFLICT, f"POST {path}", "AlreadyExists")
        return self._store(target, body)

    def update(self, path: str, body: Object) -> Object:
        self._called("PUT", path)
        if self._find("PUT", path)["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ApiError(CONFLICT, f"PUT {path}", "Conflict")
        return self._store(path, body)

    def delete(self, path: str) -> Object:
        self._called("DELETE", path)
        self._find("DELETE", path)
        with self._lock:
            return self.objects.pop(path)

    def _called(self, verb: str, path: str) -> None:
        self.calls.append(f"{verb} {path}")
        if self.down:
            raise ApiError(0, f"{verb} {path}", message="refused")

    def _find(self, verb: str, path: str) -> Object:
        if path not in self.objects:
            raise ApiError(NOT_FOUND, f"{verb} {path}", "NotFound")
        return self.objects[path]

    def _store(self, path: str, body: Object) -> Object:
        stored: Object = json.loads(json.dumps(body))
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        for device in stored["spec"]["devices"]:
            for taint in device.get("taints", ()):
                taint.setdefault("timeAdded", f"2026-01-01T00:00:{next(self._versions):02d}Z")
        with self._lock:
            self.objects[path] = stored
        return copy.deepcopy(stored)


def result(device: str, request: str = "gpu", **more: Any) -> Object:
    return {"request": request, "driver": "gpu.nvidia.com", "pool": NODE, "device": device, **more}
