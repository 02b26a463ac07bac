"""Specs: every mistake at once, each with its file, line and key path; nothing guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import EXIT_USAGE, UsageError
from sandbox.spec import load_text
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import METRICS, parse_expression, parse_selector

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
    assert Scenario.model_validate(dumped) == document.model


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
        ("ttft{phase:fault}", "ttft{zone:a}", "unknown tag 'zone'"),
        ("p(99)<=300ms", "p(100)<=300ms", "between 0 and 100"),
        ("p(99)<=300ms", "rate<=300ms", "makes no sense"),
        ("p(99)<=300ms", "fast enough", "is not a threshold"),
        ("rate: 20", "rate: -1", "greater than 0"),
        ("at: 20s", "at: 90s", "after the load has ended"),
        ("rate: 20", "rate: 20, users: 3", "take `rate` and no `users`"),
        ("{target: {app: vllm-sim}}\n    at: 20s", "{}\n    at: 20s\n    pod.pause: {}", "exactly one name"),
    ],
)
def test_each_mistake_says_what_would_be_valid(old: str, new: str, message: str) -> None:
    assert message in refusal(GOOD.replace(old, new))


def test_a_load_that_could_not_fail_is_refused() -> None:
    assert "could not fail" in refusal(GOOD.split("slo:", maxsplit=1)[0])


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_can_be_named(name: str) -> None:
    assert parse_selector(f"{name}{{phase:fault}}").metric == name


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
