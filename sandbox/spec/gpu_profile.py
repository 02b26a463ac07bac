"""GPU models as data: one file of sandbox/gpu/profiles/ each, with the geometry that MIG can cut them into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from sandbox import paths
from sandbox.spec.base import API_VERSION, KeyPath, Metadata, Mistakes, Strict
from sandbox.spec.loader import load

COMPUTE_SLICES, MEMORY_SLICES = 7, 8
MEDIA = "+me"  # a profile that carries the media engines; a GPU has one set of them


class _Camel(Strict):
    model_config = ConfigDict(alias_generator=to_camel)


class MigShape(_Camel):
    """One profile of a GPU's MIG table.

    Attributes:
        memory: MiB.
        most: how many of it one GPU can hold.
        placements: the memory slices it may start at, as `nvidia-smi mig -lgipp` lists them.
    """

    id: int
    slices: int = Field(ge=1, le=COMPUTE_SLICES)
    memory_slices: int = Field(ge=1, le=MEMORY_SLICES)
    memory: int = Field(gt=0)
    multiprocessors: int = Field(gt=0)
    most: int = Field(ge=1)
    placements: list[int] = Field(min_length=1)


class Power(_Camel):
    """In W."""

    idle: float = Field(gt=0)
    limit: float = Field(gt=0)


class Clocks(_Camel):
    """In MHz; `sm` is the highest of the multiprocessors."""

    idle: int = Field(gt=0)
    sm: int = Field(gt=0)
    memory: int = Field(gt=0)


class Temperatures(_Camel):
    """In degrees Celsius; `load` is where full load settles, `slowdown` where the driver slows the GPU down."""

    idle: float
    load: float
    slowdown: float


class Profile(_Camel):
    """One GPU model.

    Attributes:
        sources: where its figures come from.
        assumed: keys whose value nobody publishes, and why it is what it is.
        product: as nvidia-smi prints it.
        memory: MiB as nvidia-smi reports it.
        memory_bandwidth: GB/s.
        hbm: whether its memory has a thermometer.
        mig: its MIG table; empty where it cannot be cut.
    """

    api_version: Literal["sandbox/v1"] = Field(default=API_VERSION, alias="apiVersion")
    kind: Literal["Gpu"]
    metadata: Metadata
    sources: list[str] = Field(min_length=1)
    assumed: dict[str, str] = Field(default_factory=dict)
    product: str
    brand: str
    architecture: Literal["Turing", "Ampere", "Ada Lovelace", "Hopper", "Blackwell"]
    compute_capability: str
    driver_version: str
    cuda_version: str
    pci_device_id: str
    memory: int = Field(gt=0)
    memory_bandwidth: int = Field(gt=0)
    hbm: bool
    power: Power
    clocks: Clocks
    temperatures: Temperatures
    nvlinks: int = Field(ge=0)
    mig: dict[str, MigShape] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _assumes_what_is_there(self) -> Profile:
        unknown = [key for key in self.assumed if not _has(self, key)]
        if unknown:
            raise Mistakes([(("assumed", key), "is no key of this profile") for key in unknown])
        return self


def _has(profile: Profile, dotted: str) -> bool:
    there: object = profile.model_dump(by_alias=True)
    for key in dotted.split("."):
        if not isinstance(there, Mapping) or key not in there:
            return False
        there = there[key]
    return True


def profile_names() -> list[str]:
    """Every profile, in order."""
    return sorted(file.stem for file in (paths.shipped("gpu") / "profiles").glob("*.yaml"))


@cache
def profile(name: str) -> Profile:
    """The profile of that name, one of `profile_names`."""
    return load(paths.shipped("gpu") / "profiles" / f"{name}.yaml", Profile).model


def profiles() -> dict[str, Profile]:
    """Every profile by name."""
    return {name: profile(name) for name in profile_names()}


def place(table: Mapping[str, MigShape], wanted: Sequence[str]) -> list[int] | None:
    """Where each wanted instance starts, in memory slices; None where they do not fit on one GPU together.

    What NVIDIA's driver asks for: an instance lies at one of its profile's placements, no two share a memory slice,
    the compute slices suffice, and of no profile there are more than its `most`; of those with media engines there is
    one in all. The driver takes the first free place and so may refuse an order of creation that another order would
    not; here every order is tried, as the MIG manager does.
    """
    counts = Counter(wanted)
    if any(counts[name] > table[name].most for name in counts) or sum(name.endswith(MEDIA) for name in wanted) > 1:
        return None
    if sum(table[name].slices for name in wanted) > COMPUTE_SLICES:
        return None
    # the largest first: they have the fewest places
    order = sorted(range(len(wanted)), key=lambda index: -table[wanted[index]].memory_slices)
    starts: dict[int, int] = {}

    def rest(position: int, taken: int) -> bool:
        if position == len(order):
            return True
        shape = table[wanted[order[position]]]
        for start in shape.placements:
            mask = ((1 << shape.memory_slices) - 1) << start
            if not taken & mask and rest(position + 1, taken | mask):
                starts[order[position]] = start
                return True
        return False

    return [starts[index] for index in range(len(wanted))] if rest(0, 0) else None


def beside(table: Mapping[str, MigShape], there: Sequence[str]) -> list[str]:
    """The profiles of which one more fits beside those that are there."""
    return [name for name in table if place(table, [*there, name]) is not None]


def misfit(table: Mapping[str, MigShape], wanted: Sequence[str]) -> list[tuple[KeyPath, str]]:
    """Which of the wanted instances does not exist or fit, by its position, and what would be valid."""
    unknown: list[tuple[KeyPath, str]] = [
        ((index,), f"has no MIG profile {name!r}; it has {', '.join(table)}")
        for index, name in enumerate(wanted)
        if name not in table
    ]
    if unknown or place(table, wanted) is not None:
        return unknown
    index = next(index for index in range(len(wanted)) if place(table, wanted[: index + 1]) is None)
    there = list(wanted[:index])
    used = sum(table[name].slices for name in there), sum(table[name].memory_slices for name in there)
    words = f"{wanted[index]} does not fit beside {', '.join(there) or 'nothing'}"
    words += f" ({used[0]} of {COMPUTE_SLICES} compute and {used[1]} of {MEMORY_SLICES} memory slices taken)"
    return [((index,), f"{words}; what fits there: {', '.join(beside(table, there)) or 'nothing more'}")]
