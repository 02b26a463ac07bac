"""Emulated GPUs of a cluster: which nodes have which, how they are cut and shared, and who hands them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from sandbox.spec.base import KeyPath, Mistakes, Strict, reach
from sandbox.spec.gpu_profile import Profile, misfit, profile, profile_names, profiles

__all__ = [
    "GpuGroup",
    "Groups",
    "Profile",
    "contradictions",
    "gpu_nodes",
    "node_document",
    "profile",
    "profile_names",
    "profiles",
    "resources",
    "slice_devices",
]
MOST = 16
GPU = "nvidia.com/gpu"
_WORKER = "worker"


class Mig(Strict):
    """How the GPUs are cut into instances."""

    strategy: Literal["none", "single", "mixed"] = Field(
        default="mixed",
        description="mixed: a resource per profile, nvidia.com/mig-<profile>; single: all alike, as nvidia.com/gpu.",
    )
    instances: list[str] | None = Field(default=None, min_length=1, description="MIG profiles, the same on each GPU.")
    per_gpu: list[list[str]] | None = Field(
        default=None, alias="perGpu", description="MIG profiles of each GPU in turn; an empty list leaves one whole."
    )

    def of_each(self, count: int) -> list[list[str]]:
        """The profiles of each of `count` GPUs."""
        if self.strategy == "none":
            return []
        return [list(each) for each in self.per_gpu or [self.instances or []] * count]


class SharedResource(Strict):
    """One resource of which each device is offered several times."""

    name: str = Field(description="nvidia.com/gpu, or nvidia.com/mig-<profile>.")
    replicas: int = Field(ge=2, description="How often each device is offered.")


class TimeSlicing(Strict):
    """Time slicing as NVIDIA's device plugin configures it; the memory is not divided."""

    rename_by_default: bool = Field(default=False, alias="renameByDefault", description="Offer them as <name>.shared.")
    fail_requests_greater_than_one: bool = Field(
        default=False, alias="failRequestsGreaterThanOne", description="Refuse a container that asks for two shares."
    )
    resources: list[SharedResource] = Field(min_length=1)


class Sharing(Strict):
    """How several containers share a device."""

    time_slicing: TimeSlicing = Field(alias="timeSlicing")


class Dra(Strict):
    """What the DRA driver is told."""

    extended_resource: bool = Field(
        default=False,
        alias="extendedResource",
        description="Give these devices to pods that ask for nvidia.com/gpu (DeviceClass.spec.extendedResourceName).",
    )


class GpuGroup(Strict):
    """Nodes with the same GPUs. A field is checked against those before it, so that all mistakes are told at once."""

    profile: str = Field(description="A file of sandbox/gpu/profiles/, such as h100.")
    count: int = Field(default=1, ge=1, le=MOST, description="GPUs of each node.")
    mode: Literal["device-plugin", "dra", "both"] = Field(
        default="device-plugin",
        description="Who hands them out; both: the lower half (rounded up) the device plugin, the rest the DRA driver.",
    )
    nodes: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None,
        min_length=1,
        description="Positions in kindConfig.nodes, from 0; all workers where left out, or all nodes without workers.",
    )
    mig: Mig | None = None
    dra: Dra = Field(default_factory=Dra)
    sharing: Sharing | None = None

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in profile_names():
            raise ValueError(f"there is no GPU profile {name!r}; there are {', '.join(profile_names())}")
        return name

    @field_validator("mode")
    @classmethod
    def _can_be_halved(cls, mode: str, info: ValidationInfo) -> str:
        if mode == "both" and info.data.get("count") == 1:
            raise ValueError("mode: both needs at least 2 GPUs, one for each side; write count: 2, or another mode")
        return mode

    @field_validator("mig")
    @classmethod
    def _cut(cls, mig: Mig | None, info: ValidationInfo) -> Mig | None:
        name, count = info.data.get("profile"), info.data.get("count")
        if mig and (problems := _mig_form(mig, count) + _mig_fit(mig, name)):
            raise Mistakes(problems)
        return mig

    @field_validator("dra")
    @classmethod
    def _stands_in(cls, dra: Dra, info: ValidationInfo) -> Dra:
        mode = info.data.get("mode")
        if dra.extended_resource and mode in {"device-plugin", "both"}:
            words = f"needs mode: dra; with mode: {mode} nvidia.com/gpu is the device plugin's on these nodes"
            raise Mistakes([(("extendedResource",), words)])
        return dra

    @field_validator("sharing")
    @classmethod
    def _shares_what_is_there(cls, sharing: Sharing | None, info: ValidationInfo) -> Sharing | None:
        if sharing is None or not {"profile", "count", "mode", "mig"} <= info.data.keys():
            return sharing
        offered = _offered(info.data["count"], info.data["mode"], info.data["mig"])
        valid = ", ".join(offered) or f"nothing: with mode: {info.data['mode']} the device plugin has no GPU"
        problems: list[tuple[KeyPath, str]] = []
        for index, each in enumerate(sharing.time_slicing.resources):
            here: KeyPath = ("timeSlicing", "resources", index, "name")
            if each.name not in offered:
                problems.append((here, f"these nodes do not offer {each.name}; they offer {valid}"))
            elif each.name in [other.name for other in sharing.time_slicing.resources[:index]]:
                problems.append((here, f"{each.name} stands here twice"))
        if problems:
            raise Mistakes(problems)
        return sharing


