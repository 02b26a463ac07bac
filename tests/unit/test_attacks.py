from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import attacks
from sandbox.attacks import run
from sandbox.attacks.catalogue import FOLDER, build, fill
from sandbox.attacks.denial import denied_by
from sandbox.errors import UsageError
from sandbox.kube import ExecResult, Kube, Response, guardrails
from sandbox.kube.failures import Unreachable
from sandbox.kube.guardrails import Tenant
from sandbox.kube.namespaces import MANAGED_BY
from sandbox.spec import load_text
from sandbox.spec.attack import Attempt, Create
from sandbox.spec.guardrail import Neighbour
from tests.unit.api_server import Answer, ApiServer, serving, status

ALL = attacks.attempts()
BY_ID = {each.id: each for each in ALL}
NAMES = {"tenant": "tenant-a", "serviceAccount": "tenant", "pod": "workbench", "image": "i:1"}
NAMES |= {
    "name": "try-1",
    "nodeIP": "10.0.0.1",
    "victimIP": "10.1.0.1",
    "modelHost": "m",
    "modelIP": "10.2.0.1",
    "modelPort": "8000",
}
TENANT = Tenant("tenant-a", "tenant", "workbench", "inference", None, "i:1")
NEIGHBOUR = Neighbour(namespace="tenant-b", victim="victim", free="free", locked="locked")
GUARDED = Tenant("tenant-a", "tenant", "workbench", "inference", NEIGHBOUR, "i:1")


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[ApiServer, Kube]]:
    with serving(tmp_path) as (server, kube):
        token = Answer(201, {"status": {"token": "the-tenants"}})
        server.on("POST", "/api/v1/namespaces/tenant-a/serviceaccounts/tenant/token", token)
        yield server, kube


def forbidden(message: str) -> Answer:
    return status(403, "Forbidden", message)


PODS = "/api/v1/namespaces/tenant-a/pods"
POD_SECURITY = forbidden('pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged')
CREATED = Answer(201, {"kind": "Pod", "metadata": {"name": "x"}})


def test_there_are_eight_attempts_of_four_deniers_with_numbers_and_names_of_their_own() -> None:
    assert len(ALL) >= 8
    assert {each.expected_by for each in ALL} >= {"R", "P", "Q", "N"}
    assert len({each.number for each in ALL}) == len({each.metadata.name for each in ALL}) == len(ALL)


@pytest.mark.parametrize("attempt", ALL, ids=lambda each: each.id)
def test_every_reference_and_pointer_of_an_attempt_leads_somewhere(attempt: Attempt) -> None:
    for way in (attempt.attempt, attempt.allowed):
        if way.create:
            thing = build(way.create, NAMES)
            assert thing["metadata"]["name"] == "try-1"
        assert "$(" not in str(fill(way.model_dump(), NAMES))


def test_the_list_in_the_docs_is_the_catalogue() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/attacks.md").read_text()
    assert re.findall(r"^\| (\d+-[a-z0-9-]+) \|", page, flags=re.MULTILINE) == [each.id for each in ALL]


def test_every_reference_there_is_is_used_by_an_attempt() -> None:
    used = {name for file in FOLDER.rglob("*.yaml") for name in re.findall(r"\$\((\w+)\)", file.read_text())}
    assert used == set(NAMES)


def test_whatever_an_attempt_makes_carries_our_label() -> None:
    bases = [yaml.safe_load(file.read_text()) for file in (FOLDER / "bases").glob("*.yaml")]
    assert bases
    for base in bases:
        assert base["metadata"]["labels"].items() >= MANAGED_BY.items()
        assert base["metadata"]["namespace"] == "$(tenant)", "what is left goes with the namespace"


@pytest.mark.parametrize("attempt", [each for each in ALL if each.attempt.request], ids=lambda each: each.id)
def test_a_request_that_would_change_more_than_the_attempts_own_object_is_a_dry_run(attempt: Attempt) -> None:
    call = attempt.attempt.request
    assert call
    assert call.method == "GET" or "dryRun=All" in call.path or "$(name)" in call.path


