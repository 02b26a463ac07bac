"""Everything that a cluster holds, as one value: what came, went or changed since is the difference of two."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sandbox.errors import ClusterError
from sandbox.kube.client import Kube
from sandbox.kube.resources import Object, Resource

_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_AT_ONCE = 6
_PAGE = "1000"
# what tells of something that happened, or is measured
_PASSING = {
    ("", "ComponentStatus"),
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("metrics.k8s.io", "NodeMetrics"),
    ("metrics.k8s.io", "PodMetrics"),
}
# what controllers make of other objects and change all the time: one that none of them made counts, by its name
_DERIVED = {
    ("", "Endpoints"),
    ("apps", "ControllerRevision"),
    ("certificates.k8s.io", "CertificateSigningRequest"),
    ("coordination.k8s.io", "Lease"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("networking.k8s.io", "IPAddress"),
    ("resource.k8s.io", "ResourceSlice"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "CSIStorageCapacity"),
}
_DERIVED_LABELS = (
    "apiserver.kubernetes.io/identity",
    "endpoints.kubernetes.io/managed-by",
    "endpointslice.kubernetes.io/managed-by",
    "ipaddress.kubernetes.io/managed-by",
)
_OF_KUBELETS = "kubernetes.io/kube-apiserver-client-kubelet"
# a Secret of this type ends by itself after a day, and with it a signature in cluster-info
_ENDING = "bootstrap.kubernetes.io/token"
_SIGNED = ("v1/ConfigMap", "kube-public", "cluster-info")
# of the API server and the controllers, beside what people asked for
_KEPT_BY_SERVER = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
KEPT_BY_CONTROLLERS = (
    "deployment.kubernetes.io/",
    "node.alpha.kubernetes.io/",
    "volumes.kubernetes.io/",
    "pv.kubernetes.io/",
)


@dataclass(frozen=True)
class Inventory:
    """All objects of every kind that the server can list.

    Attributes:
        objects: `apps/v1/Deployment inference/sim` -> UID and a hash of all that was asked for; no status.
        pods: `apps/v1/ReplicaSet inference/sim-1` -> how many pods it owns; their names mean nothing.
    """

    objects: Mapping[str, str]
    pods: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """What is not as it was: labels of objects, and owners with another number of pods."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.added or self.changed or self.removed)

    @property
    def words(self) -> list[str]:
        """One line for each, for people."""
        told = (("there since", self.added), ("changed", self.changed), ("gone", self.removed))
        return [f"{word}: {each}" for word, found in told for each in found]


def of(things: Iterable[Object]) -> Inventory:
    """The inventory of these objects."""
    found: dict[str, str] = {}
    pods: Counter[str] = Counter()
    for thing in things:
        if thing["kind"] == "Pod" and (owner := _owner(thing)):
            pods[owner] += 1
        elif _group_kind(thing) in _DERIVED:
            found[name_of(thing)] = ""
        else:
            found[name_of(thing)] = f"{thing['metadata']['uid']} {_hash(asked(thing))}"
    return Inventory(found, dict(pods))


def difference(before: Inventory, now: Inventory) -> Difference:
    """What came, changed and went between two."""
    return Difference(
        added=tuple(sorted(now.objects.keys() - before.objects.keys())),
        changed=tuple(
            sorted(
                [
                    each
                    for each in now.objects.keys() & before.objects.keys()
                    if now.objects[each] != before.objects[each]
                ]
                + [
                    f"{owner}: {now.pods.get(owner, 0)} pods, {before.pods.get(owner, 0)} before"
                    for owner in now.pods.keys() | before.pods.keys()
                    if now.pods.get(owner, 0) != before.pods.get(owner, 0)
                ]
            )
        ),
        removed=tuple(sorted(before.objects.keys() - now.objects.keys())),
    )


def take(kube: Kube) -> Inventory:
    """What a cluster holds now. Raises ClusterError as `everything`."""
    return of(everything(kube))


def everything(kube: Kube) -> list[Object]:
    """Every object that the server can list, those that come and go by themselves left out; `managedFields`, too.

    Raises:
        ClusterError: names each kind that could not be listed.
    """
    served = [each for each in resources(kube) if (each.api_version.rpartition("/")[0], each.kind) not in _PASSING]
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        lists = [*pool.map(lambda each: _listed(kube, each), served)]
    if unseen := [
        f"{each.api_version} {each.kind}" for each, there in zip(served, lists, strict=True) if there is None
    ]:
        raise ClusterError("not every kind could be listed", where=kube.server, details=unseen)
    return [thing for there in lists for thing in there or [] if not _passes(thing)]