def _mig_form(mig: Mig, count: int | None) -> list[tuple[KeyPath, str]]:
    """What is wrong with the keys of `mig`, whatever the GPU."""
    given = [key for key, value in (("instances", mig.instances), ("perGpu", mig.per_gpu)) if value is not None]
    if mig.strategy == "none":
        return [((key,), "strategy: none cuts nothing; leave this out, or choose single or mixed") for key in given]
    if len(given) != 1:
        return [((), f"strategy: {mig.strategy} needs either `instances` (the same on each GPU) or `perGpu`")]
    if mig.per_gpu is None:
        return [] if mig.strategy == "mixed" else _alike([mig.instances or []], "instances")
    problems: list[tuple[KeyPath, str]] = []
    if count is not None and len(mig.per_gpu) != count:
        problems.append((("perGpu",), f"has {len(mig.per_gpu)} entries; count is {count}: write one for each GPU"))
    if not any(mig.per_gpu):
        problems.append((("perGpu",), "cuts no GPU; leave `mig` out"))
    elif mig.strategy == "single":
        problems += _alike(mig.per_gpu, "perGpu")
    return problems


def _alike(cuts: Sequence[Sequence[str]], key: str) -> list[tuple[KeyPath, str]]:
    """With strategy single all is nvidia.com/gpu: one MIG profile, on every GPU."""
    kinds = list(dict.fromkeys(name for cut in cuts for name in cut))
    if len(kinds) == 1 and all(cuts):
        return []
    seen = ", ".join(kinds) + ("" if all(cuts) else " and a whole GPU")
    return [((key,), f"strategy: single offers one kind of instance, and here are {seen}; write strategy: mixed")]


def _mig_fit(mig: Mig, name: str | None) -> list[tuple[KeyPath, str]]:
    """What does not exist on that GPU or does not fit it."""
    if name is None or mig.strategy == "none":
        return []
    table = profile(name).mig
    if not table:
        able = [each for each, model in profiles().items() if model.mig]
        return [((), f"{name} cannot be cut by MIG; these can: {', '.join(able)}")]
    if mig.per_gpu is not None:
        return [
            (("perGpu", gpu, *keys), f"{name}: {words}")
            for gpu, cut in enumerate(mig.per_gpu)
            for keys, words in misfit(table, cut)
        ]
    return [(("instances", *keys), f"{name}: {words}") for keys, words in misfit(table, mig.instances or [])]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


