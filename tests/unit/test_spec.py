"""Specs: every mistake at once, each with its file, line and key path; nothing guessed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sandbox.errors import EXIT_USAGE, UsageError
from sandbox.spec import load_text
from sandbox.spec.base import Duration, duration, seconds
from sandbox.spec.cluster import ClusterSpec
from sandbox.spec.contradictions import idle
from sandbox.spec.registry import Registry
from sandbox.spec.scenario import Load, Recover, Scenario
from sandbox.spec.slo import METRICS, WHOLE_RUN, parse_expression, parse_selector

HERE = Path("demo.yaml")
GOOD = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: demo, description: A demo.}
stack: {name: vllm-sim}
steadyState:
  - openai.chat: {max_tokens: 4}
  - k8s.ready
load:
  profile: chat-short
  arrivals: {process: poisson, rate: 20}
  duration: 60s
faults:
  - pod.kill: {target: {app: vllm-sim}}
    at: 20s
slo:
  ttft{phase:fault}: ["p(99)<=300ms"]
"""


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_text(text, HERE, Scenario)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


def test_a_good_scenario_loads_and_knows_its_lines() -> None:
    document = load_text(GOOD, HERE, Scenario)
    assert document.model.load is not None
    assert document.model.load.duration == 60.0
    assert document.model.faults[0].name == "pod.kill"
    assert document.model.steady_state[1].name == "k8s.ready"
    assert document.problem(("faults", 0, "pod.kill"), "no").startswith("demo.yaml:13:5: faults[0].pod.kill: no")


def test_a_loaded_scenario_survives_the_way_through_a_timeline() -> None:
    document = load_text(GOOD, HERE, Scenario)
    dumped = document.model.model_dump(mode="json", by_alias=True)
    assert (dumped["load"]["duration"], dumped["load"]["timeout"], dumped["faults"][0]["at"]) == ("60s", "60s", "20s")
    assert Scenario.model_validate(dumped) == document.model


@pytest.mark.parametrize("bare", ["1.5", "60", "-5.0", ".inf", ".nan", "1e3", "true", "-5s", "1 s", "[60s]", ""])
@pytest.mark.parametrize("key", ["duration", "timeout"])
def test_a_duration_without_its_unit_is_refused_with_its_line(key: str, bare: str) -> None:
    text = GOOD.replace("duration: 60s", "duration: 60s\n  timeout: 30s")
    line = 10 if key == "duration" else 11
    message = refusal(text.replace(f"{key}: ", f"{key}: {bare} #"))
    assert f"demo.yaml:{line + 1}:3: load.{key}: " in message
    assert "is not a duration; write it with its unit, such as 500ms" in message


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1e9))
def test_a_duration_is_written_so_that_it_is_read_back_exactly(value: float) -> None:
    assert seconds(duration(value)) == value


@pytest.mark.parametrize(("model", "name"), [(Load, "timeout"), (Load, "idle_timeout"), (Recover, "within")])
def test_a_default_stands_in_the_schema_as_it_is_written(model: type[BaseModel], name: str) -> None:
    field = model.model_fields[name]
    shown = model.model_json_schema(by_alias=True)["properties"][field.alias or name]
    assert seconds(shown["default"]) == field.default
    assert re.fullmatch(shown["pattern"], shown["default"])
    assert "(?P" not in shown["pattern"], "editors read patterns as JavaScript does"


def test_a_default_of_a_duration_parameter_needs_no_unit_and_what_yaml_says_does() -> None:
    registry: Registry[Any] = Registry("probe")

    @registry.register("look")
    def look(_: object, within: Duration = 20.0) -> float:
        return within

    assert registry.call("look", None, {}) == 20.0
    assert registry.call("look", None, {"within": "1.5m"}) == 90.0
    ((keys, words),) = registry.problems("look", {"within": 1.5})
    assert keys == ("look", "within")
    assert "is not a duration" in words


def test_every_mistake_is_named_at_once_with_its_line() -> None:
    bad = GOOD.replace("profile:", "porfile:").replace("60s", "60").replace('"p(99)<=300ms"', '"p(99)<=300"')
    message = refusal(bad)
    assert "demo.yaml:9:3: load.porfile: unknown key" in message
    assert "demo.yaml:11:3: load.duration: '60' is not a duration" in message or "60 is not a duration" in message
    assert "needs a unit of time" in message


def test_a_key_that_stands_twice_is_refused() -> None:
    assert "stands twice" in refusal(GOOD + "slo:\n  ttft: ['med<=1s']\n")


