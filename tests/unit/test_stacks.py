from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox import paths
from sandbox.errors import DeadlineExceeded, UsageError
from sandbox.kube import guardrails, manifests, namespaces, stacks
from sandbox.spec import load_text
from sandbox.spec.stack import Stack
from sandbox.spec.values import Setting, Value, problems, resolved
from tests.unit.api_server import Answer, serving

IMAGES = {"vllm-sim": "registry.test/vllm-sim:1", "llama-cpp": "registry.test/llama-cpp:1", "toolbox": "t:1"}
IMAGES |= {"prometheus": "registry.test/prometheus:1"}
ALL = stacks.names()
SERVING = [name for name in ALL if stacks.load(name).serves_model]
WITH_TOKEN = {"prometheus"}  # it asks the API server what there is


def of(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    found = [each for each in objects if each["kind"] == kind and name in {"", each["metadata"]["name"]}]
    assert len(found) == 1
    return found[0]


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = of(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


def test_stacks_that_serve_a_model_and_one_that_does_not_are_there() -> None:
    assert {"llama-cpp", "vllm-sim"} <= set(SERVING)
    assert "prometheus" in set(ALL) - set(SERVING)


@pytest.mark.parametrize("name", ALL)
def test_a_stack_renders_with_its_defaults_into_its_own_namespace_with_our_labels(name: str) -> None:
    stack = stacks.load(name)
    objects = stacks.render(stack, {}, images=IMAGES)
    assert objects[0]["kind"] == "Namespace"
    for thing in objects[1:]:
        space = None if thing["kind"] in namespaces.CLUSTER_WIDE else stack.namespace
        assert thing["metadata"].get("namespace") == space
        assert thing["metadata"]["labels"].items() >= stacks.labels(stack).items()
    assert container(objects)["image"] == IMAGES[name]


@pytest.mark.parametrize("name", SERVING)
def test_a_stack_can_lose_and_replace_pods_without_cutting_anybody_off(name: str) -> None:
    stack = stacks.load(name)
    objects = stacks.render(stack, {"replicas": 3}, images=IMAGES)
    deployment = of(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    server = pod["containers"][0]
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(server)
    assert pod["terminationGracePeriodSeconds"] > server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert of(objects, "PodDisruptionBudget")["spec"]["selector"] == deployment["spec"]["selector"]
    assert pod["topologySpreadConstraints"]
    assert of(objects, "Service")["spec"]["type"] == "NodePort"


@pytest.mark.parametrize("name", ALL)
def test_a_stack_asks_for_nothing_that_restricted_pod_security_forbids(name: str) -> None:
    objects = stacks.render(stacks.load(name), {}, images=IMAGES)
    pod = of(objects, "Deployment")["spec"]["template"]["spec"]
    own = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"]["drop"] == ["ALL"]
    assert pod["automountServiceAccountToken"] is (name in WITH_TOKEN)


@pytest.mark.parametrize("name", SERVING)
def test_three_replicas_and_one_surge_fit_two_cores_beside_the_control_plane(name: str) -> None:
    requests = container(stacks.render(stacks.load(name), {}, images=IMAGES))["resources"]["requests"]
    assert requests["cpu"].endswith("m")
    assert 4 * int(requests["cpu"][:-1]) <= 1000


@pytest.mark.parametrize("name", ALL)
def test_every_value_of_a_stack_changes_what_is_applied(name: str) -> None:
    stack = stacks.load(name)
    default = stacks.render(stack, {}, images=IMAGES)
    others: dict[str, Any] = {"integer": 7, "number": 3.5, "string": "another", "boolean": True, "duration": "123ms"}
    for key, value in stack.values.items():
        other = others[value.type]
        if value.problem(other):
            other = next(
                each for each in (64, 256, 2048, "1s", 2, "60s") if not value.problem(each) and each != value.default
            )
        assert stacks.render(stack, {key: other}, images=IMAGES) != default, key


def test_wrong_values_are_all_named_at_once_with_what_would_be_valid() -> None:
    stack = stacks.load("vllm-sim")
    with pytest.raises(UsageError) as caught:
        stacks.render(stack, {"replicas": 65, "replica": 3, "timeToFirstToken": 50, "model": "a b"}, images=IMAGES)
    said = str(caught.value)
    assert caught.value.exit_code == 2
    assert "values.replicas: 65 is out of bounds; valid: an integer from 1 to 64" in said
    assert "values.replica: unknown value; known: " in said
    assert "values.timeToFirstToken: 50 is no duration" in said
    assert "values.model: 'a b' does not match" in said


def test_true_is_no_integer_and_a_number_needs_no_point() -> None:
    integer = Value(type="integer", description="x", default=1)
    assert integer.problem(True)
    assert integer.problem(1.5)
    assert not Value(type="number", description="x", default=1).problem(2)


def test_a_default_out_of_its_own_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="default: 9 is out of bounds"):
        Value(type="integer", description="x", default=9, maximum=8)


def test_values_not_given_take_their_defaults() -> None:
    declared = {
        "a": Value(type="integer", description="x", default=1),
        "b": Value(type="string", description="x", default="y"),
    }
    assert resolved(declared, {"a": 5}, where="x") == {"a": 5, "b": "y"}
    assert problems(declared, {}) == []


def test_an_unknown_stack_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="no stack 'vllm'") as caught:
        stacks.load("vllm")
    assert "vllm-sim" in caught.value.fix


def test_a_value_that_goes_nowhere_and_a_setting_of_nothing_are_refused() -> None:
    text = """
apiVersion: sandbox/v1
kind: Stack
metadata: {name: x, description: x}
images: [x]
values: {idle: {type: integer, default: 1, description: x}}
set: [{target: Deployment/x, value: ghost, pointer: /spec/replicas}]
endpoint: {service: x, port: 80, model: m}
ready: {within: 1s}
"""
    with pytest.raises(UsageError) as caught:
        load_text(text, Path("stack.yaml"), Stack)
    assert "'ghost' is no declared value" in str(caught.value)
    assert "'idle' goes nowhere" in str(caught.value)


HEAD = """
apiVersion: sandbox/v1
kind: Stack
metadata: {name: NAME, description: x}
images: [x]
"""


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("endpoint: {service: x, port: 80}\nready: {within: 1s}", "exactly one of model, modelValue; or ready.path"),
        ("endpoint: {service: x, port: 80, model: m, modelValue: v}\nready: {within: 1s}", "exactly one of model"),
        ("endpoint: {service: x, port: 80, model: m}\nready: {within: 1s, path: /x}", "serves no model"),
        ("endpoint: {service: x, port: 80}\nready: {within: 1s, path: /x, prompt: Hi}", "nobody is prompted"),
        ("endpoint: {service: x, port: 80}\nready: {within: 1s, path: x}", "ready.path"),
    ],
)
def test_a_stack_says_whether_it_serves_a_model(rest: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_text(HEAD.replace("NAME", "x") + rest, Path("stack.yaml"), Stack)


def test_a_stack_without_a_model_is_asked_at_its_path() -> None:
    text = HEAD + "endpoint: {service: x, port: 80}\nready: {within: 1s, path: /-/ready}"
    stack = load_text(text.replace("NAME", "x"), Path("stack.yaml"), Stack).model
    assert not stack.serves_model
    assert stacks.load("vllm-sim").serves_model


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stacks of the test's own: a needs b and c, b needs c; d and e need each other."""
    needs = {"a": ["b", "c"], "b": ["c"], "c": [], "d": ["e"], "e": ["d"], "f": ["nobody"]}
    for name, required in needs.items():
        (tmp_path / name).mkdir()
        rest = f"requires: {required}\nendpoint: {{service: x, port: 80, model: m}}\nready: {{within: 1s}}\n"
        (tmp_path / name / "stack.yaml").write_text(HEAD.replace("NAME", name) + rest)
    monkeypatch.setattr(paths, "shipped", lambda room: tmp_path)
    return tmp_path


def order(name: str, *besides: str) -> list[str]:
    return [stack.metadata.name for stack in stacks.ordered(name, besides)]


def test_what_a_stack_requires_comes_before_it_and_once(shelf: Path) -> None:
    assert order("a") == ["c", "b", "a"]
    assert order("b", "c") == ["c", "b"]
    assert order("c") == ["c"]


def test_stacks_that_require_each_other_in_a_circle_are_refused_with_the_circle(shelf: Path) -> None:
    with pytest.raises(UsageError, match="d -> e -> d"):
        order("d")
    with pytest.raises(UsageError, match="c -> c"):
        order("c", "c")
    with pytest.raises(UsageError, match="c -> a -> b -> c"):
        order("c", "a")


def test_a_required_stack_that_is_not_there_names_those_there_are(shelf: Path) -> None:
    with pytest.raises(UsageError, match="no stack 'nobody'") as caught:
        order("f")
    assert "use one of: a, b, c" in caught.value.fix


def test_a_setting_whose_target_is_not_there_names_the_manifests_there_are() -> None:
    thing = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    setting = Setting(target="ConfigMap/b", value="x", pointer="/data/x")
    with pytest.raises(UsageError, match="ConfigMap a"):
        manifests.fill([thing], [setting], {"x": "1"}, where="stack x")


def test_an_image_that_was_not_resolved_is_named() -> None:
    with pytest.raises(UsageError, match="not resolved: vllm-sim"):
        stacks.render(stacks.load("vllm-sim"), {}, images={})


@pytest.mark.parametrize(
    ("pointer", "value", "expected"),
    [
        ("/a/b", 1, {"a": {"b": 1}, "l": [{"x": 0}]}),
        ("/l/0/x", 1, {"l": [{"x": 1}]}),
        ("/l/-", 1, {"l": [{"x": 0}, 1]}),
        ("/a.b~1c", 1, {"a.b/c": 1, "l": [{"x": 0}]}),
    ],
)
def test_a_pointer_puts_a_value_in_its_place(pointer: str, value: int, expected: dict[str, Any]) -> None:
    document: dict[str, Any] = {"l": [{"x": 0}]}
    manifests.put(document, pointer, value, where="x")
    assert document == expected


def test_a_pointer_goes_on_in_the_yaml_that_a_string_holds() -> None:
    document = {"data": {"x.yml": "global: {every: 1s} # often\nlist: [a]\n", "text": "{"}}
    manifests.put(document, "/data/x.yml/global/every", "5s", where="x")
    assert document["data"]["x.yml"] == "global:\n  every: 5s\nlist:\n- a\n"
    with pytest.raises(UsageError, match="no YAML"):
        manifests.put(document, "/data/text/x", 1, where="x")
    with pytest.raises(UsageError, match="leads nowhere at 'b'"):
        manifests.put(document, "/data/x.yml/list/b", 1, where="x")


@pytest.mark.parametrize("pointer", ["/l/1", "/l/x", "/l/0/x/y", "/l/7/x"])
def test_a_pointer_that_leads_nowhere_is_refused(pointer: str) -> None:
    with pytest.raises(UsageError, match="leads nowhere"):
        manifests.put({"l": [{"x": 0}]}, pointer, 1, where="x")


def test_rendering_leaves_the_loaded_manifests_alone() -> None:
    objects = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "0"}}]
    setting = Setting(target="ConfigMap/a", value="x", pointer="/data/x")
    filled = manifests.fill(objects, [setting], {"x": "1"}, where="x")
    assert (objects[0]["data"], filled[0]["data"]) == ({"x": "0"}, {"x": "1"})