class _OneOrMany:
    """One group may stand without the list around it."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


Groups = Annotated[list[GpuGroup], BeforeValidator(_as_list), _OneOrMany()]


def contradictions(raw: Any) -> list[tuple[KeyPath, str]]:
    """What `gpu` says of nodes that the rest of a cluster's document does not bear out: (keys, message).

    `raw` is read as far as it can be, so that this can be asked where another key breaks the model.
    """
    given = reach(raw, "gpu")
    groups = given if isinstance(given, list) else [given] if isinstance(given, dict) else []
    if groups and reach(raw, "provider") == "existing":
        why = "an existing cluster's nodes are not ours: neither image nor device files can be put into them"
        return [(("gpu",), f"{why}; leave `gpu` out, or use provider: kind")]
    roles = _roles(raw)
    problems: list[tuple[KeyPath, str]] = []
    owners: dict[int, int] = {}
    for number, group in enumerate(groups):
        here: KeyPath = ("gpu", number) if isinstance(given, list) else ("gpu",)
        chosen = reach(group, "nodes")
        indices = chosen if isinstance(chosen, list) else _defaults(roles)
        for position, index in enumerate(indices):
            keys = (*here, "nodes", position) if isinstance(chosen, list) else here
            if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                continue  # the model has said so
            if index >= len(roles):
                there = f"kindConfig has {len(roles)} node{'s' if len(roles) != 1 else ''}: 0 to {len(roles) - 1}"
                problems.append((keys, f"there is no node {index}; {there}"))
            elif index in owners:
                which = "this group" if owners[index] == number else f"gpu[{owners[index]}]"
                problems.append((keys, f"node {index} ({roles[index]}) has its GPUs from {which} already"))
            else:
                owners[index] = number
    return problems


def _roles(raw: Any) -> list[str]:
    nodes = reach(raw, "kindConfig", "nodes")
    if not isinstance(nodes, list) or not nodes:
        return ["control-plane"]
    return [str(reach(node, "role") or "control-plane") for node in nodes]


def _defaults(roles: Sequence[str]) -> list[int]:
    return [index for index, role in enumerate(roles) if role == _WORKER] or list(range(len(roles)))


def gpu_nodes(groups: Sequence[GpuGroup], roles: Sequence[str]) -> dict[int, GpuGroup]:
    """Position in kindConfig.nodes -> the group whose GPUs that node has; `roles` are those of the nodes in order."""
    return {index: group for group in groups for index in (_defaults(roles) if group.nodes is None else group.nodes)}


def _halves(count: int, mode: str) -> tuple[range, range]:
    """The GPUs of the device plugin and those of the DRA driver, as the emulator's own configuration has it."""
    plugin = {"device-plugin": count, "dra": 0, "both": (count + 1) // 2}[mode]
    return range(plugin), range(plugin, count)


def _offered(count: int, mode: str, mig: Mig | None) -> dict[str, int]:
    """The resources that the device plugin of such a node offers, before sharing, and how many of each."""
    cuts = mig.of_each(count) if mig else []
    found: Counter[str] = Counter()
    for index in _halves(count, mode)[0]:
        cut = cuts[index] if index < len(cuts) else []
        if mig is not None and cut and mig.strategy == "mixed":
            found.update(f"nvidia.com/mig-{name.replace('+', '.')}" for name in cut)  # `+` is no letter of a resource
        else:
            found[GPU] += len(cut) or 1
    return dict(found)


def resources(group: GpuGroup) -> dict[str, int]:
    """The resources that each node of the group comes to offer through the device plugin, and how many of each."""
    offered = _offered(group.count, group.mode, group.mig)
    slicing = group.sharing.time_slicing if group.sharing else None
    for shared in slicing.resources if slicing else ():
        amount = offered.pop(shared.name)
        name = f"{shared.name}.shared" if slicing and slicing.rename_by_default else shared.name
        offered[name] = amount * shared.replicas
    return offered


def slice_devices(group: GpuGroup) -> int:
    """How many devices the DRA driver of each node of the group publishes: whole GPUs and instances."""
    cuts = group.mig.of_each(group.count) if group.mig else []
    return sum(len(cuts[index]) or 1 if index < len(cuts) else 1 for index in _halves(group.count, group.mode)[1])


def node_document(group: GpuGroup, node: str) -> dict[str, Any]:
    """What the emulator on that node is told; its keys are those of sandbox/gpu/emulator/config.py."""
    slicing = group.sharing.time_slicing if group.sharing else None
    return {
        "node": node,
        "mode": group.mode,
        "count": group.count,
        "profile": _profile_document(group.profile),
        "mig_strategy": group.mig.strategy if group.mig else "none",
        "mig": group.mig.of_each(group.count) if group.mig else [],
        "sharing": {
            "replicas": {each.name: each.replicas for each in slicing.resources},
            "rename_by_default": slicing.rename_by_default,
            "fail_requests_greater_than_one": slicing.fail_requests_greater_than_one,
        }
        if slicing
        else None,
        "extended_resource": group.dra.extended_resource,
    }


def _profile_document(name: str) -> dict[str, Any]:
    model = profile(name)
    same = ("product", "brand", "architecture", "compute_capability", "driver_version", "cuda_version")
    return {
        "name": name,
        **{key: getattr(model, key) for key in (*same, "pci_device_id", "hbm", "nvlinks")},
        "memory_mib": model.memory,
        "memory_bandwidth_gbs": model.memory_bandwidth,
        "idle_power": model.power.idle,
        "power_limit": model.power.limit,
        "idle_sm_clock": model.clocks.idle,
        "max_sm_clock": model.clocks.sm,
        "memory_clock": model.clocks.memory,
        "idle_temperature": model.temperatures.idle,
        "load_temperature": model.temperatures.load,
        "slowdown_temperature": model.temperatures.slowdown,
        "mig": {
            key: {
                **shape.model_dump(include={"id", "slices", "memory_slices", "multiprocessors", "most"}),
                "memory_mib": shape.memory,
            }
            for key, shape in model.mig.items()
        },
    }
