"""What could not fail is refused before anything is touched; what could is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_judge import check, history, scenario
from typer.testing import CliRunner

from sandbox import plan
from sandbox.cli import app
from sandbox.errors import UsageError
from sandbox.judge import weigh as judge
from sandbox.spec.contradictions import idle
from sandbox.spec.vacuous import vacuous

LOAD: dict[str, Any] = {
    "profile": "chat-short",
    "arrivals": {"process": "poisson", "rate": 20},
    "duration": "60s",
    "timeout": "20s",
}
PODS = [{"name": "a", "pods": 6, "prints": "ready", "within": "20s"}]
FAULTS = [{"pod.kill": {"count": 1}, "at": "20s"}]
CLOSED = {"process": "closed", "users": 50}


def document(slo: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {"load": LOAD, "workloads": PODS, "faults": FAULTS, "slo": slo or {"ok": ["rate>=0.9"]}, **keys}


def said(**keys: Any) -> str:
    return "; ".join(words for _, words in vacuous(document(**keys)))


@pytest.mark.parametrize(
    ("metric", "empty", "sound"),
    [
        ("good_request_fraction", "rate>=0", "rate>=0.01"),
        ("good_request_fraction", "rate>=0%", "rate>0%"),
        ("good_request_fraction", "value<=1", "value<1"),
        ("good_request_fraction{phase:fault}", "value>=0", "value>=1"),
        ("good_request_fraction", "rate<=100%", "rate<=99%"),
        ("good_request_fraction", "rate>1", "rate>=1"),
        ("good_request_fraction", "rate<0", "rate<=0"),
        ("truncated", "rate<=1", "rate<=0.5"),
        ("truncated", "count>=0", "count==0"),
        ("truncated", "count<0", "count<1"),
        ("truncated", "count<=100000", "count<=1000"),
        ("truncated", "count!=0.5", "count!=0"),
        ("truncated", "count==0.5", "count==0"),
        ("ok", "count>=100000", "count>=1000"),
        ("truncated", "rate>=baseline-100%", "rate>=baseline-1%"),
        ("request_rate", "value>=0", "value>=1"),
        ("token_rate", "value!=-0", "value!=1"),
        ("nodes_used", "value<=6", "value<=5"),
        ("nodes_used", "value>=0", "value>=2"),
        ("pods_failed", "count<=6", "count<=5"),
        ("pods_failed{workload:a}", "count<7", "count<6"),
        ("pods_running", "rate>=0", "rate>=1"),
        ("gpu_fragmentation", "rate<=1", "rate<=0.4"),
        ("scheduling_seconds", "max>=0s", "max<=5s"),
        ("scheduling_rate", "value>=0", "value>=5"),
        ("gpus_allocated", "value>=0", "value>=6"),
        ("client_cpu", "value>=0", "value<=0.5"),
        ("client_cpu", "value<=1", "value<=0.99"),
        ("sched_lag", "p(99)>=0ms", "p(99)<=1ms"),
        ("ttft", "count>=0", "count>=9"),
        ("ttft", "avg>=0s", "avg<=1s"),
        *((name, "p(50)<=20s", "p(50)<=19s") for name in ("ttft", "ttft_intended", "tpot", "icl", "ntpot", "e2e")),
        ("e2e", "max<21s", "max<19.9s"),
        ("e2e", "max<20s", "max<=19.9s"),  # the load's time-out
        ("e2e", "p(50)>=30s", "p(50)>=3s"),
        ("ttft{phase:fault}", "avg<=1m", "avg<=1s"),
        ("time_to_recover", "value<=41s", "value<=40s"),
        ("time_to_recover", "value>=0s", "value>=1s"),
    ],
)
def test_a_threshold_that_nothing_breaks_or_nothing_keeps_is_refused(metric: str, empty: str, sound: str) -> None:
    for room in ("slo", "validity"):
        rest = {"ok": ["rate>=0.9"]} if room == "validity" else {}
        found = vacuous(document(**{"slo": rest, room: {"ok": ["rate>=0.9"], metric: [sound, empty]}}))
        if empty.endswith("-0"):
            assert not found, "this cannot be read, and the model says so"
            continue
        assert [keys for keys, _ in found] == [(room, metric, 1)], found
        assert "could n" in found[0][1]
        assert empty in found[0][1]


@pytest.mark.parametrize("key", ["prints", "because"])
@pytest.mark.parametrize(
    ("words", "refused"),
    [(".*", True), ("", True), ("a*", True), ("(ready)?", True), ("^", True), ("|x", True), (".", True), (".+", True),
     (r"[\s\S]+", True), ("ready", False), (r"\d GPU", False), ("^ok$", False), ("Insufficient", False)],
)  # fmt: skip
def test_words_that_everything_matches_are_no_words(key: str, words: str, *, refused: bool) -> None:
    found = vacuous(document(workloads=[*PODS, {"name": "b", key: words}]))
    assert [keys for keys, _ in found] == ([("workloads", 1, key)] if refused else [])


@pytest.mark.parametrize(
    ("slo", "arrivals", "refused"),
    [
        ({"client_lag": ["p(99)<=10ms"]}, {}, True),
        ({"client_cpu": ["value<=0.9"], "sched_lag": ["p(90)<=10ms"], "client_added": ["avg<=1ms"]}, {}, True),
        ({"requests": ["count>=100"]}, {}, True),
        ({"requests": ["count>=100"]}, CLOSED, False),
        ({"client_cpu": ["value<=0.9"]}, CLOSED, True),
        ({"client_cpu": ["value<=0.9"], "token_rate": ["value>=9"]}, {}, False),
        ({"client_cpu": ["value<=0.9"], "no_such": ["value>=9"]}, {}, False),
        ({"client_cpu": ["value<=0.9"], "pods_failed": ["count==0"]}, {}, False),
    ],
)
def test_an_slo_of_the_client_alone_judges_no_server(
    slo: dict[str, Any], arrivals: dict[str, Any], *, refused: bool
) -> None:
    load = {**LOAD, **({"arrivals": arrivals} if arrivals else {})}
    assert ("no server could break it" in said(slo=slo, load=load)) == refused


@pytest.mark.parametrize(
    ("slo", "refused"),
    [
        ({"e2e": ["p(50)<=5s"]}, True),
        ({"truncated": ["count==0"]}, True),
        ({"good_request_fraction{phase:fault}": ["rate>=0.5"]}, False),
        ({"time_to_recover": ["value<=5s"]}, False),
    ],
)
def test_a_limit_of_good_requests_that_no_threshold_uses_is_refused(slo: dict[str, Any], *, refused: bool) -> None:
    found = vacuous(document(slo=slo, load={**LOAD, "good": {"ttft": "1s"}}))
    assert [keys for keys, _ in found] == ([("load", "good")] if refused else [])


def test_a_limit_of_good_requests_beyond_the_time_out_is_refused() -> None:
    load = {**LOAD, "good": {"ttft": "20s", "e2e": "19s"}}
    (found,) = vacuous(document(slo={"good_request_fraction": ["rate>=0.9"]}, load=load))
    assert found[0] == ("load", "good", "ttft")
    load = {key: value for key, value in load.items() if key != "timeout"} | {"good": {"ttft": "60s"}}
    assert vacuous(document(slo={"good_request_fraction": ["rate>=0.9"]}, load=load)), "the default is 60s"


@pytest.mark.parametrize(
    ("users", "rate", "refused"),
    [(50, 0.5, True), (50, 49 / 60, True), (50, 1, False), (2, 0.01, True), (1, 0.001, False)],
)
def test_users_that_would_start_after_the_load_are_refused(users: int, rate: float, *, refused: bool) -> None:
    load = {**LOAD, "arrivals": {"process": "closed", "users": users, "spawnRate": rate}}
    found = vacuous(document(load=load))
    assert [keys for keys, _ in found] == ([("load", "arrivals", "spawnRate")] if refused else [])


def test_a_recovery_that_would_be_watched_for_less_than_it_may_take_is_refused() -> None:
    slo = {"ok": ["rate>=0.9"], "time_to_recover": ["value<=15s"]}
    late = [*FAULTS, {"pod.kill": {"count": 1}, "at": "50s"}]
    assert not said(slo=slo)
    assert "the load ends 10s after the last fault strikes" in said(slo=slo, faults=late)
    stages = {"process": "constant", "stages": [{"rate": 20, "for": "25s"}, {"rampTo": 5, "for": "5s"}]}
    staged = {key: value for key, value in LOAD.items() if key != "duration"} | {"arrivals": stages}
    assert "the load ends 10s after" in said(slo=slo, load=staged)


def test_a_baseline_phase_that_a_fault_at_the_start_leaves_empty_is_refused() -> None:
    at_once = [{"pod.kill": {"count": 1}, "at": "0s"}]
    slo = {"ok": ["rate>=0.9"], "ttft{phase:baseline}": ["p(90)<=1s", "p(50)<=1s"]}
    (found,) = vacuous(document(slo=slo, faults=at_once))
    assert found[0] == ("slo", "ttft{phase:baseline}")
    assert not vacuous(document(slo=slo))


def test_an_abort_that_is_looked_at_after_the_end_is_refused() -> None:
    for wait, refused in (("60s", True), ("59s", False)):
        slo = {"ttft": [{"threshold": "p(90)<=1s", "abortOnFail": True, "delayAbortEval": wait}]}
        assert ("nothing would ever end it" in said(slo=slo)) == refused


def test_samples_that_the_load_cannot_send_are_refused_whoever_asks_for_them() -> None:
    for entry in ({"threshold": "p(50)<=1s", "minSamples": 5000}, {"threshold": "p(99.9)<=1s", "abortOnFail": True}):
        assert any("this load sends about 1200 requests" in words for _, words in idle(document({"ttft": [entry]})))
    assert not idle(document({"ttft": [{"threshold": "p(99.9)<=1s", "minSamples": 100}]}))


def test_all_of_it_is_said_at_once_with_file_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "idle.yaml"
    file.write_text(
        """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: idle, description: Nothing here can fail.}