def test_each_threshold_and_each_fault_has_its_own_line() -> None:
    bad = GOOD + '  tfft: ["p(9)<=1s"]\n  ok: ["p(9)<=1s", "count>=1s"]\n'
    message = refusal(bad.replace("ttft{phase:fault}", "ttft{phase:later}"))
    for expected in ("16:3: slo.ttft{phase:later}", "17:3: slo.tfft", "18:8: slo.ok[0]", "18:20: slo.ok[1]"):
        assert f"demo.yaml:{expected}: " in message
    assert "demo.yaml:14:5: faults[0].at: strikes after the load has" in refusal(GOOD.replace("at: 20s", "at: 90s"))


def test_what_is_not_yaml_is_named_with_its_place() -> None:
    assert refusal("a: [1\nb: 2").startswith("demo.yaml:2:2: is not valid YAML: ")


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "\x00", "just words", "a: &x [*x]", "? [1]\n: 2", "[" * 3000])
def test_what_is_no_scenario_is_refused_without_a_traceback(text: str) -> None:
    assert "demo.yaml" in refusal(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ttft{phase:fault}", "tfft{phase:fault}", "unknown metric 'tfft'"),
        ("ttft{phase:fault}", "ttft{phase:later}", "unknown phase 'later'"),
        ("ttft{phase:fault}", "ttft{zone:a}", "unknown tag 'zone'; known: phase, tenant, model, profile"),
        ("ttft{phase:fault}", "ttft{tenant:a}", "the load sends no tenant 'a'; leave the tag out"),
        ("ttft{phase:fault}", "ttft{model:}", "needs exactly one value"),
        ("ttft{phase:fault}", "ttft{phase:fault,phase:recovery}", "needs exactly one value"),
        ("ttft{phase:fault}", "ttft{profile:chat-tiny}", "sends no profile 'chat-tiny'; use {profile:chat-short}"),
        ("p(99)<=300ms", "p(100)<=300ms", "between 0 and 100"),
        ("p(99)<=300ms", "rate<=300ms", "makes no sense"),
        ("p(99)<=300ms", "fast enough", "is not a threshold"),
        ("rate: 20", "rate: -1", "greater than 0"),
        ("at: 20s", "at: 90s", "after the load has ended"),
        ("rate: 20", "rate: 20, users: 3", "take `rate` (or `stages`) and no `users`"),
        ("{target: {app: vllm-sim}}\n    at: 20s", "{}\n    at: 20s\n    pod.pause: {}", "exactly one name"),
        ("at: 20s", "at: 20s\n    for: 5s", "there: pod.kill, for"),
    ],
)
def test_each_mistake_says_what_would_be_valid(old: str, new: str, message: str) -> None:
    assert message in refusal(GOOD.replace(old, new))


def test_a_load_that_could_not_fail_is_refused() -> None:
    assert "could not fail" in refusal(GOOD.split("slo:", maxsplit=1)[0])


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_can_be_named(name: str) -> None:
    assert parse_selector(name).metric == name


@pytest.mark.parametrize("name", sorted({n for n in METRICS if METRICS[n].of == "requests"} - {*WHOLE_RUN}))
def test_every_metric_of_requests_can_be_asked_of_some_of_them(name: str) -> None:
    assert parse_selector(f"{name}{{phase:fault,model:any}}").tags == {"phase": "fault", "model": "any"}


@pytest.mark.parametrize("room", ["slo", "validity"])
@pytest.mark.parametrize("metric", WHOLE_RUN)
def test_a_tag_on_a_metric_of_the_whole_run_is_refused(metric: str, room: str) -> None:
    bound = "value<=1" if metric == "client_cpu" else "value<=1s" if metric == "time_to_recover" else "max<=1s"
    text = (
        f'{GOOD}{"validity:" if room == "validity" else "  ok: [count>=1]"}\n  {metric}{{phase:fault}}: ["{bound}"]\n'
    )
    assert f"demo.yaml:18:3: {room}.{metric}{{phase:fault}}: {metric} is measured over the whole run" in refusal(text)


@pytest.mark.parametrize("room", ["slo", "validity"])
@pytest.mark.parametrize("selector", ["ttft{phase:fault}", "ok{phase:recovery}", "time_to_recover"])
def test_without_faults_nothing_can_be_asked_of_them(selector: str, room: str) -> None:
    bound = {"ttft": "med<=1s", "ok": "count>=1", "time_to_recover": "value<=1s"}[selector.partition("{")[0]]
    slo = "slo: {ok: [count>=1]}" if room == "validity" else "# no faults"
    text = f'{GOOD[: GOOD.index("faults:")]}{slo}\n{room}:\n  {selector}: ["{bound}"]\n'
    message = refusal(text)
    assert f"demo.yaml:14:3: {room}.{selector}: there are no `faults`" in message
    assert "1 problem " in message


