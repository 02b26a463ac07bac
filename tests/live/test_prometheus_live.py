"""Prometheus on a real cluster: what it finds by itself, what it says of a model server, that nothing of it stays."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from promql import filled, metrics_of

from sandbox import images, paths, probes
from sandbox.cluster import Cluster, nodes
from sandbox.kube import Kube, Seen, namespaces, stacks, wait_for
from sandbox.kube.stacks import Deployed
from sandbox.probes import promql
from sandbox.pytest_plugin import Clusters
from sandbox.spec.results import Results

pytestmark = pytest.mark.live
RBAC = "rbac.authorization.k8s.io/v1"
DASHBOARD = json.loads((paths.shipped("stacks") / "prometheus/dashboards/gpu.json").read_text())
SCENARIO = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: watched, description: A stack that is watched while it answers.}
stack: {name: vllm-sim, requires: [prometheus: {retention: 10m}]}
steadyState:
  - openai.chat
  - prometheus.query: {query: 'up{job="models"}', equals: 1}
  - prometheus.query: {query: 'sum(vllm:request_success_total)', at_least: 1}
load:
  profile: chat-tiny
  arrivals: {process: constant, rate: 2}
  duration: 5s
slo: {ok: ["count>=5"]}
validity: {client_lag: ["p(99)<=1s"], client_added: ["p(99)<=1s"]}
"""


@pytest.fixture(scope="module")
def cluster(sandbox_clusters: Clusters) -> Cluster:
    return sandbox_clusters.up("solo")


@pytest.fixture(scope="module")
def kube(cluster: Cluster) -> Kube:
    return Kube.connect(cluster.kubeconfig, cluster.context)


@pytest.fixture(scope="module")
def watched(cluster: Cluster, kube: Kube) -> Iterator[tuple[Deployed, Deployed]]:
    """Prometheus, and a model server that it watches; gone without a trace afterwards."""
    both = [stacks.load(name) for name in ("prometheus", "vllm-sim")]
    refs = {name: image.ref for name, image in images.ensure([each for stack in both for each in stack.images]).items()}
    nodes.load_images(cluster, list(refs.values()))
    with ExitStack() as undo:
        made = []
        for stack in both:
            undo.callback(stacks.undeploy, kube, stack)
            made.append(stacks.deploy(kube, stack, {}, images=refs, addresses=cluster.node_addresses))
        yield made[0], made[1]
    assert left_of_prometheus(kube) == []


@pytest.fixture
def prometheus(watched: tuple[Deployed, Deployed]) -> Deployed:
    return watched[0]


@pytest.fixture
def server(watched: tuple[Deployed, Deployed]) -> Deployed:
    return watched[1]


def left_of_prometheus(kube: Kube) -> list[str]:
    found = [kube.get("v1", "Namespace", "monitoring")]
    found += [kube.get(RBAC, kind, "ai-k8s-sandbox:prometheus") for kind in namespaces.CLUSTER_WIDE]
    return [thing["kind"] for thing in found if thing]


def ask(deployed: Deployed) -> None:
    body = {"model": deployed.model, "max_tokens": 64, "messages": [{"role": "user", "content": "Say hello."}]}
    answer = httpx.post(f"{deployed.url}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    assert answer.status_code == 200


def until(prometheus: Deployed, query: str, holds: Callable[[promql.Samples], bool]) -> promql.Samples:
    def look() -> Seen[promql.Samples]:
        samples = promql.query(prometheus.url, query)
        return Seen(holds(samples), samples, f"{query}: {samples}")

    return wait_for(look, within=40, what=query)


# The first of this file: a run clears away what else there is.
def test_a_run_deploys_what_its_stack_requires_tells_of_it_and_leaves_nothing(
    kube: Kube, sandbox_run: Callable[[Path | str], Results], tmp_path: Path
) -> None:
    (tmp_path / "watched.yaml").write_text(SCENARIO)
    results = sandbox_run(tmp_path / "watched.yaml")
    assert results.verdict == "pass", results.headline
    assert results.facts["stack prometheus"]["values"] == {"retention": "10m"}
    assert results.facts["stack prometheus"]["url"].startswith("http://")
    assert results.facts["stack"]["name"] == "vllm-sim"
    assert left_of_prometheus(kube) == []


def test_every_target_is_found_and_answers(prometheus: Deployed, cluster: Cluster) -> None:
    wanted = {"models", "kubelet", "cadvisor", "prometheus"}
    up = until(prometheus, "up", lambda found: {labels["job"] for labels, value in found if value == 1} >= wanted)
    assert {value for _, value in up} == {1.0}
    for job in ("kubelet", "cadvisor"):
        assert {labels["node"] for labels, _ in up if labels["job"] == job} == set(cluster.node_names)
    (used,) = until(
        prometheus, 'container_memory_working_set_bytes{namespace="monitoring", container="prometheus"}', bool
    )
    assert used[1] > 0


def test_figures_of_a_model_server_follow_its_requests(prometheus: Deployed, server: Deployed) -> None:
    (before,) = until(prometheus, "sum(vllm:request_success_total)", bool)
    stop = threading.Event()

    def user() -> None:
        while not stop.is_set():
            ask(server)

    users = [threading.Thread(target=user) for _ in range(4)]
    for each in users:
        each.start()
    try:
        running = until(prometheus, "vllm:num_requests_running", lambda found: any(value > 0 for _, value in found))
    finally:
        stop.set()
        for each in users:
            each.join()
    assert {labels["namespace"] for labels, _ in running} == {server.namespace}
    assert {labels["model_name"] for labels, _ in running} == {server.model}
    until(prometheus, "sum(vllm:request_success_total)", lambda found: found[0][1] > before[1])
    until(prometheus, "sum(vllm:num_requests_running)", lambda found: found[0][1] == 0)


def test_every_expression_of_the_dashboard_is_accepted_and_what_it_asks_of_a_model_server_is_there(
    prometheus: Deployed, server: Deployed
) -> None:
    ask(server)
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    for expression in expressions:
        promql.query(prometheus.url, filled(expression))
    asked = {name for expression in expressions for name in metrics_of(expression) if name.startswith("vllm:")}
    assert asked
    for name in asked | {"kubelet_running_pods"}:
        until(prometheus, name, bool)


def test_the_probe_says_what_holds_and_what_does_not(kube: Kube, prometheus: Deployed) -> None:
    until(prometheus, 'up{job="models"}', bool)
    context = probes.Context(kube, "inference", "", "", {"prometheus": prometheus.url})

    def look(query: str, **bounds: float) -> bool | None:
        return probes.look("prometheus.query", context, {"query": query, **bounds}).ok

    assert look('up{job="models"}', equals=1) is True
    assert look('up{job="models"}', at_least=2) is False
    assert look('up{job="nobody"}') is False
    assert look("up{") is None
