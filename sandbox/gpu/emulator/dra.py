"""The DRA driver of this node: what the kubelet asks of it, and its coming and going."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from sandbox.gpu.emulator import faults, rpc
from sandbox.gpu.emulator.api import dra_pb2, health_pb2, registration_pb2
from sandbox.gpu.emulator.apiserver import ApiServer
from sandbox.gpu.emulator.cdi import Cdi
from sandbox.gpu.emulator.claims import ClaimError, Claims
from sandbox.gpu.emulator.devices import DRIVER, Board
from sandbox.gpu.emulator.slices import Publisher, offers, trouble

_LOG = logging.getLogger(__name__)
REGISTRY = Path("/var/lib/kubelet/plugins_registry")
SERVICES = ("v1.DRAPlugin", "v1.DRAResourceHealth")  # in the kubelet's words, which are not the wire's
_POLL_SECONDS = 0.5
# The kubelet takes a device's health for unknown when it has heard nothing for so long.
HEALTH_TIMEOUT_SECONDS = 30
HEARTBEAT_SECONDS = 10.0
_THREADS = 8


def run(
    board: Board, cdi: Cdi, api: ApiServer, home: Path, stop: threading.Event, *, registry: Path = REGISTRY
) -> None:
    """Be the node's DRA driver until `stop`; returns at once where no device is for DRA.

    `api` has to stay open until this has returned: the last thing it does is to delete the slices.
    """
    if not board.config.dra_indices:
        return
    claims = Claims(board, cdi, api, home / "claims.json")
    claims.restore()
    publisher = Publisher(board, api)
    sockets = Sockets(board, claims, home / "dra.sock", registry / f"{DRIVER}-reg.sock")
    try:
        while not stop.is_set():
            if board.plugin_down():
                # a driver that is dead takes nothing back: the kubelet deletes the slices after half a minute
                sockets.close()
            else:
                publisher.publish(now=sockets.open())
            with board.changed:
                board.changed.wait(faults.next_end(board, most=_POLL_SECONDS))
    finally:
        sockets.close()
    publisher.withdraw()


class Sockets:
    """The two places where the kubelet finds the driver: the one where it asks who is there, and the driver's own."""

    def __init__(self, board: Board, claims: Claims, driver: Path, registration: Path) -> None:
        self._paths = (driver, registration)
        own = [_plugin(claims), _health(board)]
        # its own first: once the kubelet has found the other one, it calls
        self._handlers = dict(zip(self._paths, (own, [_registration(driver)]), strict=True))
        self._servers: dict[Path, grpc.Server] = {}

    def open(self) -> bool:
        """Serve; tells whether it did not before."""
        if self._servers:
            return False
        for path in self._paths:
            self._servers[path] = rpc.serve(path, self._handlers[path], threads=_THREADS)
        return True

    def close(self) -> None:
        """Be gone, for the kubelet too: it watches for the end of the registration socket."""
        for path in reversed(self._paths):
            if server := self._servers.pop(path, None):
                rpc.end(server, path)


def _registration(endpoint: Path) -> grpc.GenericRpcHandler:
    def info(_request: registration_pb2.InfoRequest, _context: grpc.ServicerContext) -> registration_pb2.PluginInfo:
        return registration_pb2.PluginInfo(
            type="DRAPlugin", name=DRIVER, endpoint=str(endpoint), supported_versions=SERVICES
        )

    def notify(
        request: registration_pb2.RegistrationStatus, _context: grpc.ServicerContext
    ) -> registration_pb2.RegistrationStatusResponse:
        if request.plugin_registered:
            _LOG.info("the kubelet has registered the DRA driver")
        else:  # it tries again by itself
            _LOG.warning("the kubelet did not register the DRA driver: %s", request.error)
        return registration_pb2.RegistrationStatusResponse()

    methods = {
        "GetInfo": rpc.unary(info, registration_pb2.InfoRequest),
        "NotifyRegistrationStatus": rpc.unary(notify, registration_pb2.RegistrationStatus),
    }
    return rpc.service("pluginregistration.Registration", methods)