def test_a_selector_may_name_the_profile_that_is_sent_and_any_model() -> None:
    text = GOOD.replace("ttft{phase:fault}", "ttft{profile:chat-short,model:whatever}")
    assert load_text(text, HERE, Scenario).model.slo


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [
        ("p(99.9)<=1.5s", "ttft", 1.5),
        ("p(95)<250us", "icl", 0.00025),
        ("rate>=99%", "good_request_fraction", 0.99),
        ("count<=2", "truncated", 2.0),
        ("value<=15s", "time_to_recover", 15.0),
    ],
)
def test_bounds_are_read_in_base_units(text: str, metric: str, bound: float) -> None:
    assert parse_expression(text, metric).bound == pytest.approx(bound)


def test_a_nan_never_holds() -> None:
    assert not parse_expression("p(99)<=1s", "ttft").holds(float("nan"))


SHAPE = """\
apiVersion: sandbox/v1
kind: Cluster
metadata: {name: mine, description: A shape with a mistake in every line.}
kindConfig:
  name: other
  apiVersion: kind.x-k8s.io/v1
  networking:
    apiServerAddress: 0.0.0.0
    apiServerPort: high
  kubeadmConfigPatches: "one text"
  nodes:
    - role: etcd
    - worker
    - role: worker
      extraPortMappings: 80
    - role: worker
      extraPortMappings:
        - 8080:80
        - containerPort: "80"
          hostPort: 70000
        - hostPort: true
          listenAddress: 1
"""


def test_each_mistake_in_kinds_own_configuration_has_its_line() -> None:
    with pytest.raises(UsageError) as caught:
        load_text(SHAPE, HERE, ClusterSpec)
    places = {detail.split(": ", 2)[0].rsplit(":", 1)[0]: detail.split(": ", 2)[1] for detail in caught.value.details}
    assert places == {
        "demo.yaml:5": "kindConfig.name",
        "demo.yaml:6": "kindConfig.apiVersion",
        "demo.yaml:8": "kindConfig.networking.apiServerAddress",
        "demo.yaml:9": "kindConfig.networking.apiServerPort",
        "demo.yaml:10": "kindConfig.kubeadmConfigPatches",
        "demo.yaml:12": "kindConfig.nodes[0].role",
        "demo.yaml:13": "kindConfig.nodes[1]",
        "demo.yaml:15": "kindConfig.nodes[2].extraPortMappings",
        "demo.yaml:18": "kindConfig.nodes[3].extraPortMappings[0]",
        "demo.yaml:19": "kindConfig.nodes[3].extraPortMappings[1].containerPort",
        "demo.yaml:20": "kindConfig.nodes[3].extraPortMappings[1].hostPort",
        "demo.yaml:21": "kindConfig.nodes[3].extraPortMappings[2].hostPort",
        "demo.yaml:22": "kindConfig.nodes[3].extraPortMappings[2].listenAddress",
    }


def test_empty_keys_of_kinds_configuration_are_as_if_they_were_not_there() -> None:
    text = SHAPE[: SHAPE.index("  name: other")] + "  networking:\n  nodes:\n"
    assert load_text(text, HERE, ClusterSpec).model.nodes == [{"role": "control-plane"}]


def test_a_share_beyond_all_is_refused() -> None:
    for text in ("rate>=1.95", "rate>=195%"):
        with pytest.raises(ValueError, match="between 0 and 1"):
            parse_expression(text, "good_request_fraction")
    assert parse_expression("rate>=99%", "good_request_fraction").bound == 0.99
    assert parse_expression("count<=195", "truncated").bound == 195


@pytest.mark.parametrize(
    ("rate", "threshold", "refused"),
    [
        (5, "p(99)<=300ms", True),
        (5, "p(50)<=300ms", False),
        (5, {"threshold": "p(99)<=300ms", "minSamples": 20}, False),
        (50, "p(99)<=300ms", False),
    ],
)
def test_a_percentile_that_the_load_cannot_fill_is_refused_before_the_run(
    rate: float, threshold: object, refused: bool
) -> None:
    raw = {"load": {"arrivals": {"rate": rate}, "duration": "10s"}, "slo": {"ttft": [threshold]}}
    assert any("needs 459 samples" in words for _, words in idle(raw)) == refused
