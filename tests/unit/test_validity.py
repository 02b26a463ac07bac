"""What a measurement has to prove: a scenario adds to it, and loosens it in the open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_judge import GOOD, check, history
from test_judge_thresholds import beat, pulse, quiet

from sandbox.errors import UsageError
from sandbox.judge import weigh as judge
from sandbox.spec.loader import load_text
from sandbox.spec.results import Results
from sandbox.spec.scenario import Scenario
from sandbox.spec.validity import DEFAULT_VALIDITY, needless
from sandbox.timeline import Request

LATE = [each.model_copy(update={"sent": each.scheduled + 0.44}) for each in GOOD]
LOOSE = {"client_cpu": "value<=0.99"}


def late(requests: list[Request] = LATE, **keys: Any) -> Results:
    return judge(history(spec=quiet(**keys), requests=requests, faults=[]))


def busy(**keys: Any) -> Results:
    return pulse(*(beat(n, cpu=0.97) for n in range(1, 31)), spec=quiet(**keys))


@pytest.mark.parametrize(
    "own",
    [
        {"sched_lag{phase:baseline}": ["p(99)<=10s"]},
        {"sched_lag": ["min<=1s"]},
        {"sched_lag": ["count>=1"]},
        {"sched_lag": ["p(99)<=10s"]},
        {"sched_lag{model:other}": [{"threshold": "p(99)<=10s", "minSamples": 1}]},
    ],
    ids=["one phase", "another aggregation", "a count", "a weaker bound", "a tag that nothing has"],
)
def test_an_entry_of_validity_adds_to_the_default_and_never_replaces_it(own: dict[str, Any]) -> None:
    results = late(validity=own)
    assert results.verdict == "invalid"
    assert check(results, "validity/sched_lag/p(99)<=50ms").status == "invalid"
    assert [each for each in results.checks if each.id.startswith(f"validity/{next(iter(own))}/")]


def test_a_stricter_bound_is_added_by_validity_alone() -> None:
    assert late(GOOD, validity={"sched_lag": ["p(90)<=5ms"]}).verdict == "pass"
    some = [each.model_copy(update={"sent": each.scheduled + 0.02}) for each in GOOD]
    assert late(some).verdict == "pass"
    assert late(some, validity={"sched_lag": ["p(90)<=5ms"]}).verdict == "invalid"


def test_what_is_loosened_holds_in_the_defaults_place_and_every_report_says_so() -> None:
    assert busy().verdict == "invalid"
    results = busy(loosen=LOOSE)
    assert results.verdict == "pass"
    found = check(results, "validity/client_cpu")
    assert found.title == "client_cpu loosened from value<=0.95 to value<=0.99"
    assert "warning: client_cpu was loosened by the scenario, from value<=0.95 to value<=0.99" in results.notes


def test_what_is_loosened_still_fails_beyond_its_own_bound_and_a_stricter_entry_beside_it_too() -> None:
    assert check(busy(loosen={"client_cpu": "value<=0.96"}), "validity/client_cpu").status == "invalid"
    both = busy(loosen=LOOSE, validity={"client_cpu": ["value<=0.5"]})
    assert [each.status for each in both.checks if each.id.startswith("validity/client_cpu")] == ["pass", "invalid"]


def test_a_threshold_that_asks_for_the_default_itself_is_one_check() -> None:
    own = {"client_cpu": [{"threshold": "value <= 0.95", "abortOnFail": True}]}
    assert check(busy(validity=own), "validity/client_cpu").status == "invalid"


def test_a_timeline_of_an_older_version_is_judged_by_the_default_too_and_says_so() -> None:
    old = busy(validity={"client_cpu": ["value<=0.99"]})
    assert old.verdict == "invalid"
    assert any("client_cpu: recorded by an older version" in note and "0.95" in note for note in old.notes)
    new = busy(validity={"client_cpu": ["value<=0.5"]}, loosen={})
    assert not any("older version" in note for note in new.notes)


def test_an_entry_that_asks_for_the_same_as_a_loosened_default_is_one_check() -> None:
    results = busy(loosen={"client_cpu": "value <= 0.99"}, validity={"client_cpu": ["value<=0.99"]})
    assert len([each for each in results.checks if each.id.startswith("validity/client_cpu")]) == 1
    results = busy(loosen={"client_cpu": "value<=0.99"}, validity={"client_cpu": ["value <= 0.99"]})
    assert len([each for each in results.checks if each.id.startswith("validity/client_cpu")]) == 1


@pytest.mark.parametrize(
    ("loosen", "words"),
    [
        ("ttft: p(99)<=1s", "there is no default of 'ttft' to loosen; there are: client_lag"),
        ("'client_lag{phase:baseline}': p(99)<=1s", "each without a tag"),
        ("client_cpu: value<=0.5", "a stricter one belongs under `validity`"),
        ("client_cpu: value>=0.1", "loosens nothing of the default, value<=0.95"),
        ("client_cpu: value<=0.95", "is the default, value<=0.95; leave it out"),
        ("client_cpu: p(9)<=1", "makes no sense for client_cpu"),
        ("client_cpu: {threshold: value<=0.99, abortOnFail: true}", "a default ends no load"),
        ("client_lag: avg<=1s", "write a higher bound or a lower percentile"),
    ],
)
def test_what_loosens_nothing_is_refused(loosen: str, words: str) -> None:
    text = f"""\
kind: Scenario
metadata: {{name: demo, description: Loosens.}}
stack: {{name: vllm-sim}}
steadyState: [openai.chat]
load: {{profile: chat-short, arrivals: {{rate: 20}}, duration: 60s}}
slo: {{ok: [count>=1]}}
loosen:
  {loosen}
"""
    with pytest.raises(UsageError, match=r"demo\.yaml:8:") as caught:
        load_text(text, Path("demo.yaml"), Scenario)
    assert words in str(caught.value)


def test_a_default_is_loosened_only_where_it_holds() -> None:
    wider = {name: default.threshold.replace("<=", "<=9") for name, default in DEFAULT_VALIDITY.items()}
    assert set(Scenario.model_validate(quiet(loosen=wider)).loosen) == set(DEFAULT_VALIDITY)
    assert [keys for keys, _ in needless({"load": {"profile": "x"}, "loosen": wider})] == [("loosen", n) for n in wider]
    assert not needless({"load": {"locustfile": "x.py"}, "loosen": wider})


def test_a_default_that_fails_beside_a_weaker_bound_says_how_to_loosen_it() -> None:
    found = check(busy(validity={"client_cpu": ["value<=0.99"]}), "validity/client_cpu/value<=0.95")
    assert "to have another in its place write `loosen: {client_cpu: …}`" in found.reason
