"""Who holds which device: the kubelet knows, for its device plugins and for DRA alike."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import grpc

from sandbox.gpu.emulator import rpc
from sandbox.gpu.emulator.api import podresources_pb2
from sandbox.gpu.emulator.devices import DRIVER, Board, Holder

_LOG = logging.getLogger(__name__)
SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
_SECONDS = 0.5
_LIST = "/v1.PodResourcesLister/List"
Admin = Mapping[tuple[str, str], frozenset[str]]  # names of devices, by the claim's namespace and name


class Holders:
    """Asks the kubelet again and again. While it does not answer, what it last said holds: pods outlive it."""

    def __init__(self, board: Board, home: Path, *, socket: Path = SOCKET) -> None:
        self._board = board
        self._claims = home / "claims.json"
        self._socket = socket
        self._connection = contextlib.ExitStack()
        self._channel: grpc.Channel | None = None
        self._last: tuple[Holder, ...] = ()
        self._failed = ""
        self._read_at = 0
        self._admin: Admin = {}

    def read(self) -> tuple[Holder, ...]:
        """Every container that holds a device of this node."""
        request, reply = podresources_pb2.ListPodResourcesRequest, podresources_pb2.ListPodResourcesResponse
        if self._channel is None:
            self._channel = self._connection.enter_context(rpc.connect(self._socket))
        try:
            answer = rpc.stub(self._channel, _LIST, request, reply)(request(), timeout=_SECONDS)
        except grpc.RpcError as error:
            self.close()  # a connection that failed waits longer and longer until it tries again; a new one does not
            reason = str(error.code())
            if reason != self._failed:
                _LOG.warning("the kubelet does not say who holds what: %s", reason)
            self._failed = reason
            return self._last
        self._failed = ""
        self._last = parse(answer, self._board, self._admin_devices())
        return self._last

    def close(self) -> None:
        """Hang up; the next `read` connects again."""
        self._connection.close()
        self._channel = None

    def _admin_devices(self) -> Admin:
        """What the DRA driver gave to somebody who only looks on: the kubelet does not tell those apart."""
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError
        ):  # no claims yet, or they are being begun anew
            changed = self._claims.stat().st_mtime_ns
            if changed != self._read_at:
                claims = json.loads(self._claims.read_text(encoding="utf-8"))["claims"].values()
                self._admin = {(each["namespace"], each["name"]): _admin(each["devices"]) for each in claims}
                self._read_at = changed
        return self._admin


def parse(answer: podresources_pb2.ListPodResourcesResponse, board: Board, admin: Admin) -> tuple[Holder, ...]:
    """The holders in the kubelet's answer, in its order. It lists each claim's devices for each container that uses it.

    Devices of other drivers, and device IDs this node no longer has, are somebody else's business.
    """
    uuids = [uuid for gpu in board.gpus for uuid in gpu.uuids]
    names = {gpu.name: gpu.uuid for gpu in board.gpus if not gpu.mig}
    names |= {each.name: each.uuid for gpu in board.gpus for each in gpu.mig}
    found = []
    for pod in answer.pod_resources:
        for container in pod.containers:
            held = [
                device.partition("::")[0]  # a replica of a shared device
                for part in container.devices
                if part.resource_name.startswith("nvidia.com/")
                for device in part.device_ids
            ]
            for claim in container.dynamic_resources:
                looked_at = admin.get((claim.claim_namespace, claim.claim_name), frozenset())
                held += [
                    names.get(part.device_name, "")
                    for part in claim.claim_resources
                    if part.driver_name == DRIVER and part.device_name not in looked_at
                ]
            ours = tuple(uuid for uuid in uuids if uuid in held)
            if ours:
                found.append(Holder(pod.namespace, pod.name, container.name, ours))
    return tuple(found)


def _admin(devices: list[dict[str, object]]) -> frozenset[str]:
    held = {str(each["name"]) for each in devices if not each.get("admin")}
    return frozenset(str(each["name"]) for each in devices if each.get("admin")) - held