@pytest.mark.parametrize("name", ["llama-cpp", "vllm-sim"])
def test_a_stack_asks_for_gpus_only_where_it_is_told_to(name: str) -> None:
    stack = stacks.load(name)
    limits = container(stacks.render(stack, {"gpus": 2}, images=IMAGES))["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 2
    without = container(stacks.render(stack, {}, images=IMAGES))["resources"]
    assert "nvidia.com/gpu" not in {*without["limits"], *without["requests"]}, "a kubelet can refuse 0 of them too"


def test_a_value_at_which_nothing_is_to_be_set_leaves_the_manifest_as_it_is() -> None:
    thing = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    setting = Setting(target="ConfigMap/a", value="x", pointer="/data/x", unless=0)
    assert manifests.fill([thing], [setting], {"x": 0}, where="x") == [thing]
    assert manifests.fill([thing], [setting], {"x": 1}, where="x")[0]["data"] == {"x": 1}


def test_a_guardrail_leaves_out_what_a_value_closes() -> None:
    guardrail = guardrails.load("tenant")
    open_ = guardrails.render(guardrail, {}, images=IMAGES, pod_cidrs=["10.1.0.0/16"])
    closed = guardrails.render(guardrail, {"modelAccess": False}, images=IMAGES, pod_cidrs=[])
    gone = {each["metadata"]["name"] for each in open_} - {each["metadata"]["name"] for each in closed}
    assert gone == {"to-model", "from-tenants"}
    outside = of(open_, "NetworkPolicy", "from-outside")
    assert outside["spec"]["ingress"][0]["from"][0]["ipBlock"]["except"] == ["10.1.0.0/16"]


def test_a_stack_is_asked_past_the_proxies_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(tmp_path) as (server, kube):
        server.on("POST", "/v1/chat/completions", Answer(200, {"choices": [{"message": {"content": "Hello."}}]}))
        assert stacks.first_completion(kube.server, "m", stacks.load("vllm-sim"), within=10) == "Hello."


def test_a_stack_without_a_model_is_ready_once_its_path_answers_with_200(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, kube):
        server.on("GET", "/-/ready", Answer(503, "starting"), Answer(200, "ready"))
        stacks.first_answer(f"{kube.server}/-/ready", within=10)
        assert len(server.seen("GET", "/-/ready")) == 2
        with pytest.raises(DeadlineExceeded) as caught:
            stacks.first_answer(f"{kube.server}/elsewhere", within=0.2)
    assert "HTTP 404" in str(caught.value)


def test_the_tenants_rights_hold_no_rule_that_makes_rules_or_reads_secrets() -> None:
    objects = guardrails.render(guardrails.load("tenant"), {}, images=IMAGES, pod_cidrs=[])
    rules = of(objects, "Role", "tenant")["rules"]
    for rule in rules:
        assert not {"*", "escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])
        assert not {"*", "secrets", "serviceaccounts", "roles", "rolebindings", "namespaces"} & set(rule["resources"])
        if {"networkpolicies", "resourcequotas", "limitranges"} & set(rule["resources"]):
            assert set(rule["verbs"]) == {"get", "list", "watch"}
    assert not [each for each in objects if each["kind"] in {"ClusterRole", "ClusterRoleBinding"}]
