"""Simulated nodes: kwok, and the Node objects that it plays the kubelet of. For controllers they are nodes as any."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sandbox.errors import DeadlineExceeded
from sandbox.kube import ApiError, Kube, Object, Seen, wait_for
from sandbox.kube.conditions import is_ready, rollout
from sandbox.kube.manifests import with_images
from sandbox.kube.resources import Selection
from sandbox.progress import step
from sandbox.spec.fleet import FLEET_LABEL, FLEET_VALUE, Fleet
from sandbox.spec.gpu_profile import profile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandbox.spec.cluster import ClusterSpec

IMAGE = "kwok"
NAMESPACE = "kwok-system"
REAL = f"!{FLEET_LABEL}"  # label selector of the nodes that are machines
SIMULATED = f"{FLEET_LABEL}={FLEET_VALUE}"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_LEASES = "kube-node-lease"
_TO_SECONDS = len("2026-01-01T00:00:00")
_MADE_AS = "ai-k8s-sandbox/fleet"
_NODES = Selection("v1", "Node", None, SIMULATED)
_AT_ONCE = 16
_READY_SECONDS = 300.0
_SETTLED_SECONDS = 90.0
_GONE, _CONFLICT = 410, 409
# kind's own ranges, for IPv4 and IPv6; the blocks that nodes get of them
_RANGES = {"ipv4": "10.244.0.0/16", "ipv6": "fd00:10:244::/56"}
_BLOCK = {4: 24, 6: 64}


def apply(kube: Kube, spec: ClusterSpec, manifests: Sequence[Object], images: Mapping[str, str]) -> None:
    """Make the fleet as the spec says: what is there and right stays, what is not goes.

    Without `fleet` in the spec an earlier fleet is removed, with kwok. Does not wait for the nodes, see `wait`.

    Args:
        kube: the cluster, as its administrator.
        spec: the shape, with `fleet` or without.
        manifests: of kwok.
        images: has the reference of `kwok`.
    """
    wanted = {each["metadata"]["name"]: each for each in nodes(spec, kube.version)}
    there = kube.list("v1", "Node", label_selector=SIMULATED)
    wrong = [each for each in there if _made_as(each) != _made_as(wanted.get(each["metadata"]["name"], {}))]
    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="fleet") as pool:
        if wrong:
            with step(f"remove {len(wrong)} simulated nodes of another kind"):
                list(pool.map(lambda node: kube.request("DELETE", kube.path(node)), wrong))
                list(pool.map(lambda node: _drop_lease(kube, node["metadata"]["name"]), wrong))
        if spec.fleet is None:
            if wrong:
                kube.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
            return
        _keep_daemons_off(kube)
        kube.apply(_stamped(with_images(manifests, images, where="kwok")))
        stay = {each["metadata"]["name"] for each in there} - {each["metadata"]["name"] for each in wrong}
        missing = [node for name, node in wanted.items() if name not in stay]
        if missing:
            with step(f"make {len(missing)} simulated nodes"):
                list(pool.map(lambda node: _make(kube, node), missing))


def wait(kube: Kube, fleet: Fleet) -> None:
    """Wait until every node of the fleet takes pods, and what serves the real nodes' network is rolled out again."""
    with step(f"{fleet.nodes} simulated nodes"):
        for daemons in _daemons(kube):
            name = daemons["metadata"]["name"]
            condition = rollout(kube, "DaemonSet", daemons["metadata"]["namespace"], name)
            wait_for(condition, within=_SETTLED_SECONDS, what=f"{name} on the real nodes")
        wait_for(rollout(kube, "Deployment", NAMESPACE, IMAGE), within=_SETTLED_SECONDS, what="kwok")
        _take_over(kube, fleet.nodes)
        _all_ready(kube, fleet.nodes)


def _take_over(kube: Kube, nodes: int) -> None:
    """Wait until the kwok that runs now holds every node; leases of an earlier one are dropped.

    Until they run out, for two minutes, it would leave them be, and no pod would start on those nodes.
    """
    pods = kube.list("v1", "Pod", NAMESPACE, label_selector=f"app.kubernetes.io/name={IMAGE}")
    states = [each.get("state", {}) for pod in pods for each in pod.get("status", {}).get("containerStatuses", [])]
    began = max(
        (str(state["running"]["startedAt"])[:_TO_SECONDS] for state in states if "running" in state), default=""
    )
    names = {node["metadata"]["name"] for node in kube.list("v1", "Node", label_selector=SIMULATED)}
    held, old = _leases(kube, names, began)
    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="fleet") as pool:
        list(pool.map(lambda name: _drop_lease(kube, name), old))

    def all_held() -> Seen[None]:
        held, _ = _leases(kube, names, began)
        return Seen(len(held) >= nodes, None, f"kwok holds {len(held)} of {nodes} nodes")

    if len(held) < nodes:
        wait_for(all_held, within=_READY_SECONDS, what="kwok on every simulated node")


