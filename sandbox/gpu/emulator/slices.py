"""What this node offers through dynamic resource allocation: its ResourceSlices, kept as its devices are."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from sandbox.gpu.emulator.apiserver import NOT_FOUND, ApiError, ApiServer
from sandbox.gpu.emulator.devices import DRIVER, Board, Gpu, MigInstance

_LOG = logging.getLogger(__name__)
Object = dict[str, Any]
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
STAMP = "ai-k8s-sandbox/emulated"
# Nobody tells us that a slice was deleted (a kubelet that starts deletes all of its node): we look this often.
CHECK_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_MOST_DEVICES = 64  # in a slice whose devices may have taints
_MOST_TAINTS = 16  # of a device
_GPUS_PER_ROOT = 2  # share a PCIe root complex, as on a DGX


def offers(board: Board) -> dict[str, tuple[Gpu, MigInstance | None]]:
    """What can be claimed, by the name it has in its slice: whole GPUs, or the instances of those that are cut."""
    gpus = [board.gpus[index] for index in board.config.dra_indices]
    whole: dict[str, tuple[Gpu, MigInstance | None]] = {gpu.name: (gpu, None) for gpu in gpus if not gpu.mig}
    return whole | {instance.name: (gpu, instance) for gpu in gpus for instance in gpu.mig}


def devices(board: Board) -> list[Object]:
    """The devices as the API has them; names, attributes and capacities are those of NVIDIA's driver."""
    found = []
    for name, (gpu, instance) in offers(board).items():
        device = {"name": name, "attributes": _attributes(board, gpu, instance), "capacity": _capacity(board, instance)}
        marks = taints(board, gpu.index)
        found.append({**device, "taints": marks} if marks else device)
    return found


def trouble(board: Board, gpu: int) -> str:
    """Why a GPU may not be claimed, in a few words; empty when it may."""
    return board.unhealthy(gpu) or ("lost" if board.lost(gpu) else "")


def taints(board: Board, gpu: int) -> list[Object]:
    """What the faults of a GPU mean to those who claim it.

    `xid` and `gpu-lost` are the taints of NVIDIA's driver, which keeps new claims off (NoSchedule), only tells of
    errors that are the application's (None), and evicts nobody. `unhealthy` is ours and evicts who does not tolerate
    it: without it, nothing would ever move off a dead GPU. A throttled GPU stays in service, as it does in reality;
    its taint only tells (None), and a DeviceTaintRule can make more of it.
    """
    found: list[Object] = []

    def add(key: str, value: str, effect: str) -> None:
        taint = {"key": f"{DRIVER}/{key}", "effect": effect} | ({"value": value} if value else {})
        if taint not in found:
            found.append(taint)

    if reason := trouble(board, gpu):
        add("unhealthy", reason.lower().replace(" ", "-"), "NoExecute")
    for fault in board.active(gpu):
        if fault.lost:
            add("gpu-lost", "", "NoSchedule")
        if fault.xid:
            add("xid", str(fault.xid), "NoSchedule" if fault.unhealthy else "None")
        if fault.throttle:
            add("throttled", fault.throttle, "None")
    return found[:_MOST_TAINTS]


class Publisher:
    """Keeps this node's slices in the API as its devices are. For one thread."""

    def __init__(self, board: Board, api: ApiServer) -> None:
        self._board = board
        self._api = api
        self._node = board.config.node
        self._generation = 0
        self._published: list[Object] | None = None
        self._look_at = 0.0  # on the monotonic clock
        self._failed = ""

    def publish(self, *, now: bool = False) -> None:
        """Write what has changed, and what somebody else changed or deleted; when nothing has, seldom look (or `now`).

        An API server that does not answer is asked again later.
        """
        wanted = devices(self._board)
        if not now and time.monotonic() < self._look_at and (self._failed or wanted == self._published):
            return
        try:
            self._write(wanted)
        except ApiError as error:
            if str(error) != self._failed:
                _LOG.warning("the ResourceSlices are not as they should be: %s", error)
            self._failed = str(error)
            self._look_at = time.monotonic() + _RETRY_SECONDS
            return
        self._published, self._failed = wanted, ""
        self._look_at = time.monotonic() + CHECK_SECONDS

    def withdraw(self) -> None:
        """Take every slice back: the node offers nothing more."""
        try:
            for name in self._existing():
                self._delete(name)
        except ApiError as error:  # the kubelet deletes them half a minute after the driver has gone
            _LOG.warning("the ResourceSlices stay for now: %s", error)

    def _existing(self) -> dict[str, Object]:
        selector = f"spec.nodeName={self._node},spec.driver={DRIVER}"
        listed = self._api.get(SLICES, {"fieldSelector": selector})
        return {each["metadata"]["name"]: each for each in listed["items"]}

    def _write(self, wanted: list[Object]) -> None:
        """Bring all slices to one new generation when anything about any of them is not as it should be."""
        existing = self._existing()
        parts = [wanted[first : first + _MOST_DEVICES] for first in range(0, len(wanted), _MOST_DEVICES)]
        specs = {
            f"{self._node}-{DRIVER}-{number}": self._spec(_since(existing, part), len(parts))
            for number, part in enumerate(parts)
        }
        found = {name: each["spec"] for name, each in existing.items()}
        generations = {spec["pool"]["generation"] for spec in found.values()}
        if len(generations) == 1 and found == {name: _at(spec, *generations) for name, spec in specs.items()}:
            self._generation = max(self._generation, *generations)
            return
        self._generation = max(self._generation, *generations, 0) + 1
        for name, spec in specs.items():
            body = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "spec": _at(spec, self._generation)}
            if name in existing:
                self._api.update(f"{SLICES}/{name}", body | {"metadata": existing[name]["metadata"]})
            else:
                self._api.create(SLICES, body | {"metadata": self._metadata(name)})
        for name in existing.keys() - specs.keys():
            self._delete(name)
        _LOG.info("ResourceSlices published: %d devices, generation %d", len(wanted), self._generation)

    def _spec(self, part: list[Object], parts: int) -> Object:
        pool = {"name": self._node, "resourceSliceCount": parts}
        return {"driver": DRIVER, "nodeName": self._node, "pool": pool, "devices": part}

    def _metadata(self, name: str) -> Object:
        """With the node as owner: a slice goes when its node does. The node may be another one of the same name now."""
        node = self._api.get(f"/api/v1/nodes/{self._node}")
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node["metadata"]["uid"]}
        return {"name": name, "labels": {STAMP: "true"}, "ownerReferences": [{**owner, "controller": True}]}

    def _delete(self, name: str) -> None:
        try:
            self._api.delete(f"{SLICES}/{name}")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise


