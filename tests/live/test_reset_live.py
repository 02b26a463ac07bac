"""A cluster is reset, proven clean, put back into the pool and leased again.

About 100 s on a machine that is busy with other things, and 50 to 180 s there to prepare the cluster.

Everything a scenario can leave behind is left on purpose. The look at the cluster names each; with a step of the reset
left out, what that step removes is still named; with all steps nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from sandbox import cluster, images, paths
from sandbox.cluster import Cluster, Owner, clean, containers, making, record
from sandbox.cluster.clean import Clean
from sandbox.cluster.pool import entries, filling, leasing, stillness
from sandbox.cluster.reset import Unclean, api, reset, resetting
from sandbox.cluster.reset.turn import Turn
from sandbox.host.engine import client
from sandbox.kube import Kube, Seen, guardrails, stacks, wait_for
from sandbox.kube.preparation import Preparation
from sandbox.spec import load
from sandbox.spec.cluster import ClusterSpec

pytestmark = [pytest.mark.live, pytest.mark.alone]

NAME = f"live-reset-{os.getpid()}"
NODE = "solo-control-plane"
SOLO = load(paths.catalogue("clusters")[0] / "solo.yaml", ClusterSpec).model
FOLDER = "/var/local-path-provisioner/pvc-left"
DAEMON = "exec -a left sleep 100000"

# step of the reset -> how a line begins or goes on that names what only this step removes
LEFT: dict[str, tuple[str, ...]] = {
    "packet_filter": (
        "iptables filter -A INPUT -p tcp -m tcp --dport 9 -j DROP",
        "iptables filter -N LEFT",
        "iptables filter -P FORWARD DROP",
        "iptables raw -A PREROUTING -s 192.0.2.9/32 -j DROP",
        "table ip left",
    ),
    "traffic_control": ("qdisc of tbf",),
    "addresses": ("link left0", "address of lo inet 192.0.2.1/24", "route 198.51.100.0/24 dev lo"),
    "processes": ("process sleep",),
    "stopped": ("stopped process coredns",),
    "gates": ("there since: admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration left",),
    "put_back": (
        f"changed: v1/Node {NODE}: metadata.annotations.left, metadata.labels.left, offers.left.example/gpu, ",
        "changed: apps/v1/Deployment inference/vllm-sim: spec.replicas",
        "gone: networking.k8s.io/v1/NetworkPolicy",
    ),
    "finalizers": ("there since: v1/ConfigMap default/held",),
    "spaces": ("there since: v1/Namespace left",),
    "volumes": ("there since: v1/PersistentVolume left", "there since: v1/PersistentVolumeClaim default/left"),
    "objects": (
        "there since: coordination.k8s.io/v1/Lease default/left",
        "there since: networking.k8s.io/v1/NetworkPolicy default/left",
        "there since: rbac.authorization.k8s.io/v1/ClusterRole left",
        "there since: v1/Pod default/left",
    ),
    "kinds": ("there since: apiextensions.k8s.io/v1/CustomResourceDefinition widgets.left.example",),
    "pods": ("of before: v1/Pod inference/",),
    "events": ("events in kube-system",),
    "files": ("/etc/left", f"folder 755 0 0 {FOLDER}", "folder 0 0 0 /left", "/shm/left"),
}
ON_NODE = f"""
iptables -A INPUT -p tcp --dport 9 -j DROP; iptables -N LEFT; iptables -A FORWARD -j LEFT; iptables -P FORWARD DROP
iptables -t raw -A PREROUTING -s 192.0.2.9 -j DROP; nft add table ip left
tc qdisc replace dev eth0 root tbf rate 1gbit burst 1mbit latency 50ms
ip link add left0 type bridge; ip address add 192.0.2.1/24 dev lo; ip route add 198.51.100.0/24 dev lo
mkdir -p {FOLDER} /left; for file in {FOLDER}/data /etc/left /dev/shm/left; do echo left >$file; done
pkill -STOP -x coredns
true
"""


def a(kind: str, name: str = "left", space: str | None = "default", api: str = "v1", **rest: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": space} if space else {}), **rest.pop("metadata", {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def things(image: str) -> list[dict[str, Any]]:
    """An object of every sort that a scenario can make, in the order they can be made."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget"}
    widgets = {"group": "left.example", "scope": "Namespaced", "names": names, "versions": [version]}
    container = {"name": "main", "image": image, "command": ["sleep", "100000"], "imagePullPolicy": "Never"}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    lost = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default", "name": "gone", "uid": "gone"}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["secrets"]}
    hook = {
        "name": "left.left.example", "rules": [rule], "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "timeoutSeconds": 1,
    }  # fmt: skip
    return [
        a("Namespace", space=None),
        a("ConfigMap", "inside", "left", metadata={"finalizers": ["left.example/inside"]}),
        a("CustomResourceDefinition", "widgets.left.example", None, "apiextensions.k8s.io/v1", spec=widgets),
        a("Widget", api="left.example/v1", metadata={"finalizers": ["left.example/widget"]}),
        a("ConfigMap", "held", metadata={"finalizers": ["left.example/held"]}),
        a("ClusterRole", space=None, api="rbac.authorization.k8s.io/v1", rules=[]),
        a("NetworkPolicy", api="networking.k8s.io/v1", spec={"podSelector": {}}),
        a("Lease", api="coordination.k8s.io/v1", spec={"holderIdentity": "left"}),
        a("PersistentVolumeClaim", spec={**claim, "storageClassName": "none"}),
        a("PersistentVolume", space=None, spec={
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Mi"}, "hostPath": {"path": FOLDER},
            "claimRef": lost, "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "none",
        }),
        a("Pod", spec={"containers": [container], "nodeName": NODE, "terminationGracePeriodSeconds": 60}),
        a("Secret", "guarded"),
        a("ValidatingWebhookConfiguration", space=None, api="admissionregistration.k8s.io/v1", webhooks=[hook]),
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A pool of its own, and no snapshots: nobody else's are leased, and none of ours is left to others."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_STATE_DIR", str(folder))
        patch.setenv("SANDBOX_SNAPSHOTS", "off")
        yield
        if record.find(NAME) is not None:
            cluster.down(NAME)
        entries.drain()
        labelled = {"label": f"ai-k8s-sandbox.state={folder}"}
        assert client().containers.list(all=True, filters=labelled) == []
        for base in client().volumes.list(filters=labelled):  # of the node image, as long as this folder is used
            assert str(base.name).startswith("sandbox-base-")
            base.remove()


@pytest.fixture(scope="module")
def prepared() -> Preparation:
    stack, tenant = stacks.load("vllm-sim"), guardrails.load("tenant")
    return Preparation(SOLO, [(tenant, {})], [(stack, {})], [*dict.fromkeys([*stack.images, *tenant.images])])


@pytest.fixture(scope="module")
def refs(prepared: Preparation) -> dict[str, str]:
    return {name: image.ref for name, image in images.ensure([*prepared.images]).items()}


def leased(prepared: Preparation, refs: dict[str, str]) -> Cluster:
    deployed = prepared.objects(refs)
    return cluster.up(SOLO, name=NAME, app_images=prepared.images, owner=Owner.me(), deployed=deployed)


@pytest.fixture(scope="module")
def one(prepared: Preparation, refs: dict[str, str]) -> Cluster:
    filling.fill(prepared, 1)
    made = leased(prepared, refs)
    assert made.origin.way == "pool"
    return made


@pytest.fixture(scope="module")
def known(one: Cluster) -> SimpleNamespace:
    """What it held when it was clean: `clean`. A reset that puts objects back gives them other UIDs."""
    return SimpleNamespace(clean=clean.read(one.name))


def soil(one: Cluster, refs: dict[str, str], *, policies: bool = True) -> None:
    """Leave all of it; what is there already stays. With `policies` those of the tenant go."""
    kube, (node,) = Kube.connect(one.kubeconfig, one.context), containers.nodes(client(), NAME)
    containers.run(node, ["bash", "-c", ON_NODE])
    node.exec_run(["bash", "-c", DAEMON], detach=True)
    kube.apply(things(refs["toolbox"]))
    noted = {"metadata": {"labels": {"left": "x"}, "annotations": {"left": "x"}}}
    taints = [{"key": "left", "effect": "PreferNoSchedule"}]
    kube.patch("v1", "Node", NODE, {**noted, "spec": {"taints": taints, "unschedulable": True}})
    offered = {"status": {"capacity": {"left.example/gpu": "1"}, "allocatable": {"left.example/gpu": "1"}}}
    headers = {"Content-Type": "application/merge-patch+json"}
    assert kube.request("PATCH", f"/api/v1/nodes/{NODE}/status", offered, headers).ok
    kube.patch("apps/v1", "Deployment", "vllm-sim", {"spec": {"replicas": 2}}, "inference")
    for policy in kube.list("networking.k8s.io/v1", "NetworkPolicy", "tenant-a") if policies else []:
        kube.request("DELETE", kube.path(policy))

    def released() -> Seen[None]:
        phase = (kube.get("v1", "PersistentVolume", "left") or {}).get("status", {}).get("phase")
        return Seen(phase == "Released", None, f"the volume is {phase}")

    wait_for(released, within=30, what="a volume whose claim has gone")


def named(lines: list[str]) -> set[str]:
    """The steps of which something is named."""
    text = "\n".join(lines)
    return {step for step, words in LEFT.items() if any(each in text for each in words)}


def red(one: Cluster, before: Clean, skipped: set[str]) -> list[str]:
    """What one turn of a reset without these steps says is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resetting, "STEPS", _kept(skipped))
        with pytest.raises(Unclean) as told:
            reset(one, before, within=0.1)
    return told.value.details


class StaysRedError(Exception):
    """Two turns in a row named the same steps."""


def stays_red(one: Cluster, before: Clean, skipped: set[str], expected: set[str]) -> None:
    """Go through turns without these steps until what they leave, and nothing else, is named twice in a row."""
    seen: list[set[str]] = []

    def look(turn: Turn) -> None:
        lines = clean.difference(turn.clean, [*turn.objects.values()], turn.traces, made=turn.memory.made)
        seen.append(named(lines + api.left(turn)))
        if seen[-2:] == [expected, expected]:
            raise StaysRedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resetting, "STEPS", (*_kept(skipped), look))
        with pytest.raises(StaysRedError):
            reset(one, before)


def _kept(skipped: set[str]) -> tuple[resetting.Step, ...]:
    kept = tuple(step for step in resetting.STEPS if step.__name__ not in skipped)
    assert len(kept) == len(resetting.STEPS) - len(skipped)
    return kept


def answers(one: Cluster) -> bool:
    kube = Kube.connect(one.kubeconfig, one.context)
    (service,) = kube.list("v1", "Service", "inference")
    url = f"http://{one.node_addresses[0]}:{service['spec']['ports'][0]['nodePort']}/v1/models"
    return httpx.get(url, trust_env=False, timeout=5).is_success


def test_the_look_names_everything_that_was_left(one: Cluster, known: SimpleNamespace, refs: dict[str, str]) -> None:
    steps = {step.__name__ for step in resetting.STEPS}
    assert steps == {*LEFT, "running"}
    soil(one, refs)
    text = "\n".join(red(one, known.clean, steps))
    assert [words for every in LEFT.values() for words in every if words not in text] == []


# What one of them leaves, another one of its group may need: objects with finalizers in a namespace, of a kind.
FIRST = {"packet_filter", "addresses", "stopped", "put_back", "finalizers", "spaces", "kinds", "events"}


@pytest.mark.parametrize("skipped", [FIRST, {*LEFT} - FIRST], ids=["first", "second"])
def test_a_reset_that_leaves_steps_out_is_red_and_names_what_each_left(
    one: Cluster, known: SimpleNamespace, refs: dict[str, str], skipped: set[str]
) -> None:
    soil(one, refs, policies="put_back" in skipped)  # made anew by a reset that fails, they would be strangers
    held = {"finalizers"} if "objects" in skipped else set()  # what it frees is still there
    stays_red(one, known.clean, skipped, skipped | held)
    known.clean = reset(one, known.clean).clean


def test_an_api_that_answers_for_nobody_and_a_node_that_stands_still_are_red(
    one: Cluster, known: SimpleNamespace
) -> None:
    kube, (node,) = Kube.connect(one.kubeconfig, one.context), containers.nodes(client(), NAME)
    spec = {
        "group": "left.example", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
        "service": {"name": "left", "namespace": "default"},
    }  # fmt: skip
    kube.apply([a("APIService", "v1.left.example", None, "apiregistration.k8s.io/v1", spec=spec)])
    assert any("left.example" in line for line in red(one, known.clean, {"gates"}))
    stillness.still([node])
    assert any("does not tell what is on it" in line for line in red(one, known.clean, {"running"}))


def test_after_a_reset_nothing_is_seen_and_the_next_lease_is_clean(
    one: Cluster, known: SimpleNamespace, prepared: Preparation, refs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_POOL", "1")
    clean.write(NAME, reset(one, known.clean).clean)
    soil(one, refs)
    assert cluster.release(NAME) == [f"{NAME}: put back into the pool as {one.engine_name}"]
    (entry,) = entries.entries()
    assert (entry.name, entry.contents) == (one.engine_name, prepared.words)
    again = leased(prepared, refs)
    assert (again.origin.way, again.engine_name, again.uid) == ("pool", one.engine_name, one.uid)
    assert answers(again)
    cluster.release(NAME)


def test_one_that_died_in_the_pool_is_removed_and_not_handed_out(
    one: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = entries.entries()
    (node,) = containers.nodes(client(), entry.name)
    node.unpause()
    node.kill()
    order = making.Order(client(), SOLO, NAME, Owner.me(), Path("kind"), one.image, {}, "")
    assert leasing.lease(order, entry.key) is None
    assert "it died in the pool" in capsys.readouterr().err
    assert (entries.entries(), containers.nodes(client(), entry.name), record.find(NAME)) == ([], (), None)