def _leases(kube: Kube, names: set[str], began: str) -> tuple[list[str], list[str]]:
    """The nodes whose lease was renewed since `began`, and those whose lease is older."""
    leases = kube.list("coordination.k8s.io/v1", "Lease", _LEASES)
    times = {lease["metadata"]["name"]: str(lease["spec"].get("renewTime", ""))[:_TO_SECONDS] for lease in leases}
    held = [name for name, renewed in times.items() if name in names and renewed >= began]
    return held, [name for name, renewed in times.items() if name in names and renewed < began]


def _drop_lease(kube: Kube, name: str) -> None:
    kube.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{_LEASES}/leases/{name}")


def count(kube: Kube) -> tuple[int, int]:
    """How many simulated nodes are Ready, of how many."""
    there = kube.list("v1", "Node", label_selector=SIMULATED)
    return sum(map(is_ready, there)), len(there)


def nodes(spec: ClusterSpec, version: str) -> list[Object]:
    """The Node objects of a spec's fleet, as they are made; none without `fleet`. `version`: of the cluster."""
    fleet = spec.fleet
    if fleet is None:
        return []
    blocks = _shared_blocks(spec)
    kind = hashlib.sha256(json.dumps([fleet.model_dump(exclude={"nodes"}), blocks, version]).encode()).hexdigest()[:12]
    width = len(str(fleet.nodes))
    made = []
    for number in range(1, fleet.nodes + 1):
        node = _node(fleet, f"fleet-{number:0{width}}", zone=f"zone-{(number - 1) % fleet.zones + 1}", version=version)
        node["metadata"]["annotations"] = {_MADE_AS: kind}
        node["spec"] |= {"podCIDR": blocks[0], "podCIDRs": blocks}
        made.append(node)
    return made


def _node(fleet: Fleet, name: str, *, zone: str, version: str) -> Object:
    size: dict[str, str] = {
        "cpu": str(fleet.cpu),
        "memory": fleet.memory,
        "pods": str(fleet.pods),
        "ephemeral-storage": "1Ti",
    }
    labels = {
        FLEET_LABEL: FLEET_VALUE,
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": zone,
    }
    if fleet.gpu is not None:
        size["nvidia.com/gpu"] = str(fleet.gpu.count)
        labels |= gpu_labels(fleet.gpu.profile, fleet.gpu.count)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": [{"key": FLEET_LABEL, "value": FLEET_VALUE, "effect": "NoSchedule"}]},
        "status": {
            "capacity": size,
            "allocatable": size,
            "addresses": [{"type": "Hostname", "address": name}],
            "nodeInfo": {
                **dict.fromkeys(("machineID", "systemUUID", "bootID", "kernelVersion", "kubeProxyVersion"), ""),
                "osImage": "none: a simulated node",
                "containerRuntimeVersion": "kwok://simulated",
                "kubeletVersion": f"{version}+simulated",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
        },
    }


def gpu_labels(name: str, count: int) -> dict[str, str]:
    """What GPU Feature Discovery would write on such a node, and the label that says that it is not real."""
    model = profile(name)
    major, _, minor = model.compute_capability.partition(".")
    found = {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/gpu.product": re.sub(r"[^A-Za-z0-9-_.]", "", "-".join(model.product.split())),
        "nvidia.com/gpu.memory": str(model.memory),
        "nvidia.com/gpu.family": "-".join(model.architecture.lower().split()),
        "nvidia.com/gpu.machine": "emulated",
        "nvidia.com/gpu.mode": "compute",
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
        "nvidia.com/mig.capable": str(bool(model.mig)).lower(),
        "nvidia.com/mps.capable": "false",
    }
    driver, cuda = model.driver_version.split("."), [*model.cuda_version.split("."), "0"][:2]
    for old, new, number in zip(("major", "minor", "rev"), ("major", "minor", "revision"), driver, strict=True):
        found |= {f"nvidia.com/cuda.driver.{old}": number, f"nvidia.com/cuda.driver-version.{new}": number}
    for part, number in zip(("major", "minor"), cuda, strict=True):
        found |= {f"nvidia.com/cuda.runtime.{part}": number, f"nvidia.com/cuda.runtime-version.{part}": number}
    found["nvidia.com/cuda.driver-version.full"] = model.driver_version
    found["nvidia.com/cuda.runtime-version.full"] = ".".join(cuda)
    return {"ai-k8s-sandbox/emulated-gpu": "true", **found}