@pytest.mark.parametrize("attempt", [each for each in ALL if each.expected_by in "PQ"], ids=lambda each: each.id)
def test_what_the_attempt_makes_differs_from_what_is_allowed(attempt: Attempt) -> None:
    assert attempt.attempt.create
    assert attempt.allowed.create
    assert build(attempt.attempt.create, NAMES) != build(attempt.allowed.create, NAMES)


def test_attempts_are_chosen_by_id_name_or_number_and_unknown_ones_are_refused() -> None:
    assert [each.number for each in attacks.attempts(["privileged-pod", "77", "6-host-path"])] == [1, 6, 77]
    with pytest.raises(UsageError, match="unknown attempts: nonsense") as caught:
        attacks.attempts(["1", "nonsense"])
    assert "1-privileged-pod" in caught.value.fix


def test_an_attempt_that_network_policy_stops_must_be_a_packet() -> None:
    text = (Path(attacks.__file__).parent / "catalogue/01-privileged-pod.yaml").read_text()
    with pytest.raises(UsageError, match="1 problem"):
        load_text(text.replace("expectedBy: P", "expectedBy: N"), Path("x.yaml"), Attempt)


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\$\(nobody\)"):
        build(Create(base="pod", set={"/metadata/name": "$(nobody)"}), NAMES)


@pytest.mark.parametrize(
    ("code", "message", "by"),
    [
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged', "P"),
        (403, 'secrets is forbidden: User "system:serviceaccount:a:t" cannot list resource "secrets"', "R"),
        (403, 'roles "x" is forbidden: user "t" is attempting to grant RBAC permissions not currently held', "R"),
        (403, 'pods "x" is forbidden: exceeded quota: tenant, requested: pods=1, used: pods=10, limited: pods=10', "Q"),
        (403, 'pods "x" is forbidden: maximum cpu usage per Container is 1, but limit is 64', "Q"),
        (403, "pods x is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", "V"),
        (422, "admission webhook w denied the request", "V"),
        (401, "Unauthorized", "A"),
        (429, "Cannot evict pod as it would violate the pod's disruption budget.", "D"),
        (429, "too many requests", None),
        (404, 'pods "x" not found', None),
        (409, "already exists", None),
        (422, 'Pod "x" is invalid: spec.containers[0].image: Required value', None),
        (500, "etcdserver: request timed out", None),
    ],
)
def test_who_denied_is_read_from_the_servers_words(code: int, message: str, by: str | None) -> None:
    assert denied_by(Response(code, {"kind": "Status", "message": message}, "")) == by


def results(kube: Kube, tenant: Tenant, name: str) -> list[attacks.AttackResult]:
    return list(attacks.make(kube, tenant, BY_ID[name]))


def test_a_denied_attempt_and_its_allowed_twin_are_both_told_with_the_tenants_token(
    both: tuple[ApiServer, Kube],
) -> None:
    server, kube = both
    server.on("POST", PODS, POD_SECURITY, CREATED)
    attempt, twin = results(kube, TENANT, "1-privileged-pod")
    assert (attempt.variant, attempt.outcome, attempt.by) == ("attempt", "denied", "P")
    assert "violates PodSecurity" in attempt.message
    assert (twin.variant, twin.outcome, twin.by) == ("allowed", "succeeded", "")
    assert {each.headers["authorization"] for each in server.seen("POST", PODS)} == {"Bearer the-tenants"}
    made = server.seen("POST", PODS)[1].body["metadata"]["name"]
    undone = server.seen("DELETE", f"{PODS}/{made}")
    assert [each.headers["authorization"] for each in undone] == ["Bearer the-admins-token"]


