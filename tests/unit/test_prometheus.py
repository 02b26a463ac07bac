"""Prometheus as a stack: what it may and what it watches, the probe that asks it, and the dashboard beside it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import metrics_of

from sandbox import paths, probes
from sandbox.errors import UsageError
from sandbox.gpu.emulator.exporter import FIELDS
from sandbox.kube import stacks
from sandbox.probes import promql
from tests.unit.api_server import Answer, ApiServer, serving

IMAGES = {"prometheus": "registry.test/prometheus:1"}
DASHBOARD = json.loads((paths.shipped("stacks") / "prometheus/dashboards/gpu.json").read_text())
PUBLIC = json.loads((Path(__file__).parents[1] / "data/dcgm-12239.json").read_text())
OURS = {field.name for field in FIELDS} | {"gpu_emulator_info"}
VLLM = {
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
}
KUBELET = {
    "kubelet_admission_rejections_total",
    "kubelet_device_plugin_registration_total",
    "kubelet_running_pods",
}


def rendered(**values: Any) -> dict[str, Any]:
    objects = stacks.render(stacks.load("prometheus"), values, images=IMAGES)
    return {thing["kind"]: thing for thing in objects}


def config(**values: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(rendered(**values)["ConfigMap"]["data"]["prometheus.yml"])
    return loaded


def jobs(**values: Any) -> dict[str, dict[str, Any]]:
    return {job["job_name"]: job for job in config(**values)["scrape_configs"]}


def test_it_may_look_and_nothing_else() -> None:
    objects = rendered()
    assert {(verb, *rule["resources"]) for rule in objects["ClusterRole"]["rules"] for verb in rule["verbs"]} == {
        ("list", "pods", "nodes"),
        ("watch", "pods", "nodes"),
        ("get", "nodes/metrics"),
    }
    (subject,) = objects["ClusterRoleBinding"]["subjects"]
    assert subject["namespace"] == objects["Namespace"]["metadata"]["name"] == "monitoring"
    assert "Role" not in objects


def test_rights_outside_its_namespace_carry_the_label_by_which_a_run_clears_them_and_no_namespace() -> None:
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        meta = rendered()[kind]["metadata"]
        assert "namespace" not in meta
        assert meta["labels"]["app.kubernetes.io/managed-by"] == "ai-k8s-sandbox"


def test_it_watches_gpus_models_kubelets_and_itself_and_no_simulated_node() -> None:
    found = jobs()
    assert set(found) == {"gpu-emulator", "models", "kubelet", "cadvisor", "prometheus"}
    for name in ("kubelet", "cadvisor"):
        (discovery,) = found[name]["kubernetes_sd_configs"]
        assert discovery["selectors"] == [{"role": "node", "label": "!kwok.x-k8s.io/node"}]
        assert found[name]["scrape_interval"] == "5s"
    assert found["gpu-emulator"]["honor_labels"] is True


def test_values_reach_into_the_configuration_file_and_the_arguments() -> None:
    assert config()["global"]["scrape_interval"] == "1s"
    assert config(scrapeInterval="2s")["global"]["scrape_interval"] == "2s"
    assert jobs(scrapeInterval="2s") == jobs()
    pod = rendered(retention="30m")["Deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert {"name": "RETENTION", "value": "30m"} in server["env"]
    assert "--storage.tsdb.retention.time=$(RETENTION)" in server["args"]


@pytest.mark.parametrize("value", ["0.5s", "5", "100us", "2h"])
def test_an_interval_that_prometheus_could_not_read_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"values\.scrapeInterval"):
        rendered(scrapeInterval=value)


def vector(*samples: tuple[dict[str, str], str]) -> Answer:
    result = [{"metric": labels, "value": [1.5, value]} for labels, value in samples]
    return Answer(200, {"status": "success", "data": {"resultType": "vector", "result": result}})


def refused(kind: str, words: str, code: int = 400) -> Answer:
    return Answer(code, {"status": "error", "errorType": kind, "error": words})


def looked(tmp_path: Path, answer: Answer, **bounds: Any) -> tuple[probes.Seen, ApiServer]:
    with serving(tmp_path) as (server, kube):
        server.on("GET", "/api/v1/query", answer)
        context = probes.Context(kube, "inference", "http://127.0.0.1:9", "m", {"prometheus": kube.server})
        return probes.look("prometheus.query", context, {"query": "up", **bounds}), server


TWO = vector(({"__name__": "up", "pod": "a"}, "1"), ({"__name__": "up", "pod": "b"}, "3"))


@pytest.mark.parametrize(
    ("bounds", "ok"),
    [
        ({}, True),
        ({"at_least": 1, "at_most": 3}, True),
        ({"at_least": 2}, False),
        ({"at_most": 2}, False),
        ({"equals": 1}, False),
    ],
)
def test_every_sample_has_to_keep_to_the_bounds(bounds: dict[str, float], ok: bool, tmp_path: Path) -> None:
    seen, server = looked(tmp_path, TWO, **bounds)
    assert seen.ok is ok
    assert server.seen("GET", "/api/v1/query")[0].query == {"query": ["up"]}
    json.dumps(seen.evidence)


def test_a_sample_out_of_bounds_is_named(tmp_path: Path) -> None:
    seen, _ = looked(tmp_path, TWO, at_most=2)
    assert seen.detail == "'up': up{pod=\"b\"} is 3, not at most 2"


def test_a_query_without_samples_does_not_hold_and_says_which(tmp_path: Path) -> None:
    seen, _ = looked(tmp_path, vector())
    assert seen.ok is False
    assert "no sample" in seen.detail
    assert "'up'" in seen.detail


def test_what_is_not_a_number_keeps_to_no_bound(tmp_path: Path) -> None:
    for bounds in ({"at_least": 0}, {"at_most": 0}, {"equals": 0}):
        seen, _ = looked(tmp_path, vector(({}, "NaN")), **bounds)
        assert seen.ok is False


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused("bad_data", "unclosed left parenthesis"), "UsageError: .*unclosed left"),
        (refused("timeout", "query timed out", 503), "NoMetrics: .*timed out"),
        (Answer(502, "<html>a gateway's page</html>"), "NoMetrics: .*HTTP 502.*a gateway's page"),
        (Answer(200, ["x"]), "NoMetrics"),
        (Answer(200, {"status": "success", "data": {"resultType": "matrix", "result": []}}), "UsageError: .*matrix"),
        (Answer(200, {"status": "success", "data": {"resultType": "vector", "result": [7]}}), "NoMetrics"),
    ],
)
def test_a_query_that_was_not_answered_says_nothing_about_the_system(
    answer: Answer, words: str, tmp_path: Path
) -> None:
    seen, _ = looked(tmp_path, answer)
    assert seen.ok is None
    assert re.search(words, seen.detail), seen.detail


def test_a_prometheus_that_is_not_there_is_told_from_one_that_has_no_sample() -> None:
    with pytest.raises(promql.NoMetrics, match="no answer from Prometheus"):
        promql.query("http://127.0.0.1:9", "up")


def test_a_scalar_is_a_sample_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(tmp_path) as (server, kube):
        data = {"resultType": "scalar", "result": [1.5, "+Inf"]}
        server.on("GET", "/api/v1/query", Answer(200, {"status": "success", "data": data}))
        assert promql.query(kube.server, "1 / 0") == [({}, math.inf)]


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    (asked,) = DASHBOARD["__inputs"]
    assert (asked["name"], asked["type"]) == ("DS_PROMETHEUS", "datasource")
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["id"] is None
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["node", "gpu"]
    drawn = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    sources = [each["datasource"] for panel in drawn for each in (panel, *panel["targets"])]
    sources += [each["datasource"] for each in DASHBOARD["templating"]["list"]]
    assert all(source == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"} for source in sources)
    needed = {each["id"] for each in DASHBOARD["__requires"] if each["type"] == "panel"}
    assert needed == {panel["type"] for panel in drawn}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_panels_lie_side_by_side_and_not_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_asks_only_for_metrics_that_are_there(expression: str) -> None:
    assert metrics_of(expression)
    assert metrics_of(expression) <= OURS | VLLM | KUBELET


def test_the_dashboard_shows_every_metric_of_a_gpu_and_what_the_model_servers_do() -> None:
    shown = {name for expression in expressions() for name in metrics_of(expression)}
    assert shown >= OURS - {"DCGM_FI_DEV_FB_TOTAL"}  # used and free say it, and are in the real exporter's default set
    assert shown >= VLLM


@pytest.mark.parametrize("query", PUBLIC["queries"], ids=lambda query: query["panel"])
def test_the_public_dashboard_asks_only_for_metrics_that_the_emulator_has(query: dict[str, str]) -> None:
    assert metrics_of(query["expr"])
    assert metrics_of(query["expr"]) <= OURS


def test_metrics_are_told_from_functions_labels_and_numbers() -> None:
    text = (
        'sum by (le, pod) (rate(vllm:x_bucket{a=~"b c", d!="}"}[5m])) / on (node) group_left (e) (y > 1e3 or vector(0))'
    )
    assert metrics_of(text) == {"vllm:x_bucket", "y"}
