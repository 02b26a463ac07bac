"""Prove that a cluster does what it promises, each by a live packet, a live volume, or a live answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sandbox.cluster.record import Cluster
from sandbox.errors import DeadlineExceeded
from sandbox.kube import Kube, Object, Seen, wait_for
from sandbox.kube.conditions import finished, ready

_POD_SECONDS = 60.0
_POLICY_SECONDS = 20.0
_METRICS_SECONDS = 90.0
_PORT = 8080
_WORD = "proof"
_SERVE = f"exec nc -ll -p {_PORT} -e echo {_WORD}"


@dataclass(frozen=True)
class Proof:
    """What was promised, whether it was seen to hold, and what was seen. `ok` False: it was seen not to hold."""

    promise: str
    ok: bool
    detail: str
    values: dict[str, Any] = field(default_factory=dict)


def prove_network_policy(cluster: Cluster, toolbox: str) -> Proof:
    """Send packets between two pods: let through, denied by a policy, let through again by a wider one.

    Works in a namespace of its own, which is gone afterwards. With several nodes to run on the pods sit on two of
    them, and a second pair on one.

    Args:
        cluster: one that may be changed.
        toolbox: reference of an image with busybox's sh and nc, present in the nodes.
    """
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    with _namespace(kube) as namespace:
        server = _pod(namespace, "server", toolbox, _SERVE)
        near = _pod(namespace, "near", toolbox, "exec sleep 600")
        far = _pod(namespace, "far", toolbox, "exec sleep 600")
        near["spec"]["affinity"] = {"podAffinity": _beside("server")}
        far["spec"]["affinity"] = {"podAntiAffinity": _apart("server")}
        kube.apply([server, near, far])
        pods = wait_for(ready(kube, namespace, "part", count=3), within=_POD_SECONDS, what="the pods of the proof")
        address = next(pod["status"]["podIP"] for pod in pods if pod["metadata"]["name"] == "server")
        values: dict[str, Any] = {"nodes": {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods}}
        steps: list[tuple[str, list[Object], bool]] = [
            ("without a policy", [], True),
            ("with every ingress denied", [_policy(namespace, [])], False),
            ("with its own namespace allowed", [_policy(namespace, [{"from": [{"podSelector": {}}]}])], True),
        ]
        for when, policies, wanted in steps:
            kube.apply(policies)
            for client in ("near", "far"):
                said = _reach(kube, namespace, client, address, wanted=wanted)
                values[f"{client} {when}"] = "answered" if wanted else "no answer"
                if said:
                    word = "reached nothing" if wanted else "still got an answer"
                    detail = f"{client} pod {word} {when}: {said}"
                    return Proof("NetworkPolicies are enforced", ok=False, detail=detail, values=values)
    detail = "packets passed without a policy, were dropped by one, and passed again when allowed"
    return Proof("NetworkPolicies are enforced", ok=True, detail=detail, values=values)


def prove_storage(cluster: Cluster, toolbox: str) -> Proof:
    """Have the default StorageClass provision a volume, write to it from one pod and read it from the next."""
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    promise = "the default StorageClass provisions"
    word = uuid.uuid4().hex
    with _namespace(kube) as namespace:
        claim: Object = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "claim", "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        }
        kube.apply([claim])
        for name, command in (("writer", f"echo {word} > /data/word"), ("reader", f"grep {word} /data/word")):
            pod = _pod(namespace, name, toolbox, command)
            pod["spec"]["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": "claim"}})
            pod["spec"]["containers"][0]["volumeMounts"].append({"name": "data", "mountPath": "/data"})
            kube.apply([pod])
            try:
                ended = wait_for(finished(kube, namespace, name), within=_POD_SECONDS, what=f"the {name}")
            except DeadlineExceeded as error:
                return Proof(promise, ok=False, detail=f"the {name} did not end: {'; '.join(error.details)}")
            if ended["status"]["phase"] != "Succeeded":
                return Proof(promise, ok=False, detail=f"the {name} failed: {kube.logs(namespace, name)}")
        bound = kube.get("v1", "PersistentVolumeClaim", "claim", namespace) or {}
        values = {"class": bound["spec"].get("storageClassName"), "volume": bound["spec"].get("volumeName")}
    return Proof(promise, ok=True, detail="a second pod read what the first one wrote", values=values)


def prove_metrics(cluster: Cluster) -> Proof:
    """Ask the metrics API for every node until it answers with figures; metrics-server needs two scrapes first."""
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    promise = "the metrics API answers"

    def asked() -> Seen[dict[str, str]]:
        answer = kube.request("GET", "/apis/metrics.k8s.io/v1beta1/nodes")
        items = answer.body.get("items", []) if answer.ok and isinstance(answer.body, dict) else []
        memory = {item["metadata"]["name"]: item["usage"]["memory"] for item in items}
        saw = f"status {answer.status}, {len(memory)} of {len(cluster.nodes)} nodes"
        return Seen(len(memory) >= len(cluster.nodes), memory, saw)

    try:
        memory = wait_for(asked, within=_METRICS_SECONDS, what="the metrics of all nodes")
    except DeadlineExceeded as error:
        return Proof(promise, ok=False, detail="; ".join([error.what, *error.details]))
    return Proof(promise, ok=True, detail=f"memory of {len(memory)} node(s)", values=dict(memory))


def prove_all(
    cluster: Cluster, toolbox: str, *, policy: bool = True, storage: bool = True, metrics: bool = True
) -> list[Proof]:
    """Prove what the spec's addons promise, one after the other."""
    wanted: list[tuple[bool, Callable[[], Proof]]] = [
        (policy, lambda: prove_network_policy(cluster, toolbox)),
        (storage, lambda: prove_storage(cluster, toolbox)),
        (metrics, lambda: prove_metrics(cluster)),
    ]
    return [prove() for asked, prove in wanted if asked]


