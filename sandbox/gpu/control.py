"""The emulated GPUs of a cluster from outside: how they are, who holds them, and faults put on them and taken off.

Faults are entries of the ConfigMap `faults`, under a key for each node, and each has its end: should this program be
killed, the emulator ends them by itself. Node and harness share a clock: nodes are containers of this machine.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from sandbox.errors import ClusterError, UsageError
from sandbox.gpu.emulator.devices import Fault
from sandbox.kube import ApiError, Kube, Object, Seen
from sandbox.kube.conditions import is_ready

NAMESPACE = "gpu-emulator"
HEALTHY = "Healthy"
_PORT = 9400
_FAULTS = "faults"
_SELECTOR = "app.kubernetes.io/name=gpu-emulator"
_CONFLICT = 409
_ATTEMPTS = 30
_MOST_PAUSE = 0.2
Declared = dict[str, list[Object]]


class _Said(BaseModel):
    """What an emulator says; what it says beside is left aside."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Holder(_Said):
    """A container that holds a device or a part of one."""

    namespace: str
    pod: str
    container: str
    uuids: tuple[str, ...]


class Instance(_Said):
    """A MIG instance."""

    uuid: str
    profile: str


class Device(_Said):
    """One GPU now. Memory in MiB, power in W, temperature in degrees Celsius, utilization in percent."""

    node: str
    index: int
    uuid: str
    name: str
    health: str
    offered_by: str
    holders: tuple[Holder, ...] = ()
    faults: tuple[str, ...] = ()
    mig_devices: tuple[Instance, ...] = ()
    utilization_gpu: float = 0.0
    memory_used: float = 0.0
    memory_total: float = 0.0
    temperature_gpu: float = 0.0
    power_draw: float = 0.0
    power_limit: float = 0.0
    xid: int = 0
    throttle: str = ""
    lost: bool = False
    ecc_corrected: int = 0
    ecc_uncorrected: int = 0

    @property
    def healthy(self) -> bool:
        """Whether it may be given to somebody."""
        return self.health == HEALTHY

    @property
    def uuids(self) -> tuple[str, ...]:
        """What can be claimed of it: itself, or its instances."""
        return tuple(each.uuid for each in self.mig_devices) or (self.uuid,)

    @property
    def label(self) -> str:
        """How a person calls it."""
        return f"GPU {self.index} of {self.node}"


class Slowed(_Said):
    """A pod whose server the emulator slows, or could not slow, and why."""

    namespace: str
    pod: str
    why: str = ""


class NodeState(_Said):
    """The GPUs of one node.

    Attributes:
        emulator: the pod that said so.
        trouble: why nothing is known of them; empty where it is.
    """

    node: str
    emulator: str
    trouble: str = ""
    mode: str = ""
    devices: tuple[Device, ...] = ()
    plugin_down: bool = False
    slowed: tuple[Slowed, ...] = ()
    not_slowed: tuple[Slowed, ...] = Field(default=())


def states(kube: Kube) -> list[NodeState]:
    """The GPUs of every node that has some, in the order of the nodes' names.

    Raises:
        UsageError: this cluster has no emulated GPUs.
    """
    found = _emulators(kube)
    if not found:
        raise _nothing(kube)
    return [_read(kube, node, pod) for node, pod in sorted(found.items())]


def state(kube: Kube, node: str) -> NodeState:
    """The GPUs of one node.

    Raises:
        UsageError: this cluster has no emulated GPUs, or not on that node; names the nodes that have some.
    """
    found = _emulators(kube)
    if not found:
        raise _nothing(kube)
    if node not in found:
        raise UsageError("has no emulated GPUs", where=node, fix=f"use one of: {', '.join(sorted(found))}")
    return _read(kube, node, found[node])


def only(there: Sequence[NodeState], node: str | None) -> str:
    """The node meant: the one named, or without a name the only one that has GPUs.

    Raises:
        UsageError: it has none, or several have; names those that have some.
    """
    names = [each.node for each in there]
    fix = f"use one of: {', '.join(names)}"
    if node is None and len(names) > 1:
        raise UsageError("several nodes have GPUs: say which", where="node", fix=fix)
    if node is not None and node not in names:
        raise UsageError("has no emulated GPUs", where=node, fix=fix)
    return node or names[0]


def device(there: Sequence[NodeState], node: str, gpu: int) -> Device:
    """One GPU of those.

    Raises:
        UsageError: there is no such node or no such GPU; names those there are.
        ClusterError: the node's emulator does not answer.
    """
    for each in there:
        if each.node != node:
            continue
        if each.trouble:
            raise ClusterError(each.trouble, where=node, fix=f"kubectl -n {NAMESPACE} logs {each.emulator}")
        for found in each.devices:
            if found.index == gpu:
                return found
        raise UsageError(f"has no GPU {gpu}", where=node, fix=f"use one of: {_words(each.devices)}")
    nodes = ", ".join(each.node for each in there)
    raise UsageError("has no emulated GPUs", where=node, fix=f"use one of: {nodes}")


def inject(kube: Kube, faults: Mapping[str, Sequence[Fault]]) -> None:
    """Put faults on nodes, beside those that act there already. Does not wait: see `acting`.

    Args:
        kube: the cluster, as its administrator.
        faults: by the node's name.

    Raises:
        UsageError: this cluster has no emulated GPUs.
        ApiError: the API server refused it.
    """

    def add(declared: Declared) -> Declared:
        return {
            **declared,
            **{node: [*declared.get(node, ()), *(asdict(each) for each in new)] for node, new in faults.items()},
        }

    _change(kube, add)


