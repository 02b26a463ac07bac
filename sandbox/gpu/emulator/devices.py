"""The devices of one node and what is known of them now. Shared by every thread of the emulator."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from sandbox.gpu.emulator.config import Config, MigProfile

DRIVER = "gpu.nvidia.com"
_NAMESPACE = uuid.UUID("6f0d2c1e-6b1c-5b0e-9a53-0c5a7d4f1e21")


@dataclass(frozen=True)
class MigInstance:
    """A part of one GPU, as its driver numbers it: GPU instance `gi`, compute instance `ci`."""

    gpu: int
    position: int
    gi: int
    ci: int
    profile: str
    uuid: str
    shape: MigProfile

    @property
    def name(self) -> str:
        """In a ResourceSlice."""
        return f"gpu-{self.gpu}-mig-{self.profile.replace('.', '').replace('+', '-')}-{self.gi}-{self.ci}"


@dataclass(frozen=True)
class Gpu:
    """A physical GPU. `mig` is empty where it is whole."""

    index: int
    uuid: str
    serial: str
    pci_bus_id: str
    mig: tuple[MigInstance, ...] = ()

    @property
    def minor(self) -> int:
        """Of /dev/nvidia<minor>."""
        return self.index

    @property
    def name(self) -> str:
        """In a ResourceSlice."""
        return f"gpu-{self.minor}"

    @property
    def uuids(self) -> tuple[str, ...]:
        """What can be claimed of it: itself, or its instances."""
        return tuple(each.uuid for each in self.mig) or (self.uuid,)


@dataclass(frozen=True)
class Fault:
    """One fault as the harness declared it; it ends by itself at `until` (Unix time, seconds).

    Attributes:
        gpu: index of the device; None for a fault of the node (`plugin_down`).
        xid: what the XID metric shows.
        unhealthy: the device may not be given to anybody.
        lost: it cannot be reached any more: no container that holds it can start.
        dbe: double-bit (uncorrectable) ECC errors it adds.
        sbe: single-bit (corrected) ECC errors it adds.
        throttle: `thermal` or `power`, or empty.
        clock: share of its full clock that is left to it while it is throttled.
        plugin_down: device plugin and DRA driver are gone from the node.
    """

    id: str
    until: float
    gpu: int | None = None
    xid: int = 0
    unhealthy: bool = False
    lost: bool = False
    dbe: int = 0
    sbe: int = 0
    throttle: str = ""
    clock: float = 1.0
    plugin_down: bool = False


@dataclass(frozen=True)
class Holder:
    """A container that holds devices."""

    namespace: str
    pod: str
    container: str
    uuids: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What the sensors of one device (a whole GPU or a MIG instance) say.

    Shares are 0..1, memory in MiB, power in W, energy in mJ, clocks in MHz, temperature in degrees Celsius, bandwidth
    in bytes per second.
    """

    utilization: float = 0.0
    memory_utilization: float = 0.0
    tensor_active: float = 0.0
    memory_used: float = 0.0
    power: float = 0.0
    energy: float = 0.0
    temperature: float = 0.0
    memory_temperature: float = 0.0
    sm_clock: float = 0.0
    nvlink_bandwidth: float = 0.0


@dataclass
class Board:
    """The node's GPUs, their faults, holders and readings.

    Everything that changes is replaced, never changed in place, under `changed`; whoever waits on it hears of new
    faults.
    """

    config: Config
    gpus: tuple[Gpu, ...]
    changed: threading.Condition = field(default_factory=threading.Condition)
    faults: tuple[Fault, ...] = ()
    holders: tuple[Holder, ...] = ()
    readings: dict[str, Reading] = field(default_factory=dict)
    version: int = 0  # of the faults

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Take over what the harness declares now, and wake those who wait when it is something else than before."""
        with self.changed:
            fresh = tuple(faults)
            if fresh != self.faults:
                self.faults = fresh
                self.version += 1
                self.changed.notify_all()

    def active(self, gpu: int | None = None) -> list[Fault]:
        """The faults that act now: of one GPU, or (None) of the node itself."""
        now = time.time()
        return [fault for fault in self.faults if fault.gpu == gpu and fault.until > now]

    def unhealthy(self, gpu: int) -> str:
        """Why this GPU may not be given to anybody; empty when it may."""
        return next((f"XID {fault.xid}" if fault.xid else "lost" for fault in self.active(gpu) if fault.unhealthy), "")

    def lost(self, gpu: int) -> bool:
        """Whether it has fallen off the bus."""
        return any(fault.lost for fault in self.active(gpu))

    def plugin_down(self) -> bool:
        """Whether device plugin and DRA driver are to be gone."""
        return any(fault.plugin_down for fault in self.active())

    def gpu_of(self, claimed: str) -> Gpu:
        """The GPU that a claimed UUID (its own or that of one of its instances) belongs to. Raises KeyError."""
        for gpu in self.gpus:
            if claimed == gpu.uuid or claimed in gpu.uuids:
                return gpu
        raise KeyError(claimed)


def board(config: Config) -> Board:
    """The devices a configuration describes; the same node always gets the same UUIDs."""
    return Board(config, tuple(_gpu(config, index) for index in range(config.count)))


def _gpu(config: Config, index: int) -> Gpu:
    own = uuid.uuid5(_NAMESPACE, f"{config.node}/{index}")
    cut = config.mig[index] if config.mig_strategy != "none" and index < len(config.mig) else []
    return Gpu(
        index=index,
        uuid=f"GPU-{own}",
        serial=f"{own.int % 10**13:013d}",
        pci_bus_id=f"00000000:{0x10 + index * 8:02X}:00.0",
        mig=tuple(_instance(config, index, position, name) for position, name in enumerate(cut)),
    )


def _instance(config: Config, gpu: int, position: int, profile: str) -> MigInstance:
    own = uuid.uuid5(_NAMESPACE, f"{config.node}/{gpu}/{position}/{profile}")
    shape = config.profile.mig[profile]
    # the driver numbers seventh parts from 7 on, halves from 1 on; only that they differ matters to anybody
    first = {7: 0, 4: 1, 3: 1, 2: 3}.get(shape.slices, 7)
    return MigInstance(gpu, position, first + position, 0, profile, f"MIG-{own}", shape)