def test_an_attempt_that_succeeds_says_so_and_is_undone(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, CREATED)
    attempt, _ = results(kube, TENANT, "1-privileged-pod")
    assert (attempt.outcome, attempt.by) == ("succeeded", "")
    assert len([each for each in server.asked if each.method == "DELETE"]) == 2


class Breaking(Kube):
    """A connection that breaks when something is to be undone."""

    def request(self, method: str, *args: Any, **more: Any) -> Response:
        if method == "DELETE":
            raise Unreachable(self.server, "cut")
        return super().request(method, *args, **more)

    def as_token(self, token: str) -> Kube:
        return Kube(self._transport.with_token(token))


def test_what_cannot_be_undone_does_not_replace_the_answer(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, CREATED)
    attempt, _ = results(Breaking(kube._transport), TENANT, "1-privileged-pod")
    assert (attempt.outcome, attempt.by) == ("succeeded", "")


def test_what_was_set_up_and_cannot_be_undone_does_not_replace_the_answer(
    both: tuple[ApiServer, Kube], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kube = both
    monkeypatch.setattr(Breaking, "apply", lambda *_: [])
    monkeypatch.setattr(Breaking, "path", lambda *_: "/apis/x")
    monkeypatch.setattr(run, "_request", lambda *_: run._Answer("succeeded", "", "deleted"))
    attempt, _ = results(Breaking(kube._transport), TENANT, "59-delete-network-policy")
    assert attempt.outcome == "succeeded"


def test_a_denial_by_the_wrong_layer_names_that_layer(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, forbidden('User "t" cannot create resource "pods" in API group ""'), CREATED)
    attempt, _ = results(kube, TENANT, "1-privileged-pod")
    assert (attempt.outcome, attempt.by, attempt.expected_by) == ("denied", "R", "P")


def test_a_twin_that_is_denied_is_told_as_denied(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, POD_SECURITY)
    _, twin = results(kube, TENANT, "1-privileged-pod")
    assert (twin.outcome, twin.by) == ("denied", "P")


def test_an_answer_that_is_no_denial_is_an_error(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, status(500, "InternalError", "etcd is away"), CREATED)
    attempt, _ = results(kube, TENANT, "1-privileged-pod")
    assert (attempt.outcome, attempt.message) == ("error", "etcd is away")


def test_a_missing_service_account_is_an_error_and_never_an_exception(both: tuple[ApiServer, Kube]) -> None:
    _, kube = both
    nobody = Tenant("tenant-a", "nobody", "workbench", "inference", None, "i:1")
    assert [each.outcome for each in results(kube, nobody, "1-privileged-pod")] == ["error", "error"]


def packets(monkeypatch: pytest.MonkeyPatch, codes: dict[str, list[int]]) -> None:
    """Which pod's packets arrive: pod name -> exit statuses, the last one for ever."""

    def send(self: Kube, namespace: str, pod: str, command: Any, **_: Any) -> ExecResult:
        code = codes[pod].pop(0) if len(codes[pod]) > 1 else codes[pod][0]
        return ExecResult(code, "", "" if code == 0 else "timed out")

    monkeypatch.setattr(Kube, "exec", send)
    monkeypatch.setattr(run, "_ARRIVES_WITHIN", 1.0)


@pytest.mark.parametrize(
    ("codes", "outcome", "by"),
    [
        ({"workbench": [1], "free": [0], "locked": [1]}, "denied", "N"),
        ({"workbench": [0], "free": [0], "locked": [1]}, "succeeded", ""),
        ({"workbench": [1], "free": [1, 1, 0], "locked": [1]}, "denied", "N"),  # the target was slow
        ({"workbench": [1, 0], "free": [1, 0], "locked": [1]}, "succeeded", ""),  # it was slow for the tenant, too
        ({"workbench": [1, 0], "free": [0], "locked": [1]}, "succeeded", ""),  # the first one was lost
        ({"workbench": [1], "free": [1], "locked": [1]}, "error", ""),  # the target is down: nothing is proven
        ({"workbench": [0], "free": [0], "locked": [0]}, "error", ""),  # nothing enforces policies
        ({"workbench": [1], "free": [0], "locked": [0]}, "error", ""),
        ({"workbench": [-1], "free": [0], "locked": [1]}, "error", ""),  # the command never ran
        ({"workbench": [127], "free": [0], "locked": [1]}, "error", ""),  # not found
        ({"workbench": [139], "free": [0], "locked": [1]}, "error", ""),  # crashed
        ({"workbench": [1, 139], "free": [0], "locked": [1]}, "error", ""),
        ({"workbench": [1], "free": [127], "locked": [1]}, "error", ""),
        ({"workbench": [1], "free": [0, 1], "locked": [1]}, "error", ""),  # the target became slow
        ({"workbench": [1], "free": [0, 1, 0], "locked": [1]}, "error", ""),
        ({"workbench": [1], "free": [0], "locked": [127]}, "error", ""),
    ],
)
def test_a_packet_counts_as_denied_only_between_two_controls(
    both: tuple[ApiServer, Kube],
    monkeypatch: pytest.MonkeyPatch,
    codes: dict[str, list[int]],
    outcome: str,
    by: str,
) -> None:
    server, kube = both
    server.on("GET", "/api/v1/namespaces/tenant-b/pods/victim", Answer(200, {"status": {"podIP": "10.1.0.1"}}))
    packets(monkeypatch, {pod: list(each) for pod, each in codes.items()})
    attempt = next(iter(attacks.make(kube, GUARDED, BY_ID["77-another-tenants-pod"])))
    assert (attempt.outcome, attempt.by) == (outcome, by), attempt.message


def test_the_tenants_policies_open_the_way_to_pods_only_never_to_an_address() -> None:
    objects = guardrails.render(guardrails.load("tenant"), {}, images={"toolbox": "i:1"}, pod_cidrs=[])
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    own = [each["spec"] for each in policies if each["metadata"]["namespace"] == "tenant-a"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in own, "the default is to deny"
    for rule in [rule for spec in own for rule in spec.get("egress", [])]:
        assert rule["to"], "an empty `to` means everywhere, nodes and the API server included"
        assert all("podSelector" in peer and "ipBlock" not in peer for peer in rule["to"])


def test_the_model_can_be_reached_at_its_port_only_by_those_who_are_named() -> None:
    objects = guardrails.render(guardrails.load("tenant"), {}, images={"toolbox": "i:1"}, pod_cidrs=["10.1.0.0/16"])
    policies = {each["metadata"]["name"]: each for each in objects if each["kind"] == "NetworkPolicy"}
    platform = {name: each["spec"] for name, each in policies.items() if each["metadata"]["namespace"] == "inference"}
    opened = {name: rule for name, spec in platform.items() for rule in spec.get("ingress", [])}
    assert set(opened) == {"from-outside", "from-tenants", "from-telemetry"}
    for rule in opened.values():
        assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]
        assert rule["from"], "an empty `from` means everybody"
    (telemetry,) = opened["from-telemetry"]["from"]
    assert telemetry["namespaceSelector"]["matchExpressions"] == [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["gpu-emulator", "monitoring"]}
    ]


def test_without_a_neighbour_a_packet_proves_nothing(both: tuple[ApiServer, Kube]) -> None:
    _, kube = both
    attempt = next(iter(attacks.make(kube, TENANT, BY_ID["77-another-tenants-pod"])))
    assert attempt.outcome == "error"


def test_a_result_fits_the_timelines_event() -> None:
    from sandbox.timeline import AttackEvent  # noqa: PLC0415 - only this test is about both

    result = attacks.AttackResult("1-x", "X", "attempt", "denied", "P", "P", "no", 0.1)
    assert AttackEvent(t=1.0, **result.event()).attempt == "1-x"
