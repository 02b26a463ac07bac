"""Namespaces of ours: made the same way by everybody who needs one, and removed only when provably ours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from sandbox.errors import ClusterError, DeadlineExceeded
from sandbox.kube.client import Kube
from sandbox.kube.conditions import gone
from sandbox.kube.resources import Object, Objects, label
from sandbox.kube.wait import wait_for

MANAGED_BY = {"app.kubernetes.io/managed-by": "ai-k8s-sandbox"}
# what of a stack may lie outside its namespace, for only this is cleared there
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")
_RBAC = "rbac.authorization.k8s.io/v1"
_LINGER_SECONDS = 4.0
_POD_SECURITY = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}


def make(name: str) -> Object:
    """A namespace of ours. Stack and guardrail apply this same object, so that neither undoes the other's labels."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {**MANAGED_BY, **_POD_SECURITY}},
    }


def is_ours(namespace: Object) -> bool:
    """Whether it carries our label."""
    labels: dict[str, str] = namespace["metadata"].get("labels", {})
    return MANAGED_BY.items() <= labels.items()


def refuse_strangers(kube: Kube, names: Iterable[str]) -> None:
    """Check that none of these namespaces is somebody else's, before anything is put into it.

    Raises:
        ClusterError: one is there and not ours; nothing was changed.
    """
    _ours(kube, names)


def remove(kube: Kube, names: Iterable[str], *, within: float = 90.0) -> None:
    """Delete namespaces of ours with all they hold and wait until they are gone; pods get one second, not their grace.

    What is not there is no error.

    Raises:
        ClusterError: one is not ours; nothing was deleted.
        DeadlineExceeded: one is still there; names what holds it.
    """
    found = _ours(kube, names)
    begun = time.monotonic()
    names = [space["metadata"]["name"] for space in found]
    for name in names:
        for kind in ("DaemonSet", "Deployment", "StatefulSet"):  # first, or they would make the pods again
            kube.delete_all("apps/v1", kind, name, grace=1)
        kube.delete_all("v1", "Pod", name, grace=1)
        kube.request("DELETE", kube.path(make(name)))
    # The namespace controller looks five seconds after the deletion, and again only after half the pods' own grace
    # period if one is still there. Those that linger are on a busy or a dead node; their time is over either way.
    for name in names:
        try:
            left = max(0.1, begun + _LINGER_SECONDS - time.monotonic())
            wait_for(gone(kube, "v1", "Pod", name), within=left, what=f"the end of the pods in {name}")
        except DeadlineExceeded:
            kube.delete_all("v1", "Pod", name, grace=0)
    kube.delete(found, within=max(1.0, begun + within - time.monotonic()))


def clear(kube: Kube, *, within: float = 90.0) -> list[str]:
    """Remove what earlier runs left: every namespace of ours, and the cluster's roles and role bindings with our label.

    For a run that has the cluster to itself: what another one uses at this moment would go too.

    Returns:
        What was removed, such as `Namespace inference`; empty when there was nothing.

    Raises:
        DeadlineExceeded: something is still there; names what holds it.
    """
    found = rights(kube, MANAGED_BY)
    spaces = kube.list("v1", "Namespace", label_selector=_selector(MANAGED_BY))
    kube.delete(found, within=within)
    remove(kube, [space["metadata"]["name"] for space in spaces], within=within)
    return [label(thing) for thing in [*found, *spaces]]


def rights(kube: Kube, labels: Mapping[str, str]) -> Objects:
    """The cluster's roles and role bindings that carry all of `labels`."""
    return [thing for kind in CLUSTER_WIDE for thing in kube.list(_RBAC, kind, label_selector=_selector(labels))]


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _ours(kube: Kube, names: Iterable[str]) -> Objects:
    found = [space for name in names if (space := kube.get("v1", "Namespace", name)) is not None]
    strangers = [space["metadata"]["name"] for space in found if not is_ours(space)]
    if strangers:
        raise ClusterError(
            f"namespaces that are not ours (without the label {MANAGED_BY}), so left alone: {', '.join(strangers)}",
            where=kube.server,
            fix=f"use another cluster; or, if you mean it: kubectl delete namespace {' '.join(strangers)}",
        )
    return found
