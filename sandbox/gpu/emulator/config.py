"""What a node's emulator is told to be: one JSON document, made and checked by sandbox/spec/gpu.py."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["device-plugin", "dra", "both"]


@dataclass(frozen=True)
class MigProfile:
    """One row of a GPU's MIG table: `slices` of 7 compute slices, `memory_mib`, and how many fit (`most`)."""

    id: int
    slices: int
    memory_slices: int
    memory_mib: int
    multiprocessors: int
    most: int


@dataclass(frozen=True)
class Profile:
    """A GPU model as its data sheet has it: power in W, clocks in MHz, temperatures in degrees Celsius, MiB."""

    name: str
    product: str
    brand: str
    architecture: str
    compute_capability: str
    driver_version: str
    cuda_version: str
    pci_device_id: str
    memory_mib: int
    memory_bandwidth_gbs: int
    hbm: bool
    idle_power: float
    power_limit: float
    idle_sm_clock: int
    max_sm_clock: int
    memory_clock: int
    idle_temperature: float
    load_temperature: float
    slowdown_temperature: float
    nvlinks: int
    mig: dict[str, MigProfile]


@dataclass(frozen=True)
class Sharing:
    """Time slicing, as NVIDIA's device plugin configures it: replicas per resource name."""

    replicas: dict[str, int]
    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False


@dataclass(frozen=True)
class Config:
    """One node's GPUs.

    Attributes:
        node: the node's name.
        mode: who offers the devices. `both` gives the lower half (rounded up) to the device plugin, the others to DRA:
            a device is never in two hands.
        mig_strategy: `none`, `single` (instances are offered as nvidia.com/gpu) or `mixed` (nvidia.com/mig-<profile>).
        mig: names of the MIG profiles each GPU is cut into, by index; an empty list leaves it whole.
        extended_resource: let the DeviceClass stand in for nvidia.com/gpu (`spec.extendedResourceName`).
    """

    node: str
    mode: Mode
    count: int
    profile: Profile
    mig_strategy: Literal["none", "single", "mixed"] = "none"
    mig: list[list[str]] = field(default_factory=list)
    sharing: Sharing | None = None
    extended_resource: bool = False

    @property
    def plugin_indices(self) -> range:
        """The GPUs the device plugin offers."""
        if self.mode == "both":
            return range((self.count + 1) // 2)
        return range(self.count if self.mode == "device-plugin" else 0)

    @property
    def dra_indices(self) -> range:
        """The GPUs the DRA driver offers."""
        return range(0) if self.mode == "device-plugin" else range(len(self.plugin_indices), self.count)


def parse(raw: dict[str, Any]) -> Config:
    """The document as values; its keys are the attributes' names. It was checked where it was made."""
    profile = dict(raw["profile"])
    profile["mig"] = {name: MigProfile(**row) for name, row in profile["mig"].items()}
    sharing = raw.get("sharing")
    rest = {key: value for key, value in raw.items() if key not in {"profile", "sharing"}}
    return Config(profile=Profile(**profile), sharing=Sharing(**sharing) if sharing else None, **rest)


def load(path: Path) -> Config:
    """Read one node's document."""
    return parse(json.loads(path.read_text(encoding="utf-8")))
