"""The guardrail holds every attempt on a real cluster; with one rule taken away, exactly its attempts get through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest

from sandbox import attacks, images
from sandbox.cluster import nodes
from sandbox.kube import Kube, Object, Seen, guardrails, stacks, wait_for
from sandbox.kube.namespaces import MANAGED_BY
from sandbox.kube.resources import Objects
from sandbox.pytest_plugin import Clusters
from sandbox.spec.attack import Attempt

pytestmark = pytest.mark.live

Guarded = tuple[Kube, guardrails.Applied, dict[str, str]]
Found = dict[str, attacks.AttackResult]
PACKETS = [each.id for each in attacks.attempts() if each.expected_by == "N"]
REQUESTS = [each.id for each in attacks.attempts() if each.expected_by != "N"]
GRANT = "test-grant"


@pytest.fixture(scope="module")
def guarded(sandbox_clusters: Clusters) -> Iterator[Guarded]:
    cluster = sandbox_clusters.up("solo")
    guardrail, stack = guardrails.load("tenant"), stacks.load("vllm-sim")
    refs = {name: image.ref for name, image in images.ensure([*guardrail.images, *stack.images]).items()}
    nodes.load_images(cluster, list(refs.values()))
    kube = Kube.connect(cluster.kubeconfig, cluster.context)
    applied = guardrails.apply(kube, guardrail, {}, images=refs)
    try:
        stacks.deploy(kube, stack, {}, images=refs, addresses=cluster.node_addresses)
        yield kube, applied, refs
    finally:
        stacks.undeploy(kube, stack)
        guardrails.remove(kube, applied)
    assert not [each for each in ("inference", "tenant-a", "tenant-b") if kube.get("v1", "Namespace", each)]


@pytest.fixture
def restored(guarded: Guarded) -> Iterator[Guarded]:
    """The same, made whole again after a test that weakened it."""
    kube, applied, refs = guarded
    yield guarded
    kube.delete([*grant([]), *grant([], "kube-system"), *way_out(0)])
    guardrails.apply(kube, applied.guardrail, {}, images=refs)
    eventually(guarded, REQUESTS, "attempt", "denied")


def tried(guarded: Guarded, names: Iterable[str] = ("all",)) -> tuple[Found, Found]:
    """Every attempt made once: attempts and allowed twins, by id. Packets at once, for a stopped one takes seconds."""
    kube, applied, _ = guarded
    assert applied.tenant
    tenant = applied.tenant

    def make(attempt: Attempt) -> list[attacks.AttackResult]:
        return list(attacks.make(kube, tenant, attempt))

    chosen = attacks.attempts(names)
    found: tuple[Found, Found] = ({}, {})
    with ThreadPoolExecutor() as pool:
        packets = [pool.submit(make, each) for each in chosen if each.id in PACKETS]
        requests = [make(each) for each in chosen if each.id not in PACKETS]
    for results in [*requests, *(packet.result() for packet in packets)]:
        for result in results:
            found[result.variant == "allowed"][result.attempt] = result
    return found


def eventually(
    guarded: Guarded,
    names: Collection[str],
    variant: Literal["attempt", "allowed"],
    outcome: Literal["denied", "succeeded"],
) -> Found:
    """Make these until all end so: the API server and the nodes hear of a change a moment after it was made."""

    def look() -> Seen[Found]:
        found = tried(guarded, names)[variant == "allowed"]
        others = [str(result) for result in found.values() if result.outcome != outcome]
        return Seen(not others, found, "\n".join(others))

    return wait_for(look, within=60, what=f"{', '.join(names)} being {outcome}")


def grant(rules: list[dict[str, Any]], namespace: str | None = None) -> Objects:
    """A role with these rules and its binding to the tenant, in one namespace or in the whole cluster."""
    kind = "Role" if namespace else "ClusterRole"
    meta = {"name": GRANT, "labels": MANAGED_BY} | ({"namespace": namespace} if namespace else {})
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{rbac}/v1", "kind": kind, "metadata": meta, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": f"{kind}Binding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": GRANT},
            "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": "tenant-a"}],
        },
    ]


def way_out(*ports: int) -> Objects:
    """A policy that opens these ports everywhere to the tenant's pods."""
    policy: Object = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": GRANT, "namespace": "tenant-a", "labels": MANAGED_BY},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Egress"],
            "egress": [{"ports": [{"protocol": "TCP", "port": port} for port in ports]}],
        },
    }
    return [policy]


