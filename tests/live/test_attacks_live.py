"""The guardrail holds every attempt on a real cluster; with one rule taken away, exactly its attempts get through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox import attacks, images
from sandbox.cluster import nodes
from sandbox.kube import Kube, guardrails, stacks
from sandbox.pytest_plugin import Clusters

pytestmark = pytest.mark.live

Guarded = tuple[Kube, guardrails.Applied, dict[str, str]]
Found = dict[str, attacks.AttackResult]


@pytest.fixture(scope="module")
def guarded(sandbox_clusters: Clusters, pytestconfig: pytest.Config) -> Iterator[Guarded]:
    cluster = sandbox_clusters.up("solo", pytestconfig.getoption("--sandbox-cluster"))
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
    guardrails.apply(kube, applied.guardrail, {}, images=refs)


def tried(guarded: Guarded, names: list[str] | None = None) -> tuple[Found, Found]:
    """Every attempt made once: attempts and allowed twins, by id."""
    kube, applied, _ = guarded
    assert applied.tenant
    found: tuple[Found, Found] = ({}, {})
    for attempt in attacks.attempts(names or ["all"]):
        for result in attacks.make(kube, applied.tenant, attempt):
            found[result.variant == "allowed"][result.attempt] = result
    return found


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


@pytest.mark.parametrize(
    ("weaken", "red"),
    [
        (without_pod_security, {"1-privileged-pod", "6-host-path", "10-run-as-root"}),
        (with_rule("networkpolicies", group="networking.k8s.io", verbs=("delete",)), {"59-delete-network-policy"}),
        (with_rule("namespaces", verbs=("delete",)), {"41-delete-own-namespace"}),
        (without_quota("services.nodeports"), {"72-node-port"}),
        (without_quota("requests.nvidia.com/gpu"), {"62-gpus-beyond-quota"}),
        (without_network_policies, {"77-another-tenants-pod"}),
    ],
    ids=["pod-security", "rbac-policies", "rbac-namespace", "quota-node-ports", "quota-gpus", "network"],
)
def test_with_one_rule_weakened_exactly_its_attempts_get_through(
    restored: Guarded, weaken: Callable[[Guarded], None], red: set[str]
) -> None:
    weaken(restored)
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


def test_a_tenant_bound_to_cluster_admin_gets_past_rbac_and_past_nothing_else(cluster_admin: Guarded) -> None:
    attempts, _ = tried(cluster_admin)
    red = {name for name, result in attempts.items() if result.outcome == "succeeded"}
    assert red == {each.id for each in attacks.attempts() if each.expected_by == "R"}


def test_a_guardrail_that_denies_everything_does_not_pass(restored: Guarded) -> None:
    kube, _, _ = restored
    binding = manifest(restored, "RoleBinding", "tenant")
    kube.delete([binding, manifest(restored, "NetworkPolicy", "to-model")])
    _, twins = tried(restored, ["1", "33", "72"])
    assert {(result.outcome, result.by) for result in twins.values()} == {("denied", "R")}
    guardrails.apply(kube, restored[1].guardrail, {"modelAccess": False}, images=restored[2])
    _, twins = tried(restored, ["77"])
    assert [(result.outcome, result.by) for result in twins.values()] == [("denied", "N")]


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
