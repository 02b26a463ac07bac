"""Namespaces of ours: made the same way by everybody who needs one, and removed only when provably ours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from sandbox.errors import ClusterError, DeadlineExceeded
from sandbox.kube import inventory
from sandbox.kube.client import Kube
from sandbox.kube.conditions import gone
from sandbox.kube.resources import Object, Objects, Resource, label
from sandbox.kube.wait import Seen, wait_for

MANAGED_BY = {"app.kubernetes.io/managed-by": "ai-k8s-sandbox"}
# what of a stack may lie outside its namespace, for only this is cleared there
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")
_RBAC = "rbac.authorization.k8s.io/v1"
_LINGER_SECONDS = 4.0
# The controller begins after five seconds. It deletes by the namespace's name: what is in one that was let go, and made
# again while the controller is at work, would be deleted too.
_ALONE_SECONDS = 4.2
_AT_ONCE = 6
_NOT_FOUND = 404
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

    Every kind that the server has in namespaces is deleted and looked at here: the namespace controller begins only
    five seconds after the deletion, and looks again after half the pods' own grace period. What is not empty by then is
    left to it. What is not there is no error.

    Raises:
        ClusterError: one is not ours; nothing was deleted. Or a kind could not be looked at.
        DeadlineExceeded: one is still there; names what holds it.
    """
    end(kube, [space["metadata"]["name"] for space in _ours(kube, names)], within=within)


def end(kube: Kube, names: Sequence[str], *, within: float = 90.0) -> None:
    """As `remove`, whoever's they are: for a cluster that is in our hands as a whole.

    Raises:
        ClusterError: a kind could not be looked at.
        DeadlineExceeded: one is still there; names what holds it.
    """
    if not names:
        return
    begun = time.monotonic()
    deadline = begun + within
    for name in names:  # first: nothing new is let in from here on, whatever a controller would make again
        kube.request("DELETE", kube.path(make(name)))
        kube.delete_all("v1", "Pod", name, grace=1)
    kinds = [each for each in inventory.resources(kube) if each.namespaced]
    paths = [each.path(name) for name in names for each in kinds if each.kind != "Pod"]
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        list(pool.map(lambda path: kube.request("DELETE", path), paths))
        for name in names:
            _end_pods(kube, name)
        for name in names:
            left = max(1.0, deadline - time.monotonic())
            wait_for(partial(_empty, kube, pool, kinds, name), within=left, what=f"the end of all that is in {name}")
            if time.monotonic() - begun < _ALONE_SECONDS:
                empty = {**make(name), "spec": {"finalizers": []}}
                kube.request("PUT", f"{kube.path(make(name))}/finalize", empty)
    kube.delete([make(name) for name in names], within=max(1.0, deadline - time.monotonic()))


def _end_pods(kube: Kube, name: str) -> None:
    """Wait for the pods. Those that linger are on a busy or a dead node; their time is over either way."""
    try:
        wait_for(gone(kube, "v1", "Pod", name), within=_LINGER_SECONDS, what=f"the end of the pods in {name}")
    except DeadlineExceeded:
        kube.delete_all("v1", "Pod", name, grace=0)


def _empty(kube: Kube, pool: ThreadPoolExecutor, kinds: Sequence[Resource], name: str) -> Seen[None]:
    """One look at whether a namespace holds nothing of any kind, but what the server itself counts."""
    looked = [each for each in kinds if not inventory.is_counted(each)]
    lists = [*pool.map(lambda each: kube.request("GET", each.path(name), query=[("limit", "5")]), looked)]
    left = []
    for each, answer in zip(looked, lists, strict=True):
        if answer.status == _NOT_FOUND:  # the kind has gone meanwhile
            continue
        if not answer.ok or not isinstance(answer.body, dict):
            left.append(f"{each.kind}: cannot be listed, status {answer.status}")
            continue
        for thing in answer.body["items"]:
            holders = ", ".join(thing["metadata"].get("finalizers") or [])
            left.append(f"{each.kind} {thing['metadata']['name']}" + (f", held by {holders}" if holders else ""))
    return Seen(not left, None, "\n".join(left))


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