def _plugin(claims: Claims) -> grpc.GenericRpcHandler:
    def prepare(
        request: dra_pb2.NodePrepareResourcesRequest, _context: grpc.ServicerContext
    ) -> dra_pb2.NodePrepareResourcesResponse:
        return dra_pb2.NodePrepareResourcesResponse(
            claims={claim.uid: _prepared(claims, claim) for claim in request.claims}
        )

    def unprepare(
        request: dra_pb2.NodeUnprepareResourcesRequest, _context: grpc.ServicerContext
    ) -> dra_pb2.NodeUnprepareResourcesResponse:
        return dra_pb2.NodeUnprepareResourcesResponse(
            claims={claim.uid: _unprepared(claims, claim) for claim in request.claims}
        )

    methods = {
        "NodePrepareResources": rpc.unary(prepare, dra_pb2.NodePrepareResourcesRequest),
        "NodeUnprepareResources": rpc.unary(unprepare, dra_pb2.NodeUnprepareResourcesRequest),
    }
    return rpc.service("k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin", methods)


def _prepared(claims: Claims, claim: dra_pb2.Claim) -> dra_pb2.NodePrepareResourceResponse:
    """One claim's answer: what goes wrong with it is no matter of the other claims in the request."""
    try:
        found = claims.prepare(claim.uid, claim.namespace, claim.name)
    except (ClaimError, OSError) as error:
        _LOG.warning("claim %s/%s cannot be made ready: %s", claim.namespace, claim.name, error)
        return dra_pb2.NodePrepareResourceResponse(error=str(error))
    return dra_pb2.NodePrepareResourceResponse(
        devices=[
            dra_pb2.Device(
                request_names=[each.request], pool_name=claims.pool, device_name=each.device, cdi_device_ids=each.cdi
            )
            for each in found
        ]
    )


def _unprepared(claims: Claims, claim: dra_pb2.Claim) -> dra_pb2.NodeUnprepareResourceResponse:
    try:
        claims.unprepare(claim.uid)
    except OSError as error:
        return dra_pb2.NodeUnprepareResourceResponse(error=str(error))
    return dra_pb2.NodeUnprepareResourceResponse()


def _health(board: Board) -> grpc.GenericRpcHandler:
    def watch(
        _request: health_pb2.NodeWatchResourcesRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.NodeWatchResourcesResponse]:
        rpc.wake_at_end(context, board.changed)
        told: dict[str, tuple[health_pb2.HealthStatus, str]] = {}
        again = 0.0
        while context.is_active():
            now = health(board)
            if now != told or time.monotonic() >= again:
                told, again = now, time.monotonic() + HEARTBEAT_SECONDS
                yield _report(board.config.node, now)
            with board.changed:
                board.changed.wait(faults.next_end(board, most=_POLL_SECONDS))

    return rpc.service(
        "v1.DRAResourceHealth", {"NodeWatchResources": rpc.stream(watch, health_pb2.NodeWatchResourcesRequest)}
    )


def health(board: Board) -> dict[str, tuple[health_pb2.HealthStatus, str]]:
    """How each device is, and what there is to say about it; the kubelet shows it in the status of pods."""
    found = {}
    for name, (gpu, _) in offers(board).items():
        reason = trouble(board, gpu.index)
        others = [f"{fault.throttle} throttle" for fault in board.active(gpu.index) if fault.throttle]
        others += [f"XID {fault.xid}" for fault in board.active(gpu.index) if fault.xid and not fault.unhealthy]
        status = health_pb2.UNHEALTHY if reason else health_pb2.HEALTHY
        words = ", ".join(dict.fromkeys([reason, *others] if reason else others))
        found[name] = (status, f"emulated: {words}" if words else "")
    return found


def _report(node: str, found: dict[str, tuple[health_pb2.HealthStatus, str]]) -> health_pb2.NodeWatchResourcesResponse:
    return health_pb2.NodeWatchResourcesResponse(
        devices=[
            health_pb2.DeviceHealth(
                device=health_pb2.DeviceIdentifier(pool_name=node, device_name=name),
                health=status,
                last_updated_time=int(time.time()),
                health_check_timeout_seconds=HEALTH_TIMEOUT_SECONDS,
                message=message,
            )
            for name, (status, message) in found.items()
        ]
    )
