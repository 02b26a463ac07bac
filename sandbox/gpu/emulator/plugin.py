"""NVIDIA's device plugin as the kubelet knows it (v1beta1): one server and one socket for each resource."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import grpc

from sandbox.gpu.emulator import faults, rpc
from sandbox.gpu.emulator.api import deviceplugin_pb2 as api
from sandbox.gpu.emulator.cdi import Cdi
from sandbox.gpu.emulator.config import Config
from sandbox.gpu.emulator.devices import Board, Gpu

_LOG = logging.getLogger(__name__)
FOLDER = Path("/var/lib/kubelet/device-plugins")
NUMA = Path("/sys/devices/system/node")
GPU = "nvidia.com/gpu"
_VERSION = "v1beta1"
_POLL_SECONDS = 0.5
_SHORTEST, _LONGEST = 0.5, 8.0
_REGISTER_SECONDS = 3.0
_IDLE_SECONDS = 5.0
_LINKED = {2: 2, 4: 1, 8: 1}  # so many GPUs in a row, from the first on, are closer to each other by so much
_OPTIONS = api.DevicePluginOptions(get_preferred_allocation_available=True)
Seen = tuple[int, int] | None


@dataclass(frozen=True)
class Device:
    """One thing the kubelet can give away: a GPU, an instance of one, or (`id` is not `uuid`) a share of either."""

    id: str
    uuid: str
    gpu: int


def mig_resource(profile: str) -> str:
    """The resource of a MIG profile in the strategy `mixed`."""
    return f"nvidia.com/mig-{profile.replace('+', '.')}"


def replicas(config: Config, resource: str) -> int:
    """Into how many shares time slicing cuts a device of this resource."""
    return max(1, config.sharing.replicas.get(resource, 1)) if config.sharing else 1


def resources(board: Board) -> dict[str, list[Device]]:
    """What the device plugin of this node offers: the devices by the resource's name."""
    config = board.config
    whole: dict[str, list[tuple[str, int]]] = {}
    for gpu in (board.gpus[index] for index in config.plugin_indices):
        for uuid, resource in _parts(gpu, config):
            whole.setdefault(resource, []).append((uuid, gpu.index))
    found = {}
    for resource, parts in whole.items():
        shares = replicas(config, resource)
        if shares == 1:
            found[resource] = [Device(uuid, uuid, gpu) for uuid, gpu in parts]
        else:
            renamed = config.sharing is not None and config.sharing.rename_by_default
            found[f"{resource}.shared" if renamed else resource] = [
                Device(f"{uuid}::{number}", uuid, gpu) for uuid, gpu in parts for number in range(shares)
            ]
    return found


