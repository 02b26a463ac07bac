"""The allowed twin of an attempt: a request of its own that must be let through, or nothing is proven."""

from __future__ import annotations

import pytest
from test_attacks import BY_ID, CREATED, GUARDED, POD_SECURITY, PODS, TENANT, both, packets

from sandbox import attacks
from sandbox.kube import Kube
from tests.unit.api_server import CORE, Answer, ApiServer, core

__all__ = ["both"]  # a fixture
MODELS = "/api/v1/namespaces/inference/pods"


def test_the_twin_is_the_allowed_way_and_not_the_attempt_once_more(both: tuple[ApiServer, Kube]) -> None:
    server, kube = both
    server.on("POST", PODS, POD_SECURITY, CREATED)
    list(attacks.make(kube, TENANT, BY_ID["1-privileged-pod"]))
    attempt, twin = (asked.body["spec"] for asked in server.seen("POST", PODS))
    assert "'privileged': True" in str(attempt)
    assert "'privileged': True" not in str(twin)


@pytest.mark.parametrize(
    ("models", "outcome", "by"),
    [
        ([{"type": "Ready", "status": "True"}], "denied", "N"),
        ([{"type": "Ready", "status": "False"}], "error", ""),
        (None, "error", ""),
    ],
)
def test_a_twins_packet_that_does_not_arrive_is_denied_only_where_somebody_serves(
    both: tuple[ApiServer, Kube],
    monkeypatch: pytest.MonkeyPatch,
    models: list[dict[str, str]] | None,
    outcome: str,
    by: str,
) -> None:
    server, kube = both
    meta = {"name": "m", "namespace": "inference"}
    service = {"metadata": meta, "spec": {"clusterIP": "10.2.0.1", "ports": [{"port": 8000}]}}
    kinds = core(("services", "Service", True))["resources"]
    monkeypatch.setitem(CORE, "resources", [*CORE["resources"], *kinds])
    pods = [] if models is None else [{"metadata": {"name": "m-1"}, "status": {"conditions": models}}]
    server.on("GET", "/api/v1/namespaces/inference/services", listed([service]))
    server.on("GET", MODELS, listed(pods))
    server.on("GET", "/api/v1/namespaces/tenant-b/pods/victim", Answer(200, {"status": {"podIP": "10.1.0.1"}}))
    packets(monkeypatch, {"workbench": [1], "free": [0], "locked": [1]})
    _, twin = attacks.make(kube, GUARDED, BY_ID["77-another-tenants-pod"])
    assert (twin.outcome, twin.by) == (outcome, by), twin.message


def listed(items: list[dict[str, object]]) -> Answer:
    return Answer(200, {"items": items, "metadata": {"resourceVersion": "1"}})
