"""How many GPUs the nodes of a cluster have, and how many of them pods hold, whoever made those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sandbox.errors import UsageError
from sandbox.kube import Kube, Object
from sandbox.spec.workload import GPU

_RESOURCE = "resource.k8s.io/v1"
_DRIVER = "gpu.nvidia.com"
_OVER = ("Succeeded", "Failed")
Group = tuple[int, int, int]  # (GPUs of a node, those in use, nodes like that)


def groups(kube: Kube) -> list[Group]:
    """Of all nodes with GPUs: as a resource, as they are offered, and whole ones of the DRA driver."""
    slices, claims = _of_dra(kube, "ResourceSlice"), _of_dra(kube, "ResourceClaim")
    devices = {
        (each["spec"]["pool"]["name"], device["name"]): each["spec"].get("nodeName", "")
        for each in slices
        if each["spec"].get("driver") == _DRIVER
        for device in each["spec"].get("devices") or ()
        if _whole(device)
    }
    as_resource = {
        node["metadata"]["name"]: amount
        for node in kube.list("v1", "Node")
        if (amount := int(node["status"].get("allocatable", {}).get(GPU, 0)))
    }
    offered = Counter(as_resource) + Counter(devices.values())
    used = Counter(devices[one] for one in {*_given(claims)} if one in devices)
    for pod in kube.list("v1", "Pod"):
        node = pod["spec"].get("nodeName")
        # where the DRA driver alone gives them away, a resource that was asked for is a claim too
        if node in as_resource and pod.get("status", {}).get("phase") not in _OVER:
            used[node] += _asked(pod["spec"])
    found = Counter((offered[node], used[node]) for node in offered)
    return [(there, held, count) for (there, held), count in sorted(found.items())]


def _asked(spec: Object) -> int:
    """GPUs that a pod holds: of its containers together, or of the greediest one that only runs before them."""
    before = spec.get("initContainers") or []
    beside = [each for each in before if each.get("restartPolicy") == "Always"]
    together = sum(map(_limit, [*spec["containers"], *beside]))
    return max(together, max(map(_limit, before), default=0))


def _limit(container: Object) -> int:
    return int(container.get("resources", {}).get("limits", {}).get(GPU, 0))


def _of_dra(kube: Kube, kind: str) -> list[Object]:
    """Empty where the cluster knows no dynamic resource allocation."""
    try:
        return kube.list(_RESOURCE, kind)
    except UsageError:
        return []


def _whole(device: Object) -> bool:
    """A GPU, and no instance of one."""
    return bool(device.get("attributes", {}).get("type", {}).get("string") == "gpu")


def _given(claims: Iterable[Object]) -> Iterable[tuple[str, str]]:
    """Pool and name of every device that a claim holds."""
    for claim in claims:
        allocation = claim.get("status", {}).get("allocation") or {}
        for each in allocation.get("devices", {}).get("results") or ():
            if each["driver"] == _DRIVER:
                yield each["pool"], each["device"]
