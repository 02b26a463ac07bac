"""ResourceClaims made ready on this node: what each may use, remembered across restarts."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandbox.gpu.emulator.apiserver import ApiError, ApiServer
from sandbox.gpu.emulator.cdi import Cdi
from sandbox.gpu.emulator.devices import DRIVER, Board
from sandbox.gpu.emulator.slices import offers, taints

_LOG = logging.getLogger(__name__)
Object = dict[str, Any]


class ClaimError(Exception):
    """Why a claim cannot be made ready now; the kubelet shows it in an event of the pod."""


@dataclass(frozen=True)
class Device:
    """One device of a claim. `admin` looks at it beside whoever holds it, and holds nothing itself."""

    request: str
    name: str
    uuid: str
    admin: bool = False


@dataclass(frozen=True)
class Given:
    """What the kubelet is told of one device: its CDI names, for containers that ask for `request`."""

    request: str
    device: str
    cdi: list[str]


@dataclass(frozen=True)
class Claim:
    """A claim that is ready: its pods may start."""

    namespace: str
    name: str
    devices: tuple[Device, ...]

    def requests(self) -> dict[str, tuple[str, ...]]:
        """The UUIDs of each request: a container can ask for one request of a claim only."""
        found: dict[str, tuple[str, ...]] = {}
        for device in self.devices:
            found[device.request] = (*found.get(device.request, ()), device.uuid)
        return found


class Claims:
    """The claims that are ready, and the way to there and back. Safe from several threads: one claim at a time."""

    def __init__(self, board: Board, cdi: Cdi, api: ApiServer, path: Path) -> None:
        self._board = board
        self._cdi = cdi
        self._api = api
        self._path = path
        self._lock = threading.Lock()
        self._ready = _load(path)

    @property
    def pool(self) -> str:
        """Of all devices."""
        return self._board.config.node

    def restore(self) -> None:
        """Write the CDI specs of what was ready before: they lie in memory and are lost when a node restarts."""
        for uid, claim in self._ready.items():
            for key, uuids in _specs(uid, claim).items():
                self._cdi.write_claim(key, uuids)

    def prepare(self, uid: str, namespace: str, name: str) -> list[Given]:
        """Make a claim ready, again too.

        Raises:
            ClaimError: it is not what the kubelet thinks, or a device of it cannot be given to it now.
        """
        with self._lock:
            claim = Claim(namespace, name, tuple(self._devices(uid, self._results(uid, namespace, name))))
            before = self._ready.get(uid)
            if before not in {None, claim}:  # allocated anew, and nobody told us of the end of the first allocation
                self._forget(uid)
            # remembered first: whatever goes wrong from here on, the way back knows what there is to remove
            self._save({**self._ready, uid: claim})
            names = {key: self._cdi.write_claim(key, uuids) for key, uuids in _specs(uid, claim).items()}
        _LOG.info("claim %s/%s is ready: %s", namespace, name, ", ".join(each.name for each in claim.devices))
        found = [
            Given(each.request, each.name, [Cdi.device_name(each.uuid), names[_key(uid, each.request)]])
            for each in claim.devices
        ]
        if uid in names:
            # The kubelet hands a container that asks for the whole claim all CDI names in this order, and the last
            # one's environment counts. No container can ask for this request: it is no name of one.
            last = claim.devices[-1]
            found.append(Given("*", last.name, [Cdi.device_name(last.uuid), names[uid]]))
        return found

    def unprepare(self, uid: str) -> None:
        """Back again; one that is not ready is no error."""
        with self._lock:
            if uid in self._ready:
                _LOG.info("claim %s/%s is given back", self._ready[uid].namespace, self._ready[uid].name)
                self._forget(uid)

    def _forget(self, uid: str) -> None:
        for key in _specs(uid, self._ready[uid]):
            self._cdi.remove_claim(key)
        self._save({key: claim for key, claim in self._ready.items() if key != uid})

    def _save(self, ready: dict[str, Claim]) -> None:
        document = {"claims": {uid: asdict(claim) for uid, claim in ready.items()}}
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._ready = ready

    def _results(self, uid: str, namespace: str, name: str) -> list[Object]:
        """The allocated devices of this claim that are ours."""
        try:
            claim = self._api.get(f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}")
        except ApiError as error:
            raise ClaimError(str(error)) from error
        if claim["metadata"]["uid"] != uid:
            raise ClaimError(f"the claim has another UID by now: {claim['metadata']['uid']}")
        allocation = claim.get("status", {}).get("allocation")
        if not allocation:
            raise ClaimError("the claim is not allocated")
        results: list[Object] = allocation.get("devices", {}).get("results", [])
        ours = [each for each in results if each["driver"] == DRIVER and each["pool"] == self._board.config.node]
        if not ours:
            raise ClaimError(f"the claim has no device of {DRIVER} on {self._board.config.node}")
        return ours

    def _devices(self, uid: str, results: Iterable[Object]) -> Iterable[Device]:
        offered = offers(self._board)
        taken = {
            device.uuid: f"{claim.namespace}/{claim.name}"
            for other, claim in self._ready.items()
            for device in claim.devices
            if other != uid and not device.admin
        }
        for result in results:
            if result["device"] not in offered:
                raise ClaimError(f"{result['device']} is no device of this node")
            gpu, instance = offered[result["device"]]
            admin = bool(result.get("adminAccess"))
            if self._board.lost(gpu.index):
                raise ClaimError(f"{result['device']} has fallen off the bus (an emulated fault)")
            if not admin and not _tolerated(taints(self._board, gpu.index), result.get("tolerations", ())):
                reason = self._board.unhealthy(gpu.index)
                raise ClaimError(f"{result['device']} is unhealthy: {reason} (an emulated fault)")
            uuid = instance.uuid if instance else gpu.uuid
            if uuid in taken and not admin:
                raise ClaimError(f"{result['device']} is still in the hands of the claim {taken[uuid]}")
            yield Device(result["request"].partition("/")[0], result["device"], uuid, admin)


def _tolerated(marks: Iterable[Object], tolerations: Iterable[Object]) -> bool:
    """Whether whoever claims the device has accepted everything that is wrong with it."""
    return all(any(_covers(each, mark) for each in tolerations) for mark in marks if mark["effect"] != "None")


def _covers(toleration: Object, mark: Object) -> bool:
    """As the scheduler sees it: what a toleration leaves out, it has nothing against."""
    same = all(toleration.get(field) in {None, "", mark[field]} for field in ("key", "effect"))
    return same and (toleration.get("operator") == "Exists" or toleration.get("value", "") == mark.get("value", ""))


def _key(uid: str, request: str) -> str:
    return f"{uid}-{request}"


def _specs(uid: str, claim: Claim) -> dict[str, tuple[str, ...]]:
    """The UUIDs of each CDI spec of a claim: one for each request, and one for all where there are several."""
    requests = claim.requests()
    found = {_key(uid, request): uuids for request, uuids in requests.items()}
    return found if len(requests) == 1 else {**found, uid: tuple(device.uuid for device in claim.devices)}


def _load(path: Path) -> dict[str, Claim]:
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))["claims"]
        return {
            uid: Claim(each["namespace"], each["name"], tuple(Device(**device) for device in each["devices"]))
            for uid, each in raw.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s cannot be read, and is begun anew: %r", path, error)
        return {}