def _reach(kube: Kube, namespace: str, client: str, address: str, *, wanted: bool) -> str:
    """Ask the server from a client pod until the answer is the wanted one; what was last seen if it never is."""

    def ask() -> Seen[None]:
        result = kube.exec(namespace, client, ["nc", "-w", "2", address, str(_PORT)])
        answered = result.code == 0 and result.stdout.strip() == _WORD
        saw = f"exit code {result.code}: {(result.stdout + result.stderr).strip()}"
        return Seen(answered == wanted, None, saw)

    try:
        wait_for(ask, within=_POLICY_SECONDS, what="the packet's fate")
    except DeadlineExceeded as error:
        return "; ".join(error.details)
    return ""


@contextmanager
def _namespace(kube: Kube) -> Iterator[str]:
    """Make a namespace for one proof, and remove it with all that is in it."""
    name = f"sandbox-proof-{uuid.uuid4().hex[:8]}"
    labels = {"app.kubernetes.io/managed-by": "ai-k8s-sandbox", "pod-security.kubernetes.io/enforce": "restricted"}
    thing: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kube.apply([thing])
    try:
        yield name
    finally:
        kube.delete([thing])


def _pod(namespace: str, name: str, image: str, command: str) -> Object:
    """Describe a pod that Pod Security `restricted` admits and that ends at once when told to."""
    container: Object = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", command],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the container's own
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}},
    }
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}}],
    }
    labels = {"part": name, "app.kubernetes.io/managed-by": "ai-k8s-sandbox"}
    metadata: Object = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _policy(namespace: str, ingress: list[Object]) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "proof", "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": {"part": "server"}}, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _beside(part: str) -> Object:
    term = {"labelSelector": {"matchLabels": {"part": part}}, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def _apart(part: str) -> Object:
    """Prefer another node; a cluster of one has none."""
    term = {"labelSelector": {"matchLabels": {"part": part}}, "topologyKey": "kubernetes.io/hostname"}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