def linked(board: Board, available: Sequence[Device], must: Sequence[Device], size: int) -> list[Device]:
    """Of whole GPUs those that are closest to each other, and that leave the others the closest.

    The topology is emulated, as no GPU is linked to any: where the model has NVLink, GPUs 2n and 2n+1 are closest, then
    those of a quad (4n..4n+3), then of an octet. Without NVLink it is the halves of the board, each at its own socket.
    """
    count = board.config.count
    widths = _LINKED if board.config.profile.nvlinks else {(count + 1) // 2: 1}
    groups = [
        (weight, ((1 << width) - 1) << first) for width, weight in widths.items() for first in range(0, count, width)
    ]

    def closeness(mask: int) -> int:
        counts = ((weight, (mask & group).bit_count()) for weight, group in groups)
        return sum(weight * there * (there - 1) // 2 for weight, there in counts)

    everything, fixed = _mask(available), _mask(must)
    free = sorted((each for each in available if each not in must), key=lambda each: each.gpu)
    best = max(
        combinations(free, size - len(must)),
        key=lambda chosen: (
            closeness(fixed | _mask(chosen)),
            closeness(everything & ~(fixed | _mask(chosen))),
            [-each.gpu for each in chosen],
        ),
    )
    return [*must, *best]


def spread(devices: Sequence[Device], available: Sequence[Device], must: Sequence[Device], size: int) -> list[Device]:
    """One by one a share of what fewest others hold a share of."""
    chosen = list(must)
    left = [each for each in available if each not in must]
    held = Counter(each.uuid for each in devices)
    held.subtract(each.uuid for each in left)
    order = {each.id: place for place, each in enumerate(devices)}
    while len(chosen) < size:
        taken = min(left, key=lambda each: (held[each.uuid], order[each.id]))
        left.remove(taken)
        held[taken.uuid] += 1
        chosen.append(taken)
    return chosen


class Plugin:
    """The server of one resource, and what the kubelet has heard of it."""

    def __init__(self, board: Board, cdi: Cdi, resource: str, folder: Path, numa_nodes: int) -> None:
        devices = resources(board)[resource]
        self._board = board
        self._cdi = cdi
        self._resource = resource
        self._devices = {each.id: each for each in devices}
        self._whole = all(each.id == board.gpus[each.gpu].uuid for each in devices)
        self._folder = folder
        self._numa_nodes = numa_nodes
        self._served = 0
        self._server: grpc.Server | None = None
        self._over = threading.Event()
        self._kubelet: Seen = None
        self._pause, self._not_before = _SHORTEST, 0.0

    @property
    def socket(self) -> Path:
        """Where it listens: each time somewhere else.

        The kubelet refuses a path that it is still connected to, and then does not hear of the end of the first
        connection any more.
        """
        name = f"nvidia-{self._resource.partition('/')[2]}"
        return self._folder / (f"{name}.sock" if self._served <= 1 else f"{name}-{self._served}.sock")

    def look_after(self, kubelet: Seen) -> None:
        """Serve, and register with this kubelet: again when it is another one, or when the socket was deleted."""
        if kubelet is None:
            return
        if self._server and (kubelet != self._kubelet or not self.socket.exists()):
            _LOG.info("%s: the kubelet has restarted: registering again", self._resource)
            self.close()
        if kubelet != self._kubelet:
            self._kubelet, self._pause, self._not_before = kubelet, _SHORTEST, 0.0
        if self._server or time.monotonic() < self._not_before:
            return
        self._serve()
        try:
            with rpc.connect(self._folder / "kubelet.sock") as channel:
                register = rpc.stub(channel, "/v1beta1.Registration/Register", api.RegisterRequest, api.Empty)
                register(
                    api.RegisterRequest(
                        version=_VERSION, endpoint=self.socket.name, resource_name=self._resource, options=_OPTIONS
                    ),
                    timeout=_REGISTER_SECONDS,
                )
        except grpc.RpcError as error:
            _LOG.warning("%s: not registered, again in %g s: %s", self._resource, self._pause, error.details())
            self.close()
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST)
        else:
            _LOG.info("%s: %d devices registered", self._resource, len(self._devices))
            self._pause = _SHORTEST

    def close(self) -> None:
        """Be gone from the node: no server, no socket."""
        if self._server:
            self._over.set()
            with self._board.changed:
                self._board.changed.notify_all()
            rpc.end(self._server, self.socket)
            self._server = None

    def _serve(self) -> None:
        self._served += 1
        self._over = threading.Event()
        methods = {
            "GetDevicePluginOptions": rpc.unary(lambda _request, _context: _OPTIONS, api.Empty),
            "ListAndWatch": rpc.stream(self._list_and_watch, api.Empty),
            "GetPreferredAllocation": rpc.unary(self._prefer, api.PreferredAllocationRequest),
            "Allocate": rpc.unary(self._allocate, api.AllocateRequest),
            "PreStartContainer": rpc.unary(
                lambda _request, _context: api.PreStartContainerResponse(), api.PreStartContainerRequest
            ),
        }
        self._server = rpc.serve(self.socket, [rpc.service("v1beta1.DevicePlugin", methods)])

    def _list_and_watch(self, _: api.Empty, context: grpc.ServicerContext) -> Iterator[api.ListAndWatchResponse]:
        """All devices, and all of them again whenever one gets ill or well."""
        over, changed, said = self._over, self._board.changed, None
        rpc.wake_at_end(context, changed)
        while True:
            with changed:
                ill = self._ill()
                while ill == said and context.is_active() and not over.is_set():
                    changed.wait(faults.next_end(self._board, most=_IDLE_SECONDS))
                    ill = self._ill()
            if over.is_set() or not context.is_active():
                return
            if said is not None or ill:
                _LOG.info("%s: unhealthy: %s", self._resource, ", ".join(map(str, sorted(ill))) or "none")
            said = ill
            yield api.ListAndWatchResponse(devices=[self._device(each, ill) for each in self._devices.values()])

    def _prefer(
        self, request: api.PreferredAllocationRequest, context: grpc.ServicerContext
    ) -> api.PreferredAllocationResponse:
        answers = []
        for each in request.container_requests:
            available = self._known(each.available_deviceIDs, context)
            must = self._known(each.must_include_deviceIDs, context)
            size = each.allocation_size
            if not len(must) <= size <= len({*available, *must}):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{size} of {len(available)} devices cannot be had")
            if self._whole:
                chosen = linked(self._board, available, must, size)
            else:
                chosen = spread(list(self._devices.values()), available, must, size)
            answers.append(api.ContainerPreferredAllocationResponse(deviceIDs=[device.id for device in chosen]))
        return api.PreferredAllocationResponse(container_responses=answers)

    def _allocate(self, request: api.AllocateRequest, context: grpc.ServicerContext) -> api.AllocateResponse:
        sharing = self._board.config.sharing
        answers = []
        for each in request.container_requests:
            devices = self._known(each.devices_ids, context)
            shared = any(device.id != device.uuid for device in devices)
            if shared and len(devices) > 1 and sharing and sharing.fail_requests_greater_than_one:
                what = f"maximum request size for shared resources is 1; found {len(devices)}"
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"invalid request: {what}")
            for device in devices:
                if reason := self._board.unhealthy(device.gpu):
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{device.id} is unhealthy: {reason}")
            uuids = list(dict.fromkeys(device.uuid for device in devices))
            _LOG.info("%s: allocated %s", self._resource, ", ".join(device.id for device in devices))
            answers.append(
                api.ContainerAllocateResponse(
                    envs={"NVIDIA_VISIBLE_DEVICES": ",".join(uuids)},
                    cdi_devices=[api.CDIDevice(name=self._cdi.device_name(uuid)) for uuid in uuids],
                )
            )
        return api.AllocateResponse(container_responses=answers)

    def _known(self, ids: Iterable[str], context: grpc.ServicerContext) -> list[Device]:
        """In the plugin's own order, whatever the kubelet's."""
        wanted = set(ids)
        if unknown := wanted - self._devices.keys():
            what = f"unknown device: {', '.join(sorted(unknown))}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"invalid request: {what}")
        return [device for device in self._devices.values() if device.id in wanted]

    def _ill(self) -> frozenset[int]:
        return frozenset(gpu for gpu in {each.gpu for each in self._devices.values()} if self._board.unhealthy(gpu))

    def _device(self, device: Device, ill: frozenset[int]) -> api.Device:
        node = device.gpu * self._numa_nodes // self._board.config.count
        return api.Device(
            ID=device.id,
            health="Unhealthy" if device.gpu in ill else "Healthy",
            topology=api.TopologyInfo(nodes=[api.NUMANode(ID=node)]) if self._numa_nodes else None,
        )