stack: {name: vllm-sim}
steadyState: [openai.chat]
load:
  profile: chat-short
  arrivals: {process: closed, users: 50, spawnRate: 0.1}
  duration: 60s
  good: {ttft: 2m}
slo:
  ttft: ["p(95)<=61s"]
  truncated:
    - count>=0
validity:
  client_cpu: [value<=2]
workloads:
  - {name: a, prints: ".*"}
"""
    )
    with pytest.raises(UsageError) as caught:
        plan.load_all([str(file)])
    places = sorted(
        line.split(": ")[0].removeprefix(str(file)) + " " + line.split(": ")[1] for line in caught.value.details
    )
    assert places == [
        ":10:10 load.good.ttft",
        ":10:3 load.good",
        ":12:10 slo.ttft[0]",
        ":14:7 slo.truncated[0]",
        ":16:16 validity.client_cpu[0]",
        ":18:15 workloads[0].prints",
        ":8:42 load.arrivals.spawnRate",
    ]
    for command in (["lint", str(file)], ["run", "--runs", str(tmp_path / "runs"), str(file)]):
        assert isinstance(CliRunner().invoke(app, command).exception, UsageError)
    assert not (tmp_path / "runs").exists()


def test_the_options_of_a_load_are_held_to_the_same() -> None:
    url = "http://127.0.0.1:9"
    for given, option in (
        (["--slo", "ttft: p(95)<=61s"], "--slo: ttft[0]"),
        (["--slo", "good_request_fraction: rate>=0"], "--slo: good_request_fraction[0]"),
        (["--slo", "truncated: count==0", "--good", "ttft=1s"], "--good:"),
        (["--good", "ttft=1m"], "--good: ttft"),
        (["--validity", "client_cpu: value<=2"], "--validity: client_cpu[0]"),
        (["--slo", "e2e: p(50)<=5s", "--timeout", "4s"], "--slo: e2e[0]"),
    ):
        found = CliRunner().invoke(app, ["load", url, "--rate", "20", "--for", "10s", "--dry-run", *given]).exception
        assert isinstance(found, UsageError)
        assert found.details[0].startswith(option), found.details


def test_a_recorded_scenario_that_could_not_fail_is_invalid() -> None:
    spec = scenario(slo={"good_request_fraction": ["rate>=0"], "time_to_recover": ["value<=5s"]})
    results = judge(history(spec=spec))
    assert results.verdict == "invalid"
    assert "no figure is below 0" in check(results, "validity/scenario/slo.good_request_fraction").reason


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2]).glob("scenarios/*/*.yaml")), ids=lambda f: f.stem)
def test_nothing_that_is_shipped_is_run_in_vain(file: Path) -> None:
    assert not idle(yaml.safe_load(file.read_text()))