def heal(kube: Kube, ids: Collection[str] | None = None) -> list[str]:
    """Take faults off, all of them without `ids`; what is not there is no error.

    Returns:
        The ids of those that acted until now.

    Raises:
        UsageError: this cluster has no emulated GPUs.
        ApiError: the API server refused it.
    """
    healed: list[str] = []

    def drop(declared: Declared) -> Declared:
        healed.clear()
        kept: Declared = {}
        for node, faults in declared.items():
            gone = [str(each["id"]) for each in faults if ids is None or each["id"] in ids]
            healed.extend(gone)
            kept[node] = [each for each in faults if each["id"] not in gone]
        return kept

    _change(kube, drop)
    return healed


def acting(kube: Kube, faults: Mapping[str, Sequence[Fault]]) -> Callable[[], Seen[None]]:
    """A condition: the emulators have taken all of these over."""

    def look() -> Seen[None]:
        found = {node: (_now(kube, node), new) for node, new in faults.items()}
        missing = [f"{node}: {each.id}" for node, (now, new) in found.items() for each in new if not _acts(now, each)]
        troubles = [f"{node}: {now.trouble}" for node, (now, _) in found.items() if now.trouble]
        return Seen(not missing, None, "\n".join([f"not heard of {', '.join(missing)}", *troubles]))

    return look


def ended(kube: Kube, faults: Mapping[str, Sequence[Fault]]) -> Callable[[], Seen[None]]:
    """A condition: the emulators answer, and none of these acts any more."""

    def look() -> Seen[None]:
        left = []
        for node, those in faults.items():
            now = _now(kube, node)
            left += [f"{node}: {now.trouble}"] if now.trouble else []
            left += [f"{node}: {each.id} still acts" for each in those if _acts(now, each)]
        return Seen(not left, None, "\n".join(left))

    return look


def _acts(now: NodeState, fault: Fault) -> bool:
    if fault.gpu is None:
        return now.plugin_down
    return any(fault.id in each.faults for each in now.devices)


def _now(kube: Kube, node: str) -> NodeState:
    """As `state`; an emulator that is away for a moment is no mistake of the caller."""
    try:
        return state(kube, node)
    except UsageError as error:
        return NodeState(node=node, emulator="", trouble=error.what)


def _emulators(kube: Kube) -> dict[str, str]:
    """Node -> its emulator's pod: one that is Ready before one that is not, none that is going."""
    found: dict[str, str] = {}
    pods = kube.list("v1", "Pod", NAMESPACE, label_selector=_SELECTOR)
    for pod in sorted(pods, key=is_ready):
        node = pod["spec"].get("nodeName")
        if node and not pod["metadata"].get("deletionTimestamp"):
            found[node] = pod["metadata"]["name"]
    return found


def proxied(kube: Kube, namespace: str, pod: str, port: int, path: str) -> Any:
    """What a pod answers on HTTP, asked through the API server: parsed JSON, else text; None where it does not."""
    answer = kube.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}")
    if not answer.ok:
        return None
    return answer.text if answer.body is None else answer.body


def metrics(kube: Kube, now: NodeState) -> str:
    """What monitoring reads of that node's GPUs; empty where it cannot."""
    found = proxied(kube, NAMESPACE, now.emulator, _PORT, "/metrics")
    return found if isinstance(found, str) else ""


def _read(kube: Kube, node: str, pod: str) -> NodeState:
    said = proxied(kube, NAMESPACE, pod, _PORT, "/state")
    if said is None:
        return NodeState(node=node, emulator=pod, trouble="its GPU emulator does not answer")
    try:
        devices = [{**each, "node": node} for each in said["devices"]]
        return NodeState.model_validate({**said, "devices": devices, "node": node, "emulator": pod})
    except (ValidationError, TypeError, KeyError) as error:
        raise ClusterError(
            "the GPU emulator speaks another language than this program",
            where=node,
            fix="sandbox up",
            details=[str(error)],
        ) from error


def _change(kube: Kube, change: Callable[[Declared], Declared]) -> None:
    """Change what is declared, as often as others do so at the same time; what is over is dropped on the way."""
    for _ in range(_ATTEMPTS):
        found = kube.get("v1", "ConfigMap", _FAULTS, NAMESPACE)
        if found is None:
            raise _nothing(kube)
        before: dict[str, str] = found.get("data") or {}
        after = change({key.removesuffix(".json"): _current(text) for key, text in before.items()})
        texts = {f"{node}.json": json.dumps(faults) if faults else None for node, faults in after.items()}
        data = {key: text for key, text in texts.items() if text != before.get(key)}
        if not data:
            return
        version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        try:
            kube.patch("v1", "ConfigMap", _FAULTS, {"metadata": version, "data": data}, NAMESPACE)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
            time.sleep(random.uniform(0, _MOST_PAUSE))  # noqa: S311 - so that two do not go on meeting
        else:
            return
    raise ClusterError("others keep changing the faults", where=f"ConfigMap {NAMESPACE}/{_FAULTS}", fix="try again")


def _current(text: str) -> list[Object]:
    """The faults of one node that are not over; what cannot be read acts on nothing, and is dropped."""
    try:
        return [each for each in json.loads(text) if str(each["id"]) and float(each["until"]) > time.time()]
    except (ValueError, TypeError, KeyError):
        return []


def _nothing(kube: Kube) -> UsageError:
    return UsageError(
        "this cluster has no emulated GPUs",
        where=kube.server,
        fix="use a cluster whose file has `gpu:`, such as: sandbox up solo-gpu",
    )


def _words(devices: Sequence[Device]) -> str:
    return ", ".join(str(each.index) for each in devices) or "none"