def run(board: Board, cdi: Cdi, stop: threading.Event, *, folder: Path = FOLDER, numa: Path = NUMA) -> None:
    """Be the node's device plugin until `stop`; returns at once where no device is for it."""
    offered = resources(board)
    if not offered:
        return
    _sweep(folder, offered)
    # only sockets that the machine has: a kubelet that aligns devices refuses those of any other
    numa_nodes = len(list(numa.glob("node[0-9]*")))
    plugins = [Plugin(board, cdi, resource, folder, numa_nodes) for resource in offered]
    try:
        while not stop.is_set():
            down = board.plugin_down()
            for each in plugins:
                if down:
                    each.close()
                else:
                    each.look_after(_identity(folder / "kubelet.sock"))
            with board.changed:
                if board.plugin_down() == down and not stop.is_set():
                    board.changed.wait(faults.next_end(board, most=_POLL_SECONDS))
    finally:
        for each in plugins:
            each.close()


def _sweep(folder: Path, offered: Iterable[str]) -> None:
    """Remove the sockets of a plugin that was killed."""
    names = "|".join(re.escape(resource.partition("/")[2]) for resource in offered)
    for path in folder.glob("nvidia-*.sock"):
        if re.fullmatch(rf"nvidia-(?:{names})(?:-\d+)?\.sock", path.name):
            path.unlink(missing_ok=True)


def _identity(socket: Path) -> Seen:
    """Which kubelet listens there: each makes the socket anew. None while there is none."""
    with contextlib.suppress(OSError):
        found = socket.stat()
        return found.st_ino, found.st_ctime_ns
    return None


def _parts(gpu: Gpu, config: Config) -> Iterator[tuple[str, str]]:
    """What can be had of a GPU, and as which resource."""
    if not gpu.mig:
        yield gpu.uuid, GPU
    for instance in gpu.mig:
        yield instance.uuid, GPU if config.mig_strategy == "single" else mig_resource(instance.profile)


def _mask(devices: Iterable[Device]) -> int:
    return sum(1 << each.gpu for each in devices)
