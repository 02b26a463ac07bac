"""A kubelet as plugins see it, over real gRPC on unix sockets: device plugins, DRA drivers and pod resources.

Where it matters it does as the real one (v1.37): it deletes all sockets when it starts, calls a plugin back while that
one registers, refuses a path it is still connected to, and drops a plugin when its stream of devices ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import grpc

from sandbox.gpu.emulator import config, devices, rpc
from sandbox.gpu.emulator.api import (
    deviceplugin_pb2,
    dra_pb2,
    health_pb2,
    podresources_pb2,
    registration_pb2,
)

Found = TypeVar("Found")
_SECONDS = 5.0


@dataclass
class Plugin:
    """A device plugin that has registered."""

    request: deviceplugin_pb2.RegisterRequest
    options: deviceplugin_pb2.DevicePluginOptions
    channel: grpc.Channel
    devices: list[deviceplugin_pb2.Device] = field(default_factory=list)
    updates: int = 0
    connected: bool = True

    @property
    def health(self) -> dict[str, str]:
        return {each.ID: each.health for each in self.devices}


@dataclass
class Kubelet:
    """Listens in `folder`/device-plugins/kubelet.sock and `folder`/pod-resources/kubelet.sock."""

    folder: Path
    plugins: dict[str, Plugin] = field(default_factory=dict)
    registrations: list[str] = field(default_factory=list)
    refusals: int = 0  # registrations still to be refused
    pods: list[podresources_pb2.PodResources] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _servers: list[tuple[grpc.Server, Path]] = field(default_factory=list)
    _connections: ExitStack = field(default_factory=ExitStack)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def plugin_folder(self) -> Path:
        return self.folder / "device-plugins"

    @property
    def pod_resources(self) -> Path:
        return self.folder / "pod-resources" / "kubelet.sock"

    def start(self) -> None:
        self.plugin_folder.mkdir(exist_ok=True)
        self.pod_resources.parent.mkdir(exist_ok=True)
        for socket in self.plugin_folder.glob("*.sock"):
            socket.unlink()
        register = {"Register": rpc.unary(self._register, deviceplugin_pb2.RegisterRequest)}
        pods = {"List": rpc.unary(self._list, podresources_pb2.ListPodResourcesRequest)}
        for socket, name, methods in (
            (self.plugin_folder / "kubelet.sock", "v1beta1.Registration", register),
            (self.pod_resources, "v1.PodResourcesLister", pods),
        ):
            self._servers.append((rpc.serve(socket, [rpc.service(name, methods)]), socket))

    def stop(self) -> None:
        """Gone with all connections; the sockets stay where they are, as when it is killed."""
        for server, _ in self._servers:
            server.stop(0).wait(_SECONDS)
        self._servers.clear()
        self._connections.close()
        for thread in self._threads:
            thread.join(_SECONDS)
        self._threads.clear()
        self.plugins.clear()

    def restart(self) -> None:
        self.stop()
        self.start()

    def wait(self, look: Callable[[], Found], within: float = _SECONDS) -> Found:
        """Until `look` finds something; looks again whenever a plugin has said something."""
        deadline = time.monotonic() + within
        with self._changed:
            while not (found := look()):
                assert time.monotonic() < deadline, f"not within {within} s; known: {self.plugins}"
                self._changed.wait(0.02)
        return found

    def registered(self, resource: str, devices: int | None = None, within: float = _SECONDS) -> Plugin:
        """The plugin of a resource, once it has listed its devices."""

        def look() -> Plugin | None:
            plugin = self.plugins.get(resource)
            there = plugin and plugin.connected and plugin.updates
            return plugin if there and (devices is None or len(plugin.devices) == devices) else None

        found = self.wait(look, within)
        assert found
        return found

    def allocate(self, resource: str, *ids: str) -> deviceplugin_pb2.ContainerAllocateResponse:
        request, reply = deviceplugin_pb2.AllocateRequest, deviceplugin_pb2.AllocateResponse
        call = rpc.stub(self.plugins[resource].channel, "/v1beta1.DevicePlugin/Allocate", request, reply)
        answer = call(request(container_requests=[{"devices_ids": ids}]), timeout=_SECONDS)
        return answer.container_responses[0]

    def prefer(self, resource: str, available: Sequence[str], size: int, must: Sequence[str] = ()) -> list[str]:
        request, reply = deviceplugin_pb2.PreferredAllocationRequest, deviceplugin_pb2.PreferredAllocationResponse
        method = "/v1beta1.DevicePlugin/GetPreferredAllocation"
        call = rpc.stub(self.plugins[resource].channel, method, request, reply)
        asked = {"available_deviceIDs": available, "must_include_deviceIDs": must, "allocation_size": size}
        return list(call(request(container_requests=[asked]), timeout=_SECONDS).container_responses[0].deviceIDs)

    def driver(self, registration: Path) -> Driver:
        """The DRA driver whose registration socket that is, registered as the plugin watcher does it."""
        with rpc.connect(registration) as channel:
            ask, info = registration_pb2.InfoRequest, registration_pb2.PluginInfo
            found = rpc.stub(channel, "/pluginregistration.Registration/GetInfo", ask, info)(ask(), timeout=_SECONDS)
            say, heard = registration_pb2.RegistrationStatus, registration_pb2.RegistrationStatusResponse
            notify = rpc.stub(channel, "/pluginregistration.Registration/NotifyRegistrationStatus", say, heard)
            notify(say(plugin_registered=True), timeout=_SECONDS)
        return Driver(found, self._connections.enter_context(rpc.connect(Path(found.endpoint))))

    def _register(
        self, request: deviceplugin_pb2.RegisterRequest, context: grpc.ServicerContext
    ) -> deviceplugin_pb2.Empty:
        self.registrations.append(request.resource_name)
        if self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.UNKNOWN, "refused")
        before = self.plugins.get(request.resource_name)
        if before and before.connected and before.request.endpoint == request.endpoint:
            context.abort(grpc.StatusCode.UNKNOWN, f"device plugin already connected: {request.endpoint}")
        channel = self._connections.enter_context(rpc.connect(self.plugin_folder / request.endpoint))
        empty, options = deviceplugin_pb2.Empty, deviceplugin_pb2.DevicePluginOptions
        ask = rpc.stub(channel, "/v1beta1.DevicePlugin/GetDevicePluginOptions", empty, options)
        plugin = Plugin(request, ask(empty(), timeout=_SECONDS), channel)
        with self._changed:
            self.plugins[request.resource_name] = plugin
        thread = threading.Thread(target=self._listen, args=(plugin,))
        self._threads.append(thread)
        thread.start()
        return deviceplugin_pb2.Empty()

    def _listen(self, plugin: Plugin) -> None:
        request, reply = deviceplugin_pb2.Empty, deviceplugin_pb2.ListAndWatchResponse
        call = rpc.stream_stub(plugin.channel, "/v1beta1.DevicePlugin/ListAndWatch", request, reply)
        try:
            for update in call(request()):
                with self._changed:
                    plugin.devices = list(update.devices)
                    plugin.updates += 1
                    self._changed.notify_all()
        except (grpc.RpcError, ValueError):  # ValueError: the channel was closed before the call began
            pass
        with self._changed:
            plugin.connected = False
            self._changed.notify_all()

    def _list(
        self, _request: podresources_pb2.ListPodResourcesRequest, _context: grpc.ServicerContext
    ) -> podresources_pb2.ListPodResourcesResponse:
        return podresources_pb2.ListPodResourcesResponse(pod_resources=self.pods)


@dataclass
class Driver:
    """A DRA driver that has registered."""

    info: registration_pb2.PluginInfo
    channel: grpc.Channel

    def prepare(self, *claims: dra_pb2.Claim) -> dict[str, dra_pb2.NodePrepareResourceResponse]:
        request, reply = dra_pb2.NodePrepareResourcesRequest, dra_pb2.NodePrepareResourcesResponse
        method = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources"
        return dict(rpc.stub(self.channel, method, request, reply)(request(claims=claims), timeout=_SECONDS).claims)

    def unprepare(self, *claims: dra_pb2.Claim) -> dict[str, dra_pb2.NodeUnprepareResourceResponse]:
        request, reply = dra_pb2.NodeUnprepareResourcesRequest, dra_pb2.NodeUnprepareResourcesResponse
        method = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources"
        return dict(rpc.stub(self.channel, method, request, reply)(request(claims=claims), timeout=_SECONDS).claims)

    def health(self) -> Iterator[health_pb2.NodeWatchResourcesResponse]:
        """As it comes; `cancel()` the iterator to end it."""
        request, reply = health_pb2.NodeWatchResourcesRequest, health_pb2.NodeWatchResourcesResponse
        return rpc.stream_stub(self.channel, "/v1.DRAResourceHealth/NodeWatchResources", request, reply)(request())


@contextmanager
def kubelet() -> Iterator[Kubelet]:
    """A running one, in a folder of its own: pytest's are too deep for a socket's path of 107 characters."""
    with TemporaryDirectory() as folder:
        found = Kubelet(Path(folder))
        found.start()
        try:
            yield found
        finally:
            found.stop()


PROFILE: dict[str, Any] = {
    "name": "h100",
    "product": "NVIDIA H100 80GB HBM3",
    "brand": "NVIDIA",
    "architecture": "Hopper",
    "compute_capability": "9.0",
    "driver_version": "570.124.06",
    "cuda_version": "12.8",
    "pci_device_id": "0x233010DE",
    "memory_mib": 81559,
    "memory_bandwidth_gbs": 3350,
    "hbm": True,
    "idle_power": 70.0,
    "power_limit": 700.0,
    "idle_sm_clock": 345,
    "max_sm_clock": 1980,
    "memory_clock": 2619,
    "idle_temperature": 32.0,
    "load_temperature": 68.0,
    "slowdown_temperature": 87.0,
    "nvlinks": 18,
    "mig": {
        name: dict(zip(("id", "slices", "memory_slices", "memory_mib", "multiprocessors", "most"), row, strict=True))
        for name, row in {
            "1g.10gb": (19, 1, 1, 9984, 16, 7),
            "1g.10gb+me": (20, 1, 1, 9984, 16, 1),
            "3g.40gb": (9, 3, 4, 40448, 60, 2),
        }.items()
    },
}


def board(
    count: int = 4, *, mode: str = "device-plugin", profile: dict[str, Any] | None = None, **more: Any
) -> devices.Board:
    """A node's GPUs; `more` as in a node's document, `profile` what is to be different from an H100."""
    document = {"node": "node-1", "mode": mode, "count": count, "profile": PROFILE | (profile or {}), **more}
    return devices.board(config.parse(document))