def manifest(guarded: Guarded, kind: str, name: str, namespace: str | None = "tenant-a") -> dict[str, Any]:
    (found,) = [
        each
        for each in guarded[1].objects
        if (each["kind"], each["metadata"]["name"], each["metadata"].get("namespace")) == (kind, name, namespace)
    ]
    return copy.deepcopy(found)


def test_every_attempt_is_denied_by_whom_it_has_to_be_and_every_twin_is_allowed(guarded: Guarded) -> None:
    attempts, twins = tried(guarded)
    assert len(attempts) == len(attacks.attempts()) >= 8
    for result in attempts.values():
        assert (result.outcome, result.by) == ("denied", result.expected_by), result
    for result in twins.values():
        assert result.outcome == "succeeded", result


def test_nothing_that_attempts_made_is_left(guarded: Guarded) -> None:
    kube, _, _ = guarded
    tried(guarded)
    kinds = [("v1", "Pod"), ("v1", "Service"), ("v1", "ConfigMap"), ("networking.k8s.io/v1", "NetworkPolicy")]
    left = [thing["metadata"]["name"] for kind in kinds for thing in kube.list(*kind, "tenant-a")]
    left += [thing["metadata"]["name"] for thing in kube.list("rbac.authorization.k8s.io/v1", "ClusterRoleBinding")]
    assert not [name for name in left if name.startswith("try-")]


def without_pod_security(guarded: Guarded) -> None:
    space = manifest(guarded, "Namespace", "tenant-a", None)
    space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "privileged"
    guarded[0].apply([space])


def with_rule(*resources: str, group: str = "", verbs: tuple[str, ...]) -> Callable[[Guarded], None]:
    def weaken(guarded: Guarded) -> None:
        role = manifest(guarded, "Role", "tenant")
        role["rules"].append({"apiGroups": [group], "resources": [*resources], "verbs": [*verbs]})
        guarded[0].apply([role])

    return weaken


def with_grant(*rules: dict[str, Any], namespace: str | None = None) -> Callable[[Guarded], None]:
    def weaken(guarded: Guarded) -> None:
        guarded[0].apply(grant([*rules], namespace))

    return weaken


def with_way_out(*ports: int) -> Callable[[Guarded], None]:
    def weaken(guarded: Guarded) -> None:
        guarded[0].apply(way_out(*ports))

    return weaken


def without_quota(key: str) -> Callable[[Guarded], None]:
    def weaken(guarded: Guarded) -> None:
        quota = manifest(guarded, "ResourceQuota", "tenant")
        del quota["spec"]["hard"][key]
        guarded[0].apply([quota])

    return weaken


def without_network_policies(guarded: Guarded) -> None:
    kube, applied, _ = guarded
    policies = [each for each in applied.objects if each["kind"] == "NetworkPolicy"]
    kube.delete([each for each in policies if each["metadata"]["namespace"] == "tenant-a"])


RBAC = "rbac.authorization.k8s.io"
LISTS_SECRETS = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}
MAKES_BINDINGS = {"apiGroups": [RBAC], "resources": ["clusterrolebindings"], "verbs": ["create"]}
BINDS_ADMIN = {
    "apiGroups": [RBAC],
    "resources": ["clusterroles"],
    "verbs": ["bind"],
    "resourceNames": ["cluster-admin"],
}


