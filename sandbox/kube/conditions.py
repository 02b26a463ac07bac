"""What can be waited for, as values: `wait_for(rollout(kube, "Deployment", "inference", "sim"), within=60, what=…)`.

Each lists once and then sleeps on a watch until something changes. Nothing here waits by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from sandbox.kube.client import Kube
from sandbox.kube.resources import Object, Selection, label
from sandbox.kube.wait import Seen

T = TypeVar("T")


@dataclass
class Watching(Generic[T]):
    """A condition over a list of objects that is looked at again when one of them changes."""

    kube: Kube
    selection: Selection
    judge: Callable[[list[Object]], Seen[T]]
    _version: str = field(default="", init=False)

    def __call__(self) -> Seen[T]:
        """One look."""
        items, self._version = self.kube.list_at(self.selection)
        return self.judge(items)

    def pause(self, seconds: float) -> None:
        """Sleep until a change, at most `seconds`."""
        self.kube.changed(self.selection, since=self._version, within=seconds)


def ready(kube: Kube, namespace: str, selector: str, *, count: int = 1) -> Watching[list[Object]]:
    """At least `count` pods of that label selector Ready, and none of it that is not (those going away left out)."""

    def judge(pods: list[Object]) -> Seen[list[Object]]:
        staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        good = [pod for pod in staying if is_ready(pod)]
        saw = [f"{len(good)} of {len(staying)} pods with {selector} in {namespace} ready, wanted {count}"]
        saw += [describe(pod) for pod in staying if not is_ready(pod)]
        return Seen(len(good) >= count and len(good) == len(staying), good, "\n".join(saw))

    return Watching(kube, Selection("v1", "Pod", namespace, selector), judge)


def rollout(kube: Kube, kind: str, namespace: str, name: str) -> Watching[Object]:
    """A Deployment, StatefulSet or DaemonSet: all pods of the latest template and available, no old one left."""

    def judge(found: list[Object]) -> Seen[Object]:
        if not found:
            return Seen(False, {}, f"there is no {kind} {namespace}/{name}")
        thing = found[0]
        done, saw = rolled_out(thing)
        return Seen(done, thing, saw)

    return Watching(kube, Selection("apps/v1", kind, namespace, "", f"metadata.name={name}"), judge)


def gone(kube: Kube, api_version: str, kind: str, namespace: str | None, *, selector: str = "") -> Watching[None]:
    """Nothing of that kind and label selector left."""

    def judge(found: list[Object]) -> Seen[None]:
        names = ", ".join(label(each) for each in found[:10])
        return Seen(not found, None, f"{len(found)} still there: {names}")

    return Watching(kube, Selection(api_version, kind, namespace, selector), judge)


def finished(kube: Kube, namespace: str, pod: str) -> Watching[Object]:
    """A pod that ran to its end, well or not: look at the returned pod's `status.phase`."""

    def judge(found: list[Object]) -> Seen[Object]:
        phase = found[0]["status"].get("phase") if found else "absent"
        return Seen(phase in {"Succeeded", "Failed"}, found[0] if found else {}, f"pod {namespace}/{pod} is {phase}")

    return Watching(kube, Selection("v1", "Pod", namespace, "", f"metadata.name={pod}"), judge)


def nodes_ready(kube: Kube, count: int, *, selector: str = "") -> Watching[list[Object]]:
    """At least `count` nodes with that label selector, all Ready."""

    def judge(nodes: list[Object]) -> Seen[list[Object]]:
        bad = [node["metadata"]["name"] for node in nodes if not is_ready(node)]
        saw = f"{len(nodes) - len(bad)} of {count} nodes ready" + (f"; not ready: {', '.join(bad)}" if bad else "")
        return Seen(len(nodes) >= count and not bad, nodes, saw)

    return Watching(kube, Selection("v1", "Node", None, selector), judge)


def renewed(kube: Kube, names: Sequence[str], *, since: float) -> Watching[None]:
    """The kubelet of each of these nodes gave a sign of life after `since`, in seconds since the epoch.

    For nodes that were stopped: until then their Ready is the one of before, kept in etcd. The sign is the renewal of
    the node's Lease, by the node's own clock, which for containers is this machine's.
    """

    def judge(leases: list[Object]) -> Seen[None]:
        fresh = {lease["metadata"]["name"] for lease in leases if seconds(lease["spec"].get("renewTime")) > since}
        silent = [name for name in names if name not in fresh]
        return Seen(not silent, None, f"no word yet from {', '.join(silent)}")

    return Watching(kube, Selection("coordination.k8s.io/v1", "Lease", "kube-node-lease"), judge)


def is_ready(thing: Object) -> bool:
    """A pod or node whose Ready condition is True."""
    conditions: Sequence[Object] = thing.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def rolled_out(thing: Object) -> tuple[bool, str]:
    """Whether a workload's latest template runs everywhere, and the counts in words."""
    status, spec = thing.get("status", {}), thing["spec"]
    if thing["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        current, updated = status.get("currentNumberScheduled", 0), status.get("updatedNumberScheduled", 0)
        available = status.get("numberAvailable", 0)
    else:
        wanted, current = spec.get("replicas", 1), status.get("replicas", 0)
        updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    observed = status.get("observedGeneration", 0) >= thing["metadata"].get("generation", 0)
    words = [
        f"{label(thing)}: wanted {wanted}, there {current}, of the latest template {updated}, available {available}"
    ]
    words += [
        f"{each['type']}={each['status']}: {each.get('message', '')}"
        for each in status.get("conditions", [])
        if each["type"] in {"Progressing", "ReplicaFailure"} and each.get("message")
    ]
    return observed and wanted == current == updated == available, "\n".join(words)


def describe(pod: Object) -> str:
    """One line on a pod: phase, and of each container that is not ready why."""
    status = pod.get("status", {})
    reasons = [
        f"{each['name']}: {_state(each)}"
        for each in status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
        if not each.get("ready")
    ]
    reasons += [
        each["message"]
        for each in status.get("conditions", [])
        if each["type"] == "PodScheduled" and each["status"] != "True" and each.get("message")
    ]
    return f"{label(pod)} {status.get('phase', 'unknown')}" + (f" ({'; '.join(reasons)})" if reasons else "")


def seconds(moment: str | None) -> float:
    """A time of an API object as seconds since the epoch; 0 for none."""
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0


def _state(container: Object) -> str:
    for state in ("waiting", "terminated", "running"):
        if detail := container.get("state", {}).get(state):
            words = [detail.get("reason", state), detail.get("message", "")]
            words += [f"exit code {detail['exitCode']}"] if "exitCode" in detail else []
            return ", ".join(filter(None, words)) + f" (restarts: {container.get('restartCount', 0)})"
    return "no state yet"
