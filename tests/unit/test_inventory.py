"""Everything a cluster holds as one value: what two of them have different is what somebody left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import ClusterError
from sandbox.kube import inventory
from sandbox.kube.inventory import Inventory
from tests.unit.api_server import Answer, ApiServer, serving

Json = dict[str, Any]


def told(plural: str, kind: str, *, spaced: bool = True, verbs: tuple[str, ...] = ("get", "list")) -> Json:
    scope = "Namespaced" if spaced else "Cluster"
    return {"resource": plural, "responseKind": {"kind": kind}, "scope": scope, "verbs": [*verbs]}


def group(name: str, *versions: tuple[str, list[Json]], fresh: str = "Current") -> Json:
    parts = [{"version": version, "resources": found, "freshness": fresh} for version, found in versions]
    return {"metadata": {"name": name} if name else {}, "versions": parts}


CORE = group(
    "",
    ("v1", [
        told("pods", "Pod"), told("configmaps", "ConfigMap"), told("secrets", "Secret"), told("events", "Event"),
        told("nodes", "Node", spaced=False), told("bindings", "Binding", verbs=("create",)),
    ]),
)  # fmt: skip
APPS = group("apps", ("v1", [told("deployments", "Deployment")]), ("v1beta1", [told("deployments", "Deployment")]))
HELD: dict[str, list[Json]] = {
    "/api/v1/pods": [],
    "/api/v1/configmaps": [],
    "/api/v1/secrets": [],
    "/api/v1/nodes": [],
    "/apis/apps/v1/deployments": [],
}


def thing(name: str, space: str = "default", uid: str = "u", **more: Any) -> Json:
    metadata = {"name": name, "uid": uid, **({"namespace": space} if space else {}), **more.pop("metadata", {})}
    return {"metadata": metadata, **more}


def serve(server: ApiServer, held: dict[str, list[Json]], *groups: Json) -> None:
    server.on("GET", "/api", Answer(200, {"items": [CORE]}))
    server.on("GET", "/apis", Answer(200, {"items": [APPS, *groups]}))
    for path, items in {**HELD, **held}.items():
        server.on("GET", path, Answer(200, {"metadata": {"resourceVersion": "1"}, "items": items}))


def taken(folder: Path, held: dict[str, list[Json]], *groups: Json) -> Inventory:
    folder.mkdir(exist_ok=True)
    with serving(folder) as (server, kube):
        serve(server, held, *groups)
        return inventory.of(inventory.everything(kube))


def owned(name: str, by: str, kind: str = "ReplicaSet") -> Json:
    owner = {"apiVersion": "apps/v1", "kind": kind, "name": by, "controller": True}
    return thing(name, uid=name, metadata={"ownerReferences": [owner]})


MAP = thing("settings", data={"a": "1"})
NODE = thing("n1", "", spec={"taints": []}, status={"conditions": [1]})
BEFORE: dict[str, list[Json]] = {
    "/api/v1/configmaps": [MAP],
    "/api/v1/nodes": [NODE],
    "/api/v1/pods": [owned("sim-x", "sim-1"), thing("bare")],
}
MAPS, NODES, PODS = "/api/v1/configmaps", "/api/v1/nodes", "/api/v1/pods"
OTHER_MAP, OTHER_NODE = "changed: v1/ConfigMap default/settings", "changed: v1/Node n1"


def node(**metadata: Any) -> Json:
    return thing("n1", "", spec={"taints": []}, metadata=metadata)


LEFT: dict[str, tuple[str, list[Json], str]] = {
    "an object more": (MAPS, [MAP, thing("left")], "there since: v1/ConfigMap default/left"),
    "an object less": (MAPS, [], "gone: v1/ConfigMap default/settings"),
    "one of the same name": (MAPS, [thing("settings", uid="u2", data={"a": "1"})], OTHER_MAP),
    "another value": (MAPS, [thing("settings", data={"a": "2"})], OTHER_MAP),
    "a label": (NODES, [node(labels={"a": "b"})], OTHER_NODE),
    "a finalizer": (NODES, [node(finalizers=["x/y"])], OTHER_NODE),
    "a taint": (NODES, [thing("n1", "", spec={"taints": [{"key": "x"}]})], OTHER_NODE),
    "a pod that nobody owns": (
        PODS,
        [owned("sim-x", "sim-1"), thing("bare"), thing("left")],
        "there since: v1/Pod default/left",
    ),
    "a pod more of an owner": (
        PODS,
        [owned("a", "sim-1"), owned("b", "sim-1"), thing("bare")],
        "changed: apps/v1/ReplicaSet default/sim-1: 2 pods, 1 before",
    ),
}


@pytest.mark.parametrize("what", LEFT)
def test_whatever_is_left_is_seen_and_named(tmp_path: Path, what: str) -> None:
    path, items, words = LEFT[what]
    before, now = taken(tmp_path / "a", BEFORE), taken(tmp_path / "b", {**BEFORE, path: items})
    assert inventory.difference(before, now).words == [words]


COUNTED = {"resourceVersion": "9", "generation": 3, "managedFields": [1]}
SAME: dict[str, dict[str, list[Json]]] = {
    "a status": {NODES: [thing("n1", "", spec={"taints": []}, status={"conditions": [2]})]},
    "what the server counts": {MAPS: [thing("settings", data={"a": "1"}, metadata=COUNTED)]},
    "what a controller notes": {NODES: [node(annotations={"node.alpha.kubernetes.io/ttl": "0"})]},
    "a pod that its owner made anew": {PODS: [owned("sim-y", "sim-1"), thing("bare")]},
    "a token that ends by itself": {"/api/v1/secrets": [thing("t", type="bootstrap.kubernetes.io/token")]},
}


@pytest.mark.parametrize("what", SAME)
def test_what_changes_by_itself_is_no_leftover(tmp_path: Path, what: str) -> None:
    before, now = taken(tmp_path / "a", BEFORE), taken(tmp_path / "b", {**BEFORE, **SAME[what]})
    assert not inventory.difference(before, now)


LEASES = group("coordination.k8s.io", ("v1", [told("leases", "Lease")]))
SLICES = group("discovery.k8s.io", ("v1", [told("endpointslices", "EndpointSlice")]))
CSRS = group("certificates.k8s.io", ("v1", [told("csrs", "CertificateSigningRequest", spaced=False)]))


def test_of_what_controllers_make_only_what_none_of_them_made_counts(tmp_path: Path) -> None:
    owned_by = {"ownerReferences": [{"kind": "Node", "name": "n1"}]}
    served = {"labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}}
    held = {
        "/apis/coordination.k8s.io/v1/leases": [thing("n1", metadata=owned_by), thing("left", spec={"holder": "a"})],
        "/apis/discovery.k8s.io/v1/endpointslices": [thing("sim-x", metadata=served), thing("left")],
        "/apis/certificates.k8s.io/v1/csrs": [
            thing("csr-x", "", spec={"signerName": "kubernetes.io/kube-apiserver-client-kubelet"}),
            thing("left", "", spec={"signerName": "kubernetes.io/kube-apiserver-client"}),
        ],
    }
    now = taken(tmp_path / "b", held, LEASES, SLICES, CSRS)
    assert [*now.objects] == [
        "coordination.k8s.io/v1/Lease default/left",
        "discovery.k8s.io/v1/EndpointSlice default/left",
        "certificates.k8s.io/v1/CertificateSigningRequest left",
    ]
    held["/apis/coordination.k8s.io/v1/leases"][1] = thing("left", uid="u2", spec={"holder": "b"})
    assert not inventory.difference(now, taken(tmp_path / "c", held, LEASES, SLICES, CSRS))


def test_what_a_node_offers_is_asked_for_and_what_it_has_is_not(tmp_path: Path) -> None:
    def offers(**more: str) -> dict[str, list[Json]]:
        return {NODES: [thing("n1", "", spec={}, status={"allocatable": {"cpu": "2", **more}})]}

    before = taken(tmp_path / "a", offers(memory="1Gi"))
    assert not inventory.difference(before, taken(tmp_path / "b", offers(memory="2Gi")))
    with_gpu = taken(tmp_path / "c", offers(**{"nvidia.com/gpu": "1"}))
    assert inventory.difference(before, with_gpu).words == [OTHER_NODE]


def test_the_fields_that_changed_are_named() -> None:
    before = {"metadata": {"labels": {"a": "1"}}, "spec": {"taints": [], "deep": {"a": {"b": 1}}}}
    now = {"metadata": {"labels": {}}, "spec": {"taints": [1], "deep": {"a": {"b": 2}}}}
    assert inventory.paths_changed(before, now) == ["metadata.labels.a", "spec.deep.a", "spec.taints"]
    assert inventory.paths_changed(before, before) == []


def test_objects_of_kinds_that_came_since_are_seen(tmp_path: Path) -> None:
    mine = group("mine.example", ("v1", [told("widgets", "Widget")]))
    now = taken(tmp_path / "b", {"/apis/mine.example/v1/widgets": [thing("w")]}, mine)
    assert inventory.difference(taken(tmp_path / "a", {}), now).added == ("mine.example/v1/Widget default/w",)


def test_a_kind_in_two_versions_is_listed_once_and_one_that_cannot_be_listed_never(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, kube):
        serve(server, {"/apis/apps/v1/deployments": [thing("d")]})
        assert [*inventory.of(inventory.everything(kube)).objects] == ["apps/v1/Deployment default/d"]
        paths = [asked.path for asked in server.asked]
        assert not [path for path in paths if "v1beta1" in path or "bindings" in path or "events" in path]


def test_all_pages_are_read(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, kube):
        first = Answer(200, {"metadata": {"continue": "next"}, "items": [thing("one")]})
        second = Answer(200, {"metadata": {}, "items": [thing("two")]})
        server.rules.append(
            lambda asked: (second if "continue" in asked.query else first) if asked.path == "/api/v1/secrets" else None
        )
        serve(server, {})
        assert len(inventory.of(inventory.everything(kube)).objects) == 2


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/api/v1/secrets", Answer(403, {"kind": "Status"}), "v1 Secret"),
        ("/api/v1/secrets", Answer(503), "v1 Secret"),
        ("/apis", Answer(500), "/apis answers 500"),
        ("/apis", Answer(200, {"items": [group("mine.example", ("v1", []), fresh="Stale")]}), "mine.example"),
    ],
)
def test_what_cannot_be_seen_is_never_called_clean(tmp_path: Path, path: str, answer: Answer, words: str) -> None:
    with serving(tmp_path) as (server, kube):
        server.on("GET", path, answer)
        serve(server, {})
        with pytest.raises(ClusterError) as told_:
            inventory.of(inventory.everything(kube))
    assert words in str(told_.value)


def test_metrics_that_do_not_answer_yet_hide_nothing(tmp_path: Path) -> None:
    found = taken(tmp_path, {MAPS: [MAP]}, group("metrics.k8s.io", ("v1beta1", []), fresh="Stale"))
    assert [*found.objects] == ["v1/ConfigMap default/settings"]
