"""Emulated GPUs in a cluster: put on its nodes as the spec says, changed where they run, and taken off again."""

from __future__ import annotations

import copy
import hashlib
import ipaddress
import json
import time
from typing import TYPE_CHECKING, Any

from sandbox.cluster import addons, fleet
from sandbox.errors import ClusterError, DeadlineExceeded
from sandbox.kube import Kube, Object, Seen, collect, manifests, wait_for
from sandbox.kube.conditions import Watching, gone, rollout
from sandbox.kube.resources import Selection
from sandbox.progress import step
from sandbox.spec.gpu import GpuGroup, node_document, resources, slice_devices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandbox.spec.cluster import ClusterSpec

IMAGE = NAMESPACE = DAEMONS = "gpu-emulator"
CLASSES = "gpu-dra"
DRIVER = DEVICE_CLASS = "gpu.nvidia.com"
NODE_LABEL = "ai-k8s-sandbox/gpu"
EMULATED = "ai-k8s-sandbox/emulated-gpu"  # the emulator's own label: it is gone once all of them are
_RESOURCES = "nvidia.com/"
_CONFIG = "ai-k8s-sandbox/gpu-config"
_SLICES = Selection("resource.k8s.io/v1", "ResourceSlice", None, "", f"spec.driver={DRIVER}")
_READY_SECONDS = 90.0
_GONE_SECONDS = 60.0
_LINES = 12


def apply(kube: Kube, spec: ClusterSpec, nodes: Sequence[str], image: str) -> bool:
    """Give the nodes the GPUs that the spec names, and take them off the others. Does not wait for them, see `wait`.

    What runs with another configuration is restarted with this one.

    Args:
        kube: the cluster, as its administrator.
        spec: the shape; without `gpu` all is removed, as by `remove`.
        nodes: names in the order of kindConfig.nodes, as `in_order` gives them.
        image: reference of gpu-emulator, which the nodes have.

    Returns:
        Whether the cluster has GPUs now.
    """
    groups = _by_name(spec, nodes)
    if not groups:
        remove(kube)
        return False
    objects = _objects(kube, groups, image)
    classes = _classes(groups.values())
    for node in _real_nodes(kube):
        name, labels = node["metadata"]["name"], node["metadata"].get("labels", {})
        if (labels.get(NODE_LABEL) == "true") != (name in groups):
            change = {"metadata": {"labels": {NODE_LABEL: "true" if name in groups else None}}}
            kube.patch("v1", "Node", name, change)
    kube.apply([*objects, *classes])
    kube.delete([each for each in addons.manifests(CLASSES) if not classes])
    return True


def wait(kube: Kube, spec: ClusterSpec, nodes: Sequence[str]) -> None:
    """Wait until every GPU node offers what it has, and no other node any.

    A fault that is being injected may hide devices of a node; then it is enough that the node knows them.

    Raises:
        ClusterError: they did not come; `details` has what the emulator's pods say.
    """
    groups = _by_name(spec, nodes)
    with step(f"emulated GPUs on {', '.join(groups)}"):
        try:
            what = "the GPU emulator on its nodes"
            wait_for(rollout(kube, "DaemonSet", NAMESPACE, DAEMONS), within=_READY_SECONDS, what=what)
            wait_for(_offered(kube, groups), within=_READY_SECONDS, what="the nodes' GPUs")
            wait_for(_published(kube, groups), within=_READY_SECONDS, what="the nodes' ResourceSlices")
        except DeadlineExceeded as error:
            raise ClusterError(
                error.what,
                where=f"namespace {NAMESPACE}",
                details=[*error.details, *collect.digest(kube, NAMESPACE), *_last_words(kube)],
                fix="read what the emulator says above; then sandbox up again",
            ) from error


