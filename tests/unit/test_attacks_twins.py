"""The allowed twin of an attempt: a request of its own that must be let through, or nothing is proven."""

from __future__ import annotations

import pytest
from test_attacks import BY_ID, CREATED, GUARDED, POD_SECURITY, PODS, TENANT, both, packets

from sandbox import attacks
from sandbox.attacks import AttackResult
from sandbox.errors import DeadlineExceeded
from sandbox.kube import ExecResult, Kube
from tests.unit.api_server import CORE, Answer, ApiServer, core

__all__ = ["both"]  # a fixture
PORT = {"port": 8000}
MODEL = "/api/v1/namespaces/inference/services/http:m:8000/proxy/v1/models"


def test_the_twin_is_the_allowed_way_and_not_the_attempt_once_more(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, POD_SECURITY, CREATED)
    list(attacks.make(kube, TENANT, BY_ID["1-privileged-pod"]))
    attempt, twin = (asked.body["spec"] for asked in server.seen("POST", PODS))
    assert "'privileged': True" in str(attempt)
    assert "'privileged': True" not in str(twin)


UP, DOWN = Answer(200, {"data": []}), Answer(503, {})


@pytest.mark.parametrize(
    ("model", "then", "outcome"),
    [
        ([UP], 1, "denied"),
        ([DOWN], 1, "error"),
        ([UP, DOWN], 1, "error"),
        ([DOWN, UP], 1, "error"),
        ([UP], 0, "succeeded"),
        ([UP], 137, "error"),
    ],
)
def test_a_twins_packet_that_does_not_arrive_is_denied_only_while_the_model_answers_us(
    both: tuple[ApiServer, Kube],
    monkeypatch: pytest.MonkeyPatch,
    model: list[Answer],
    then: int,
    outcome: str,
) -> None:
    server, _ = both

    def send(self: Kube, namespace: str, pod: str, *_: object, **__: object) -> ExecResult:
        return ExecResult(0 if pod == "free" else then if server.seen("GET", MODEL) else 1, "", "timed out")

    packets(monkeypatch, {})
    monkeypatch.setattr(Kube, "exec", send)
    twin = another_tenants_pod(both, monkeypatch, model)
    assert (twin.outcome, twin.by) == (outcome, "N" if outcome == "denied" else ""), twin.message


def test_a_twins_command_that_does_not_end_is_not_denied(
    both: tuple[ApiServer, Kube], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> None:
        raise DeadlineExceeded("`nc` did not end within 20 s")

    monkeypatch.setattr(Kube, "exec", slow)
    twin = another_tenants_pod(both, monkeypatch, [UP])
    assert (twin.outcome, twin.by) == ("error", ""), twin.message


def test_a_model_that_answers_us_late_proves_no_more_than_one_that_does_not(
    both: tuple[ApiServer, Kube], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.attacks.run._ANSWERS_WITHIN", -1.0)
    packets(monkeypatch, {"workbench": [1], "free": [0], "locked": [1]})
    assert another_tenants_pod(both, monkeypatch, [UP]).outcome == "error"


def another_tenants_pod(
    both: tuple[ApiServer, Kube], monkeypatch: pytest.MonkeyPatch, model: list[Answer]
) -> AttackResult:
    """The twin's result where the model answers the administrator like that."""
    server, kube = both
    service = {"metadata": {"name": "m", "namespace": "inference"}, "spec": {"clusterIP": "10.2.0.1", "ports": [PORT]}}
    kinds = core(("services", "Service", True))["resources"]
    monkeypatch.setitem(CORE, "resources", [*CORE["resources"], *kinds])
    server.on("GET", "/api/v1/namespaces/inference/services", listed([service]))
    server.on("GET", MODEL, *model)
    server.on("GET", "/api/v1/namespaces/tenant-b/pods/victim", Answer(200, {"status": {"podIP": "10.1.0.1"}}))
    _, twin = attacks.make(kube, GUARDED, BY_ID["77-another-tenants-pod"])
    return twin


def listed(items: list[dict[str, object]]) -> Answer:
    return Answer(200, {"items": items, "metadata": {"resourceVersion": "1"}})