def _at(spec: Object, generation: int) -> Object:
    return {**spec, "pool": {**spec["pool"], "generation": generation}}


def _since(existing: dict[str, Object], wanted: list[Object]) -> list[Object]:
    """The devices, with the time at which the API server first saw each of their taints: it is not to start anew."""
    known = {
        (device["name"], taint["key"], taint.get("value", ""), taint["effect"]): taint["timeAdded"]
        for each in existing.values()
        for device in each["spec"].get("devices", ())
        for taint in device.get("taints", ())
        if "timeAdded" in taint
    }

    def dated(device: str, taint: Object) -> Object:
        added = known.get((device, taint["key"], taint.get("value", ""), taint["effect"]))
        return {**taint, "timeAdded": added} if added else taint

    return [
        {**each, "taints": [dated(each["name"], taint) for taint in each["taints"]]} if "taints" in each else each
        for each in wanted
    ]


def _attributes(board: Board, gpu: Gpu, instance: MigInstance | None) -> Object:
    profile = board.config.profile
    root = board.gpus[gpu.index - gpu.index % _GPUS_PER_ROOT]
    common = {
        "productName": {"string": profile.product},
        "brand": {"string": profile.brand},
        "architecture": {"string": profile.architecture},
        "cudaComputeCapability": {"version": semver(profile.compute_capability)},
        "driverVersion": {"version": semver(profile.driver_version)},
        "cudaDriverVersion": {"version": semver(profile.cuda_version)},
        "resource.kubernetes.io/pciBusID": {"string": _bus(gpu)},
        "resource.kubernetes.io/pcieRoot": {"string": f"pci{_bus(root)[:7]}"},
        STAMP: {"bool": True},
    }
    if instance is None:
        own: Object = {"type": {"string": "gpu"}, "uuid": {"string": gpu.uuid}}
        return own | {"minor": {"int": gpu.minor}, "index": {"int": gpu.index}} | common
    own = {"type": {"string": "mig"}, "uuid": {"string": instance.uuid}, "profile": {"string": instance.profile}}
    return own | {"parentUUID": {"string": gpu.uuid}, "parentMinor": {"int": gpu.minor}} | common


def _capacity(board: Board, instance: MigInstance | None) -> Object:
    if instance is None:
        return {"memory": {"value": quantity(board.config.profile.memory_mib)}}
    shape = instance.shape
    return {"memory": {"value": quantity(shape.memory_mib)}, "multiprocessors": {"value": str(shape.multiprocessors)}}


def _bus(gpu: Gpu) -> str:
    """Domain:bus:device.function as Linux writes it; the driver's tools write the domain with eight digits."""
    return gpu.pci_bus_id[-12:].lower()


def semver(version: str) -> str:
    """Three numbers without leading zeros, as the API wants a version: 12.8 is 12.8.0, 535.104.05 is 535.104.5."""
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    return ".".join(str(number) for number in (*numbers, 0, 0, 0)[:3])


def quantity(mib: int) -> str:
    """Memory as the API server itself would write it; what it rewrites would look like somebody else's change."""
    for unit in ("Mi", "Gi"):
        if mib % 1024:
            return f"{mib}{unit}"
        mib //= 1024
    return f"{mib}Ti"