def remove(kube: Kube) -> bool:
    """Take all emulated GPUs off a cluster, and wait until no node offers one any more; False when it had none.

    Pods that hold one keep running. The kubelet goes on showing the capacity of a device plugin that has gone, of
    which nothing is allocatable, for five minutes.

    Raises:
        DeadlineExceeded: something is still there; names what.
    """
    if kube.get("v1", "Namespace", NAMESPACE) is None:
        return False
    with step("remove the emulated GPUs"):
        kube.delete([{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": _meta(DAEMONS)}], within=_GONE_SECONDS)
        wait_for(gone(kube, "v1", "Pod", NAMESPACE), within=_GONE_SECONDS, what="the end of the emulator's pods")
        for node in _real_nodes(kube):
            _unlabel(kube, node)
        kube.delete(kube.list_at(_SLICES)[0], within=_GONE_SECONDS)
        every = [*addons.manifests(IMAGE), *addons.manifests(CLASSES)]
        kube.delete(every, within=_GONE_SECONDS)
        wait_for(_offered(kube, {}), within=_GONE_SECONDS, what="the end of the nodes' GPUs")
    return True


def in_order(kube: Kube, spec: ClusterSpec) -> list[str]:
    """The cluster's nodes in the order of kindConfig.nodes: kind numbers the nodes of each role as they come."""
    control = "node-role.kubernetes.io/control-plane"
    there: dict[bool, list[str]] = {True: [], False: []}
    for node in _real_nodes(kube):
        there[control in node["metadata"].get("labels", {})].append(node["metadata"]["name"])
    for names in there.values():
        names.sort(key=lambda name: (len(name), name))  # worker, worker2 … worker10
    return [
        there[node.get("role", "control-plane") == "control-plane"].pop(0)
        for node in spec.nodes
        if there[node.get("role", "control-plane") == "control-plane"]
    ]


def _by_name(spec: ClusterSpec, nodes: Sequence[str]) -> dict[str, GpuGroup]:
    return {nodes[index]: group for index, group in sorted(spec.gpu_nodes.items())}


def _real_nodes(kube: Kube) -> list[Object]:
    return kube.list("v1", "Node", label_selector=fleet.REAL)


def _meta(name: str) -> dict[str, str]:
    return {"name": name, "namespace": NAMESPACE}


def _objects(kube: Kube, groups: Mapping[str, GpuGroup], image: str) -> list[Object]:
    """The addon for these nodes. The ConfigMap of faults is left alone where it is there: a fault may be acting."""
    documents = {f"{name}.json": json.dumps(node_document(group, name), indent=1) for name, group in groups.items()}
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:12]
    objects = manifests.with_images(addons.manifests(IMAGE), {IMAGE: image}, where=IMAGE)
    for thing in objects:
        if (thing["kind"], thing["metadata"]["name"]) == ("ConfigMap", "config"):
            thing["data"] = documents
        elif thing["kind"] == "DaemonSet":
            thing["spec"]["template"]["metadata"]["annotations"][_CONFIG] = digest  # another one makes the pods anew
        elif thing["kind"] == "NetworkPolicy":
            _except_pods(thing, _pod_ranges(kube))
    keep = kube.get("v1", "ConfigMap", "faults", NAMESPACE) is not None
    return [each for each in objects if not (keep and each["metadata"]["name"] == "faults")]


def _except_pods(policy: Object, ranges: Sequence[str]) -> None:
    for source in policy["spec"]["ingress"][0]["from"]:
        if block := source.get("ipBlock"):
            version = ipaddress.ip_network(block["cidr"]).version
            block["except"] = [each for each in ranges if ipaddress.ip_network(each).version == version]


def _pod_ranges(kube: Kube) -> list[str]:
    return sorted({cidr for node in _real_nodes(kube) for cidr in node["spec"].get("podCIDRs", [])})


def _classes(groups: Any) -> list[Object]:
    """The DeviceClasses, if any of these groups has devices for the DRA driver."""
    if not any(map(slice_devices, groups)):
        return []
    objects = copy.deepcopy(addons.manifests(CLASSES))
    for thing in objects:
        if thing["metadata"]["name"] == DEVICE_CLASS and any(group.dra.extended_resource for group in groups):
            thing["spec"]["extendedResourceName"] = "nvidia.com/gpu"
    return objects


def _unlabel(kube: Kube, node: Object) -> None:
    """Take our labels off a node. The emulator takes its own away when it ends; those of one that was killed go too."""
    labels = node["metadata"].get("labels", {})
    stale = [key for key in labels if key.startswith(_RESOURCES) or key == EMULATED] if EMULATED in labels else []
    if stale or NODE_LABEL in labels:
        change = {"metadata": {"labels": dict.fromkeys([*stale, NODE_LABEL])}}
        kube.patch("v1", "Node", node["metadata"]["name"], change)


def _offered(kube: Kube, groups: Mapping[str, GpuGroup]) -> Watching[None]:
    """Every node offers the resources of its group through the device plugin, all of them, and no others."""
    faulty = _under_fault(kube)

    def judge(nodes: list[Object]) -> Seen[None]:
        wrong = []
        for node in nodes:
            name, status = node["metadata"]["name"], node.get("status", {})
            wanted = resources(groups[name]) if name in groups else {}
            shown = {kind: _gpus(status.get(kind, {})) for kind in ("capacity", "allocatable")}
            others = {key: amount for key, amount in shown["allocatable"].items() if amount and key not in wanted}
            kind = "capacity" if name in faulty else "allocatable"
            found = {key: shown[kind].get(key, 0) for key in wanted}
            if others or found != wanted:
                wrong.append(f"{name}: {kind} {_words(found | others)}; wanted {_words(wanted)}")
        return Seen(not wrong, None, "\n".join(wrong))

    return Watching(kube, Selection("v1", "Node", None, fleet.REAL), judge)


def _gpus(amounts: Mapping[str, str]) -> dict[str, int]:
    return {key: int(amount) for key, amount in amounts.items() if key.startswith(_RESOURCES)}


def _words(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{key}={amount}" for key, amount in amounts.items()) or "none"


def _published(kube: Kube, groups: Mapping[str, GpuGroup]) -> Watching[None]:
    """The DRA driver of every node has published all devices it has."""
    wanted = {name: slice_devices(group) for name, group in groups.items() if slice_devices(group)}

    def judge(slices: list[Object]) -> Seen[None]:
        found = dict.fromkeys(wanted, 0)
        for each in slices:
            name = each["spec"].get("nodeName", "")
            found[name] = found.get(name, 0) + len(each["spec"].get("devices") or [])
        wrong = [
            f"{name}: {found[name]} devices in its ResourceSlices, wanted {wanted.get(name, 0)}"
            for name in found
            if found[name] != wanted.get(name, 0)
        ]
        return Seen(not wrong, None, "\n".join(wrong))

    return Watching(kube, _SLICES, judge)


def _under_fault(kube: Kube) -> set[str]:
    """The nodes on which an injected fault acts now."""
    declared = (kube.get("v1", "ConfigMap", "faults", NAMESPACE) or {}).get("data") or {}
    now = time.time()
    acting: set[str] = set()
    for key, text in declared.items():
        try:
            if any(float(fault["until"]) > now for fault in json.loads(text)):
                acting.add(key.removesuffix(".json"))
        except (ValueError, KeyError, TypeError):
            continue  # the emulator says so in its log
    return acting


def _last_words(kube: Kube) -> list[str]:
    """The ends of the emulators' logs, for a digest has only those of pods that are not Ready."""
    lines: list[str] = []
    for pod in kube.list("v1", "Pod", NAMESPACE):
        name = pod["metadata"]["name"]
        text = kube.logs(NAMESPACE, name, container="emulator", tail=_LINES)
        lines += [f"{pod['spec'].get('nodeName', name)}| {line}" for line in text.splitlines()]
    return lines