def _shared_blocks(spec: ClusterSpec) -> list[str]:
    """The last block of each pod range, the same for all: no pod of the fleet has an address.

    Left to itself, the node controller would give each node a block of its own, and a /16 has but 256.
    """
    networking = spec.kind_config.get("networking") or {}
    family = str(networking.get("ipFamily", "ipv4")).lower()
    kinds = ["ipv4", "ipv6"] if family == "dual" else [family]
    given = networking.get("podSubnet") or ",".join(_RANGES[each] for each in kinds)
    blocks = []
    for text in str(given).split(","):
        whole = ipaddress.ip_network(text.strip())
        width = max(_BLOCK[whole.version], whole.prefixlen)
        last = int(whole.broadcast_address) >> (whole.max_prefixlen - width) << (whole.max_prefixlen - width)
        blocks.append(f"{ipaddress.ip_address(last)}/{width}")
    return blocks


def _made_as(node: Mapping[str, Any]) -> str:
    return str(node.get("metadata", {}).get("annotations", {}).get(_MADE_AS, ""))


def _make(kube: Kube, node: Object) -> None:
    try:
        kube.create(node)
    except ApiError as error:
        if error.status != _CONFLICT:
            raise


def _stamped(objects: Sequence[Object]) -> list[Object]:
    """The Deployment's pods carry a digest of the configuration: another one makes them anew."""
    config = [each for each in objects if each["kind"] == "ConfigMap"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    for thing in objects:
        if thing["kind"] == "Deployment":
            thing["spec"]["template"]["metadata"].setdefault("annotations", {})[f"{_MADE_AS}-config"] = digest
    return list(objects)


def _daemons(kube: Kube) -> list[Object]:
    """The DaemonSets that tolerate every taint: without a word they would put a pod on each node of the fleet."""
    everything = [{"operator": "Exists"}]
    return [
        each
        for each in kube.list("apps/v1", "DaemonSet")
        if [t for t in each["spec"]["template"]["spec"].get("tolerations", []) if t in everything]
    ]


def _keep_daemons_off(kube: Kube) -> None:
    """Have them ask for machines. Thousands of pods that run nowhere would cost memory and tell lies."""
    away = {"key": FLEET_LABEL, "operator": "DoesNotExist"}
    for daemons in _daemons(kube):
        template = daemons["spec"]["template"]["spec"]
        required = template.get("affinity", {}).get("nodeAffinity", {}).get(_REQUIRED, {})
        terms = required.get("nodeSelectorTerms") or [{}]
        if all(away in term.get("matchExpressions", []) for term in terms):
            continue
        terms = [{**term, "matchExpressions": [*term.get("matchExpressions", []), away]} for term in terms]
        affinity = {"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": terms}}}
        meta = daemons["metadata"]
        change = {"spec": {"template": {"spec": {"affinity": affinity}}}}
        kube.patch("apps/v1", "DaemonSet", meta["name"], change, meta["namespace"])


def _all_ready(kube: Kube, wanted: int) -> None:
    """Follow the nodes by one watch: to list thousands of them at every change would be work enough for the machine."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        there, version = kube.list_at(_NODES)
        good = {each["metadata"]["name"] for each in there if takes_pods(each)}
        try:
            while len(good) < wanted and (left := deadline - time.monotonic()) > 0:
                for change in kube.watch(_NODES, since=version, within=min(left, 30.0)):
                    version = change["object"]["metadata"]["resourceVersion"]
                    if change["type"] == "BOOKMARK":
                        continue
                    name = change["object"]["metadata"]["name"]
                    fit = change["type"] != "DELETED" and takes_pods(change["object"])
                    (good.add if fit else good.discard)(name)
                    if len(good) >= wanted:
                        break
        except ApiError as error:
            if error.status != _GONE:
                raise
            continue
        if len(good) < wanted:
            raise DeadlineExceeded(
                f"{wanted} simulated nodes did not come within {_READY_SECONDS:g} s",
                details=[f"{len(good)} take pods"],
                fix=f"kubectl --namespace {NAMESPACE} logs deployment/kwok",
            )
        return


def takes_pods(node: Object) -> bool:
    """Ready, and without the taint that a node has until the node controller has seen that."""
    taints = [taint["key"] for taint in node["spec"].get("taints", [])]
    return is_ready(node) and not any(key.startswith("node.kubernetes.io/") for key in taints)
