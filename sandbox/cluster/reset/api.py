"""Steps of a reset in the API: what came is removed, what was changed or went is put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from sandbox.cluster import guard
from sandbox.cluster.reset.turn import SECOND, Turn
from sandbox.cluster.snapshots.saving import is_mirror
from sandbox.errors import DeadlineExceeded
from sandbox.kube import Object, inventory, namespaces
from sandbox.kube.conditions import is_ready

if TYPE_CHECKING:
    from sandbox.kube.resources import Objects

_AT_ONCE = 6
_NAMESPACE_SECONDS = 30.0
_ADMISSION = "admissionregistration.k8s.io/v1"
# what can refuse the removal of all else, or keep kinds from being listed
_GATES = (
    (_ADMISSION, "ValidatingWebhookConfiguration"),
    (_ADMISSION, "MutatingWebhookConfiguration"),
    (_ADMISSION, "ValidatingAdmissionPolicyBinding"),
    (_ADMISSION, "ValidatingAdmissionPolicy"),
    ("apiregistration.k8s.io/v1", "APIService"),
)
_OF_A_CRD = "kube-aggregator.kubernetes.io/automanaged"  # such an APIService goes with its kinds
_MERGE = {"Content-Type": "application/merge-patch+json"}
_OF_THE_SERVER = ("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "selfLink")


def gates(turn: Turn) -> None:
    """Remove webhooks, admission policies and APIServices that came, before anything else is asked of the API."""
    guard.prove_ours(turn.cluster)
    for api_version, kind in _GATES:
        for thing in turn.kube.list(api_version, kind):
            made_by_a_kind = _OF_A_CRD in (thing["metadata"].get("labels") or {})
            if inventory.name_of(thing) not in turn.clean.inventory.objects and not made_by_a_kind:
                turn.kube.request("DELETE", turn.kube.path(thing))


def put_back(turn: Turn) -> None:
    """Put back what was asked for in objects that were changed, and make those anew that went.

    What another object owns is made by its controller, if at all.
    """
    for name in turn.difference.changed:
        before, now = turn.clean.bodies.get(name), turn.objects.get(name)
        if before and now and (name in turn.memory.made or before["metadata"]["uid"] == now["metadata"]["uid"]):
            _replace(turn, before, now)
    for name in turn.difference.removed:
        before = turn.clean.bodies.get(name)
        if before and not before["metadata"].get("ownerReferences"):
            turn.memory.made.add(name)
            turn.kube.request("POST", turn.kube.path(before, collection=True), _fresh(before))


def finalizers(turn: Turn) -> None:
    """Take the finalizers off objects that came: who would act on them may be gone."""
    held = [thing for thing in turn.came if thing["metadata"].get("finalizers") and not _is_crd(thing)]
    _each(turn, "PATCH", held, {"metadata": {"finalizers": None}}, _MERGE)


def spaces(turn: Turn) -> None:
    """Remove namespaces that came, with all they hold."""
    names = [thing["metadata"]["name"] for thing in turn.came if thing["kind"] == "Namespace"]
    with suppress(DeadlineExceeded):  # the next look says what is left
        namespaces.end(turn.kube, names, within=_NAMESPACE_SECONDS)


def volumes(turn: Turn) -> None:
    """Remove claims and volumes that came. The provisioner forgets one whose claim went while it was being made."""
    _delete(turn, [thing for thing in turn.came if _is_volume(thing)])


def objects(turn: Turn) -> None:
    """Remove all other objects that came."""
    kept = {thing["metadata"]["name"] for thing in turn.came if thing["kind"] == "Namespace"}  # they go with it
    rest = [thing for thing in turn.came if thing["metadata"].get("namespace") not in kept]
    rest = [thing for thing in rest if thing["kind"] != "Namespace" and not _is_crd(thing) and not _is_volume(thing)]
    _delete(turn, rest, grace=1 if turn.number < SECOND else 0)


def kinds(turn: Turn) -> None:
    """Remove kinds that came: CRDs, whose objects are gone by now or go with them."""
    _delete(turn, [thing for thing in turn.came if _is_crd(thing)])


def pods(turn: Turn) -> None:
    """End the pods in namespaces of ours: in their processes and file systems is what was done to them."""
    _delete(turn, _old_pods(turn), grace=1)


def events(turn: Turn) -> None:
    """Remove the events of before."""
    for space in sorted({event["metadata"]["namespace"] for event in _old_events(turn)}):
        turn.kube.request("DELETE", f"/api/v1/namespaces/{space}/events")


def lost(turn: Turn) -> list[str]:
    """Namespaces that went, or are others of that name: what was in them cannot be put back, UIDs and all."""
    found = []
    for name in (name for name in turn.clean.bodies if name.startswith("v1/Namespace ")):
        now = turn.objects.get(name)
        if now is None or now["metadata"]["uid"] != turn.clean.bodies[name]["metadata"]["uid"]:
            found.append(name)
    return found


def left(turn: Turn) -> list[str]:
    """Pods and events of before, and pods that are not Ready: the inventory counts pods, and knows no events."""
    told = [f"of before: {inventory.name_of(pod)}" for pod in _old_pods(turn)]
    spaces = Counter(event["metadata"]["namespace"] for event in _old_events(turn))
    told += [f"of before: {number} events in {space}" for space, number in sorted(spaces.items())]
    return told + [f"not Ready: {inventory.name_of(pod)}" for pod in _our_pods(turn) if not is_ready(pod)]


def _our_pods(turn: Turn) -> Objects:
    """The pods in those of our namespaces that a clean cluster has."""
    known = turn.clean.bodies.values()
    ours = {each["metadata"]["name"] for each in known if each["kind"] == "Namespace" and namespaces.is_ours(each)}
    found = [thing for thing in turn.objects.values() if (thing["apiVersion"], thing["kind"]) == ("v1", "Pod")]
    return [pod for pod in found if pod["metadata"]["namespace"] in ours and not is_mirror(pod)]


def _old_pods(turn: Turn) -> Objects:
    return [pod for pod in _our_pods(turn) if pod["metadata"]["uid"] in _old(turn)]


def _old_events(turn: Turn) -> Objects:
    return [event for event in turn.events if event["metadata"]["uid"] in _old(turn)]


def _old(turn: Turn) -> set[str]:
    """The UIDs of pods and events that were there in the first turn."""
    if turn.memory.old is None:
        turn.memory.old = {thing["metadata"]["uid"] for thing in [*_our_pods(turn), *turn.events]}
    return turn.memory.old


def _replace(turn: Turn, before: Object, now: Object) -> None:
    """Give an object what was asked for before; what controllers note in it stays as it is now."""
    fresh = _fresh(before)
    notes = {**(fresh["metadata"].get("annotations") or {})}
    kept = {
        key: value
        for key, value in (now["metadata"].get("annotations") or {}).items()
        if key.startswith(inventory.KEPT_BY_CONTROLLERS)
    }
    fresh["metadata"] |= {"annotations": notes | kept, "resourceVersion": now["metadata"]["resourceVersion"]}
    turn.kube.request("PUT", turn.kube.path(now), fresh)
    offered, offers = inventory.extended(before), inventory.extended(now)
    if now["kind"] == "Node" and offered != offers:
        change = {**dict.fromkeys(offers), **offered}
        status = {"status": {"capacity": change, "allocatable": change}}
        turn.kube.request("PATCH", f"{turn.kube.path(now)}/status", status, _MERGE)


def _fresh(thing: Object) -> Object:
    """An object as it can be sent: without what the server writes, and without status."""
    dropped = {*_OF_THE_SERVER, "resourceVersion", "uid"}
    metadata = {key: value for key, value in thing["metadata"].items() if key not in dropped}
    return {**{key: value for key, value in thing.items() if key != "status"}, "metadata": metadata}


def _delete(turn: Turn, things: Iterable[Object], *, grace: int = 0) -> None:
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background", "gracePeriodSeconds": grace}
    _each(turn, "DELETE", things, body)


def _each(
    turn: Turn, method: str, things: Iterable[Object], body: Object, headers: Mapping[str, str] | None = None
) -> None:
    """Ask it of each, several at once; what the server refuses is found by the next look."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        list(pool.map(lambda thing: turn.kube.request(method, turn.kube.path(thing), body, headers), things))


def _is_crd(thing: Object) -> bool:
    return bool(thing["kind"] == "CustomResourceDefinition")


def _is_volume(thing: Object) -> bool:
    return thing["kind"] in {"PersistentVolume", "PersistentVolumeClaim"}