@pytest.mark.parametrize(
    ("weaken", "red"),
    [
        (without_pod_security, {"1-privileged-pod", "6-host-path", "10-run-as-root"}),
        (with_grant(MAKES_BINDINGS, BINDS_ADMIN), {"20-bind-cluster-admin"}),
        (with_grant(LISTS_SECRETS, namespace="kube-system"), {"33-foreign-secrets"}),
        (with_rule("networkpolicies", group="networking.k8s.io", verbs=("delete",)), {"59-delete-network-policy"}),
        (with_rule("namespaces", verbs=("delete",)), {"41-delete-own-namespace"}),
        (without_quota("services.nodeports"), {"72-node-port"}),
        (without_quota("requests.nvidia.com/gpu"), {"62-gpus-beyond-quota"}),
        (without_network_policies, {"40-kubelet-port", "77-another-tenants-pod", "78-api-server"}),
        (with_way_out(10250), {"40-kubelet-port"}),
        (with_way_out(8000), {"77-another-tenants-pod"}),
        (with_way_out(443, 6443), {"78-api-server"}),  # the Service's port and the one behind it
    ],
    ids=[
        "pod-security",
        "rbac-bind",
        "rbac-secrets",
        "rbac-policies",
        "rbac-namespace",
        "quota-node-ports",
        "quota-gpus",
        "network",
        "network-kubelet",
        "network-neighbour",
        "network-api-server",
    ],
)
def test_with_one_rule_weakened_exactly_its_attempts_get_through(
    restored: Guarded, weaken: Callable[[Guarded], None], red: set[str]
) -> None:
    weaken(restored)
    eventually(restored, red, "attempt", "succeeded")
    attempts, _ = tried(restored)
    assert {name for name, result in attempts.items() if result.outcome == "succeeded"} == red
    for name, result in attempts.items():
        if name not in red:
            assert (result.outcome, result.by) == ("denied", result.expected_by), result


@pytest.fixture
def cluster_admin(guarded: Guarded) -> Iterator[Guarded]:
    """A tenant that somebody bound to cluster-admin."""
    kube = guarded[0]
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "test-tenant-is-admin"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": "tenant-a"}],
    }
    kube.apply([binding])
    yield guarded
    kube.delete([binding])
    eventually(guarded, REQUESTS, "attempt", "denied")


def test_a_tenant_bound_to_cluster_admin_gets_past_rbac_and_past_nothing_else(cluster_admin: Guarded) -> None:
    by_rbac = {each.id for each in attacks.attempts() if each.expected_by == "R"}
    eventually(cluster_admin, by_rbac, "attempt", "succeeded")
    attempts, _ = tried(cluster_admin)
    assert {name for name, result in attempts.items() if result.outcome == "succeeded"} == by_rbac


def test_a_guardrail_that_denies_everything_does_not_pass(restored: Guarded) -> None:
    kube, _, _ = restored
    binding = manifest(restored, "RoleBinding", "tenant")
    kube.delete([binding, manifest(restored, "NetworkPolicy", "to-model")])
    twins = eventually(restored, ["1", "33", "72"], "allowed", "denied")
    assert {result.by for result in twins.values()} == {"R"}
    guardrails.apply(kube, restored[1].guardrail, {"modelAccess": False}, images=restored[2])
    twins = eventually(restored, PACKETS, "allowed", "denied")
    assert {result.by for result in twins.values()} == {"N"}


def test_a_target_that_answers_nobody_proves_nothing(restored: Guarded) -> None:
    kube, _, _ = restored
    kube.delete([manifest(restored, "Pod", "victim", "tenant-b")], grace=0)
    attempts, _ = tried(restored, ["77"])
    assert attempts["77-another-tenants-pod"].outcome == "error"


def test_the_model_answers_this_machine_through_the_default_deny_policy(guarded: Guarded) -> None:
    """`stacks.deploy` in the fixture made a completion through the node port; the policies were there before it."""
    kube, _, _ = guarded
    policies = {each["metadata"]["name"] for each in kube.list("networking.k8s.io/v1", "NetworkPolicy", "inference")}
    assert {"default-deny", "from-outside", "from-tenants"} <= policies
