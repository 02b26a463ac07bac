"""What others than the emulator say of a device: kubelet, API server, monitoring, and the server that holds it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from sandbox.errors import ClusterError
from sandbox.gpu import control
from sandbox.gpu.control import Device, NodeState
from sandbox.gpu.emulator import config, devices
from sandbox.gpu.strike import Server
from sandbox.kube import Kube, Object, Seen
from sandbox.kube.conditions import Watching
from sandbox.kube.resources import Selection

GPU = "nvidia.com/gpu"
_PREFIX = "nvidia.com/"
_CONFIG = "config"
_DRIVER = "gpu.nvidia.com"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
# of the vLLM simulator's settings those that a slower clock makes longer
LATENCIES = (
    "time-to-first-token",
    "inter-token-latency",
    "prefill-overhead",
    "prefill-time-per-token",
    "time-to-generate-image",
)
Units = dict[str, dict[int, int]]


def offered(kube: Kube, node: str) -> Units:
    """What each GPU of a node is to the kubelet: resource -> index of the GPU -> how many of it.

    Raises:
        ClusterError: there is no configuration for that node.
    """
    found = kube.get("v1", "ConfigMap", _CONFIG, control.NAMESPACE) or {}
    text = (found.get("data") or {}).get(f"{node}.json")
    if text is None:
        raise ClusterError("its GPUs have no configuration", where=node, fix="sandbox up")
    return units(config.parse(json.loads(text)))


def units(own: config.Config) -> Units:
    """As `offered`, of one configuration."""
    found: dict[str, Counter[int]] = {}
    board = devices.board(own)
    for gpu in (board.gpus[index] for index in own.plugin_indices):
        mixed = own.mig_strategy == "mixed"
        names = [f"{_PREFIX}mig-{each.profile.replace('+', '.')}" if mixed else GPU for each in gpu.mig] or [GPU]
        for name in names:
            shares = own.sharing.replicas.get(name, 1) if own.sharing else 1
            renamed = shares > 1 and own.sharing is not None and own.sharing.rename_by_default
            found.setdefault(f"{name}.shared" if renamed else name, Counter())[gpu.index] += shares
    return {name: dict(amounts) for name, amounts in found.items()}


def allocatable(kube: Kube, node: str, what: Units) -> Watching[dict[str, int]]:
    """A condition: the kubelet offers what the node's healthy GPUs make, not one more and not one less.

    With a GPU that is unhealthy this proves that the kubelet gives it to nobody; its value is what can be allocated.
    """

    def judge(found: list[Object]) -> Seen[dict[str, int]]:
        amounts = found[0].get("status", {}).get("allocatable", {}) if found else {}
        now = control.state(kube, node)
        bad = {each.index for each in now.devices if not each.healthy}
        wanted = {
            name: 0 if now.plugin_down else sum(amount for gpu, amount in gpus.items() if gpu not in bad)
            for name, gpus in what.items()
        }
        shown = {name: int(amounts.get(name, 0)) for name in what}
        saw = f"the kubelet of {node} offers {_words(shown)}; healthy are {_words(wanted)}"
        return Seen(shown == wanted and not now.trouble, shown, f"{saw}\n{now.trouble}".strip())

    return Watching(kube, Selection("v1", "Node", None, "", f"metadata.name={node}"), judge)


def tainted(kube: Kube, device: Device) -> Watching[list[str]]:
    """A condition: every part of that device in the node's ResourceSlices is tainted; its value are the taints."""

    def judge(slices: list[Object]) -> Seen[list[str]]:
        found = _taints(slices, device)
        clean = [uuid for uuid in device.uuids if not found.get(uuid)]
        every = sorted({taint for marks in found.values() for taint in marks})
        return Seen(not clean, every, f"without a taint in the ResourceSlices of {device.node}: {', '.join(clean)}")

    return Watching(kube, slices_of(device.node), judge)


def untainted(kube: Kube, device: Device) -> Watching[None]:
    """A condition: every part of that device is in the node's ResourceSlices, and nothing there keeps pods off it."""

    def judge(slices: list[Object]) -> Seen[None]:
        found = _taints(slices, device)
        bad = [uuid for uuid in device.uuids if found.get(uuid, ["not there"])]
        return Seen(not bad, None, f"in the ResourceSlices of {device.node}: {', '.join(bad)} tainted or not there")

    return Watching(kube, slices_of(device.node), judge)


def published(kube: Kube, node: str, *, there: bool) -> Watching[int]:
    """A condition: the node has ResourceSlices with devices, or (`there` is false) has none; its value is how many."""

    def judge(slices: list[Object]) -> Seen[int]:
        count = sum(len(each["spec"].get("devices") or ()) for each in slices)
        return Seen(bool(count) == there, count, f"{count} devices in the ResourceSlices of {node}")

    return Watching(kube, slices_of(node), judge)


def slices_of(node: str) -> Selection:
    """The node's ResourceSlices."""
    return Selection("resource.k8s.io/v1", "ResourceSlice", None, "", f"spec.nodeName={node},spec.driver={_DRIVER}")


def metric(text: str, name: str, uuid: str) -> float | None:
    """The value of a metric for a GPU, of that one's instances the greatest; None where monitoring has none."""
    pattern = re.compile(rf'^{name}{{[^}}]*UUID="{re.escape(uuid)}"[^}}]*}} (\S+)', re.MULTILINE)
    return max(map(float, pattern.findall(text)), default=None)


def shown(kube: Kube, now: NodeState, name: str, device: Device) -> float:
    """The same, asked now; 0 where monitoring has none."""
    return metric(control.metrics(kube, now), name, device.uuid) or 0.0


def latencies(kube: Kube, server: Server) -> dict[str, float] | None:
    """A server's own word on how long it takes, in seconds; None for one that cannot be told to take longer."""
    path = "/admin/config"
    said = control.proxied(kube, server.namespace, server.pod, server.port, path) if server.port else None
    if not isinstance(said, dict):
        return None
    found = {name: seconds(str(said[name])) for name in LATENCIES if name in said}
    return found or None


def longer(before: Mapping[str, float], now: Mapping[str, float], factor: float) -> bool:
    """Whether each of those that took time takes at least so many times as long (less 2 %, for rounding)."""
    some = {name: value for name, value in before.items() if value > 0}
    return bool(some) and all(now.get(name, 0.0) >= value * factor * 0.98 for name, value in some.items())


def seconds(text: str) -> float:
    """Of a duration as Go writes it, such as `1m0.5s`."""
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _taints(slices: Sequence[Object], device: Device) -> dict[str, list[str]]:
    """UUID -> the taints that keep somebody off, as `key=value:effect`, of those parts that are there."""
    found: dict[str, list[str]] = {}
    for each in slices:
        for thing in each["spec"].get("devices") or ():
            uuid = thing.get("attributes", {}).get("uuid", {}).get("string", "")
            if uuid in device.uuids:
                found[uuid] = [
                    f"{taint['key']}={taint.get('value', '')}:{taint['effect']}"
                    for taint in thing.get("taints") or ()
                    if taint["effect"] != "None"
                ]
    return found


def _words(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={amount}" for name, amount in amounts.items()) or "nothing"