def resources(kube: Kube) -> list[Resource]:
    """Every kind that the server can list, each in the first version that its group has it in.

    Raises:
        ClusterError: the server does not tell, or not of every group.
    """
    found: dict[tuple[str, str], Resource] = {}
    for root in ("/api", "/apis"):
        answer = kube.request("GET", root, headers={"Accept": _DISCOVERY})
        if not answer.ok or "items" not in (answer.body or {}):
            raise ClusterError(f"{root} answers {answer.status}", where=kube.server)
        for group in answer.body["items"]:
            name = group["metadata"].get("name", "")
            for version in group["versions"]:
                if version.get("freshness") == "Stale" and not any(name == passing for passing, _ in _PASSING):
                    raise ClusterError(f"the API of {name} does not answer", where=kube.server)
                for each in version.get("resources", []):
                    if "list" in each["verbs"]:
                        found.setdefault((name, each["resource"]), _resource(name, version["version"], each))
    return [*found.values()]


def is_counted(what: Resource) -> bool:
    """Whether the server makes objects of that kind up from what it measures: nobody can delete them."""
    return what.api_version.startswith("metrics.k8s.io/")


def name_of(thing: Object) -> str:
    """`apps/v1/Deployment inference/sim`; without a namespace for what has none."""
    metadata = thing["metadata"]
    within = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{thing['apiVersion']}/{thing['kind']} {within}{metadata['name']}"


def _resource(group: str, version: str, told: Mapping[str, Any]) -> Resource:
    api_version = f"{group}/{version}" if group else version
    return Resource(api_version, told["responseKind"]["kind"], told["resource"], told["scope"] == "Namespaced")


def _listed(kube: Kube, what: Resource) -> list[Object] | None:
    """All objects of a kind; None where they cannot be listed."""
    items: list[Object] = []
    page = ""
    while True:
        query = [("limit", _PAGE), *([("continue", page)] if page else [])]
        answer = kube.request("GET", what.path(), query=query)
        if not answer.ok or not isinstance(answer.body, dict):
            return None
        for each in answer.body["items"]:
            each["metadata"].pop("managedFields", None)
            items.append({**each, "apiVersion": what.api_version, "kind": what.kind})
        page = answer.body["metadata"].get("continue", "")
        if not page:
            return items


def _owner(pod: Object) -> str:
    """Who makes such a pod again when it is gone; empty for one that nobody does, or that a node makes from a file."""
    owners: Iterable[Object] = pod["metadata"].get("ownerReferences") or []
    for each in owners:
        if each.get("controller") and each["kind"] not in {"Node", "Job"}:
            return f"{each['apiVersion']}/{each['kind']} {pod['metadata']['namespace']}/{each['name']}"
    return ""


def _group_kind(thing: Object) -> tuple[str, str]:
    return thing["apiVersion"].rpartition("/")[0], thing["kind"]


def _passes(thing: Object) -> bool:
    metadata = thing["metadata"]
    if (f"{thing['apiVersion']}/{thing['kind']}", metadata.get("namespace"), metadata["name"]) == _SIGNED:
        return True
    if _group_kind(thing) in _DERIVED:
        made = metadata.get("ownerReferences") or {*_DERIVED_LABELS} & {*(metadata.get("labels") or {})}
        return bool(made) or (thing.get("spec") or {}).get("signerName") == _OF_KUBELETS
    return thing["kind"] == "Secret" and thing.get("type") == _ENDING


def asked(thing: Object) -> Object:
    """All of an object that somebody asked for: no status, and nothing that server and controllers write of their own.

    Of a node's status what it offers of extended resources stays, such as GPUs.
    """
    metadata = {key: value for key, value in thing["metadata"].items() if key not in _KEPT_BY_SERVER}
    notes = metadata.get("annotations") or {}
    metadata["annotations"] = {key: value for key, value in notes.items() if not key.startswith(KEPT_BY_CONTROLLERS)}
    rest = {key: value for key, value in thing.items() if key not in {"metadata", "status"}}
    offered = {"offers": extended(thing)} if thing["kind"] == "Node" else {}
    return {"metadata": metadata, **rest, **offered}


def extended(node: Object) -> dict[str, str]:
    """What a node offers beside what every node has: `nvidia.com/gpu`."""
    offered = (node.get("status") or {}).get("allocatable") or {}
    return {name: str(count) for name, count in offered.items() if "/" in name}


def paths_changed(before: Any, now: Any, at: str = "") -> list[str]:
    """Where two values differ, at most one level below a field of `metadata` and `spec`: `spec.taints`."""
    if before == now:
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)) or at.count(".") > 1:
        return [at]
    keys = sorted(before.keys() | now.keys())
    return [
        path for key in keys for path in paths_changed(before.get(key), now.get(key), f"{at}.{key}" if at else str(key))
    ]


def _hash(thing: Object) -> str:
    text = json.dumps(thing, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
