"""A Deployment, its pods and the nodes they run on, behind an API server on loopback.

The Deployment's controller, the kubelets and the nodes' container runtime are a few lines each: a pod that goes is
replaced, a template that changes is rolled out, and a process ends at once by SIGKILL and after its drain by SIGTERM.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.cluster import Cluster, Node, containers, nodes
from sandbox.kube import Kube
from tests.unit.api_server import Answer, ApiServer, Asked, Json, serving, status

PODS = "/api/v1/namespaces/inference/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/inference/deployments"
LABELS = {"app": "sim"}
_GRACE = 2.0  # what a kubelet gives a pod that is deleted without grace


@dataclass
class Pod:
    name: str
    node: str
    revision: int
    annotations: dict[str, str]
    ready_at: float
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    container: str = field(default_factory=lambda: uuid.uuid4().hex * 2)
    ends: float = float("inf")  # its process, on the monotonic clock
    deleted: bool = False  # and still there, draining

    @property
    def runs(self) -> bool:
        return time.monotonic() < self.ends

    @property
    def ready(self) -> bool:
        return self.runs and not self.deleted and time.monotonic() >= self.ready_at

    def as_json(self) -> Json:
        meta: Json = {"name": self.name, "namespace": "inference", "uid": self.uid, "annotations": self.annotations}
        meta["labels"] = {**LABELS, "pod-template-hash": str(self.revision)}
        meta |= {"deletionTimestamp": "2026-01-01T00:00:00Z"} if self.deleted else {}
        statuses = [{"name": "server", "ready": self.ready, "containerID": f"containerd://{self.container}"}]
        conditions = [{"type": "Ready", "status": str(self.ready)}]
        return {
            "metadata": meta,
            "spec": {"nodeName": self.node},
            "status": {"phase": "Running", "conditions": conditions, "containerStatuses": statuses},
        }


@dataclass
class PodCluster:
    """What goes wrong in it is told by its attributes.

    Attributes:
        startup: seconds until a new pod is ready.
        drain: seconds that a process takes to end by SIGTERM.
        undead: containers that go on whatever signal they get.
        idle: the controller makes no pod any more.
        lazy: nor does it roll a new template out, though it says so.
        kept: the API server forgets no pod.
    """

    server: ApiServer
    kube: Kube
    pods: list[Pod] = field(default_factory=list)
    replicas: int = 3
    generation: int = 1
    annotations: dict[str, str] = field(default_factory=dict)
    startup: float = 0.0
    drain: float = 30.0
    undead: bool = False
    idle: bool = False
    lazy: bool = False
    kept: bool = False
    frozen: bool = False  # a patch changes nothing
    signals: list[tuple[str, str]] = field(default_factory=list)  # signal, container
    orphans: list[Pod] = field(default_factory=list)  # the API server has forgotten them, and they still run
    made: int = 0

    @property
    def own(self) -> Cluster:
        there = tuple(Node(name, "worker", "10.0.0.1", f"c-{name}") for name in ("n1", "n2"))
        return Cluster("solo", "kind", Path("/k"), "c", "r", "u", "s", "i", 0.0, there)

    def reconcile(self) -> None:
        """Let controller and kubelets come to where they would be by now."""
        self.pods = [pod for pod in self.pods if self.kept or pod.runs or not pod.deleted]
        if self.idle:
            return
        new = [pod for pod in self.pods if pod.revision == self.generation or self.lazy]
        while len([pod for pod in new if not pod.deleted]) < self.replicas:
            new.append(self.make())
        if all(pod.ready for pod in new):
            for pod in self.pods:
                if pod not in new and not pod.deleted:
                    self.remove(pod, grace=30.0)

    def make(self) -> Pod:
        self.made += 1
        ready = time.monotonic() + self.startup
        pod = Pod(f"sim-{self.made}", f"n{self.made % 2 + 1}", self.generation, dict(self.annotations), ready)
        self.pods.append(pod)
        return pod

    def remove(self, pod: Pod, grace: float) -> None:
        """As kubelet and API server do: with no grace the object goes at once, and its process a little later."""
        pod.deleted = True
        self.end(pod, min(self.drain, grace or _GRACE))
        if not grace and not self.kept:
            self.pods.remove(pod)
            self.orphans.append(pod)

    def end(self, pod: Pod, seconds: float) -> None:
        if not self.undead:
            pod.ends = min(pod.ends, time.monotonic() + seconds)

    def run(self, node: str, command: list[str]) -> tuple[int, str]:
        """What `ctr` on a node does and says."""
        there = [pod for pod in [*self.pods, *self.orphans] if pod.node == node and pod.runs]
        assert command[:4] == ["ctr", "--namespace", "k8s.io", "tasks"]
        if command[4] == "list":
            return 0, "\n".join(["TASK PID STATUS", *(f"{pod.container} 1 RUNNING" for pod in there)])
        *_, signal, ident = command
        self.signals.append((signal, ident))
        hit = [pod for pod in there if pod.container == ident]
        for pod in hit:
            self.end(pod, 0.0 if signal == "SIGKILL" else self.drain)
        return (0, "") if hit else (1, "no such task")

    def answer(self, asked: Asked) -> Answer | None:
        if "watch" in asked.query:
            time.sleep(0.01)
            return Answer(lines=[])
        self.reconcile()
        if asked.path == "/apis/apps/v1":
            return Answer(200, {"resources": [{"name": "deployments", "kind": "Deployment", "namespaced": True}]})
        if asked.path == PODS:
            return listed([pod.as_json() for pod in self.pods], asked)
        if asked.path == DEPLOYMENTS:
            return listed([self.deployment()], asked)
        if asked.path == f"{DEPLOYMENTS}/sim" and asked.method == "PATCH":
            if not self.frozen:
                self.annotations = asked.body["spec"]["template"]["metadata"]["annotations"]
                self.generation += 1
            return Answer(200, self.deployment())
        return self.deletion(asked)

    def deletion(self, asked: Asked) -> Answer | None:
        for pod in self.pods:
            if (asked.method, asked.path) == ("DELETE", f"{PODS}/{pod.name}"):
                if asked.body.get("preconditions", {}).get("uid", pod.uid) != pod.uid:
                    return status(409, "Conflict", "the UID in the precondition does not match")
                self.remove(pod, asked.body.get("gracePeriodSeconds", 30))
                return Answer(200, pod.as_json())
        return None

    def deployment(self) -> Json:
        there = [pod for pod in self.pods if not pod.deleted]
        new = [pod for pod in there if pod.revision == self.generation or self.lazy]
        return {
            "metadata": {
                "name": "sim", "namespace": "inference", "uid": "d-1", "labels": LABELS, "generation": self.generation
            },
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": LABELS},
                "template": {"metadata": {"labels": LABELS, "annotations": self.annotations}},
            },
            "status": {
                "observedGeneration": self.generation,
                "replicas": len(there),
                "updatedReplicas": len(new),
                "availableReplicas": sum(pod.ready for pod in there),
            },
        }  # fmt: skip


def listed(items: list[Json], asked: Asked) -> Answer:
    wanted = dict(pair.split("=") for pair in asked.query.get("labelSelector", [""])[0].split(",") if pair)
    chosen = [each for each in items if wanted.items() <= each["metadata"]["labels"].items()]
    return Answer(200, {"items": chosen, "metadata": {"resourceVersion": "1"}})


@contextmanager
def pod_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodCluster]:
    """Such a cluster with three ready pods; what the harness does on a node is done to it instead."""
    with serving(folder) as (server, kube):
        made = PodCluster(server, kube)
        made.reconcile()
        server.rules.append(made.answer)
        monkeypatch.setattr(nodes, "machine", lambda _own, node: node)
        run: Any = made.run
        monkeypatch.setattr(containers, "run", run)
        yield made
