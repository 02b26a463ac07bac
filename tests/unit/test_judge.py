"""The judge on hand-written histories: each rule with a history that passes and one that must not."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.judge import weigh as judge
from sandbox.spec.results import Check, Results, worst
from sandbox.timeline import (
    AttackEvent,
    ClientBeat,
    Event,
    Fact,
    FaultEvent,
    LoadFinished,
    LoadStarted,
    PhaseChanged,
    Probed,
    Request,
    RunStarted,
)

LOAD_AT = 10.0
SCENARIO: dict[str, Any] = {
    "apiVersion": "sandbox/v1",
    "kind": "Scenario",
    "metadata": {"name": "demo", "description": "A history written by hand."},
    "cluster": "solo",
    "stack": {"name": "vllm-sim"},
    "steadyState": [{"openai.chat": {}}],
    "load": {"profile": "chat-short", "arrivals": {"process": "constant", "rate": 10}, "duration": "30s"},
    "faults": [{"pod.kill": {"count": 1}, "at": "10s"}],
    "slo": {"good_request_fraction": ["rate>=0.99"], "time_to_recover": ["value<=5s"]},
}


def scenario(**changes: Any) -> dict[str, Any]:
    return {**SCENARIO, **changes}


def request(at: float, outcome: str = "ok", took: float = 0.5, ttft: float = 0.1, **more: Any) -> Request:
    ok = outcome == "ok"
    return Request(
        t=at + took,
        scheduled=at,
        sent=at,
        first=at + ttft if ok else None,
        last=at + took if ok else None,
        chunks=5 if ok else 0,
        tokens=5 if ok else None,
        outcome=outcome,
        **more,
    )


def fault(*states: str, at: float = 20.0) -> list[FaultEvent]:
    return [
        FaultEvent(t=at + step, fault="pod.kill", index=0, state=state, detail=f"{state}!")  # type: ignore[arg-type]
        for step, state in enumerate(states)
    ]


WHOLE = fault("started", "injected", "proven", "healed")
GOOD = [request(LOAD_AT + n / 10) for n in range(300)]


def history(
    *,
    spec: dict[str, Any] | None = None,
    requests: list[Request] | None = None,
    faults: list[FaultEvent] | None = None,
    before: bool | None = True,
    after: bool | None = True,
    lag: float = 0.001,
    finished: bool = True,
    complete: bool = True,
    extra: list[Event] | None = None,
    attempted: int | None = None,
    aborted: str = "",
) -> list[Event]:
    events: list[Event] = [
        RunStarted(t=0, run_id="r1", wall="2026-01-01T00:00:00.000Z", scenario=spec or scenario(), source="demo.yaml"),
        Probed(t=5, probe="openai.chat", when="before", ok=before, detail="hello"),
        LoadStarted(t=LOAD_AT, url="http://127.0.0.1:1", model="m", profile="chat-short", asked={}),
        *(GOOD if requests is None else requests),
        *(ClientBeat(t=LOAD_AT + n, lag=[lag] * 20, beats=100, cpu=0.2, in_flight=3) for n in range(1, 31)),
        *(WHOLE if faults is None else faults),
        *(extra or []),
    ]
    if finished:
        count = len(GOOD if requests is None else requests)
        events.append(
            LoadFinished(t=LOAD_AT + 30.5, attempted=count if attempted is None else attempted, aborted=aborted)
        )
    events.append(Probed(t=45, probe="openai.chat", when="after", ok=after, detail="hello"))
    if complete:
        events.append(PhaseChanged(t=46, name="recover", status="ok"))
    return events


def check(results: Results, name: str) -> Check:
    found = [item for item in results.checks if item.id.startswith(name)]
    assert len(found) == 1, [item.id for item in results.checks]
    return found[0]


def test_a_history_in_which_everything_held_passes() -> None:
    results = judge(history())
    assert results.verdict == "pass", [c for c in results.checks if c.status != "pass"]
    assert "held" in results.headline


def test_the_worst_status_wins_and_nothing_at_all_is_invalid() -> None:
    assert worst(["pass", "invalid", "fail"]) == "fail"
    assert worst(["pass", "invalid"]) == "invalid"
    assert worst([]) == "invalid"


def test_failed_requests_break_the_good_fraction() -> None:
    bad = [request(LOAD_AT + n / 10, "truncated" if n % 20 == 0 else "ok") for n in range(300)]
    results = judge(history(requests=bad))
    assert check(results, "slo/good_request_fraction").status == "fail"
    assert "truncated" in " ".join(check(results, "slo/good_request_fraction").evidence)
    assert results.verdict == "fail"


def test_no_requests_at_all_is_invalid_never_a_pass() -> None:
    results = judge(history(requests=[], spec=scenario(slo={"truncated": ["count<=2"]})))
    assert check(results, "slo/truncated").status == "invalid"
    assert results.verdict == "invalid"


def test_a_percentile_of_too_few_samples_is_invalid_and_says_how_many_it_needs() -> None:
    results = judge(history(spec=scenario(slo={"ttft": ["p(99)<=1s"]})))
    assert check(results, "slo/ttft").status == "invalid"
    assert "459" in check(results, "slo/ttft").reason


def test_min_samples_of_the_scenario_replaces_the_default() -> None:
    slo = {"ttft": [{"threshold": "p(99)<=1s", "minSamples": 100}]}
    assert check(judge(history(spec=scenario(slo=slo))), "slo/ttft").status == "pass"


def test_a_fault_that_matched_nothing_makes_the_run_invalid() -> None:
    results = judge(history(faults=fault("started", "no_target")))
    assert check(results, "fault/0").status == "invalid"
    assert results.verdict == "invalid"


def test_a_fault_without_proof_from_outside_is_invalid() -> None:
    assert check(judge(history(faults=fault("started", "injected", "healed"))), "fault/0").status == "invalid"


def test_a_fault_whose_states_are_out_of_order_is_invalid_and_they_are_told() -> None:
    found = check(judge(history(faults=fault("started", "proven", "injected", "healed"))), "fault/0")
    assert found.status == "invalid"
    assert found.reason == "what is told of it cannot be: started, proven, injected, healed"


def test_a_fault_that_was_never_started_is_invalid() -> None:
    assert check(judge(history(faults=[])), "fault/0").status == "invalid"


def test_a_fault_that_does_not_heal_is_the_systems_failure() -> None:
    life = fault("started", "injected", "proven", "not_healed")
    assert check(judge(history(faults=life)), "fault/0").status == "fail"


@pytest.mark.parametrize("end", [(), ("failed",)])
def test_a_fault_whose_healing_nobody_could_watch_is_invalid_and_not_the_systems_failure(end: tuple[str, ...]) -> None:
    life = fault("started", "injected", "proven", *end)
    assert check(judge(history(faults=life)), "fault/0").status == "invalid"


def test_a_steady_state_missing_before_a_fault_is_invalid() -> None:
    assert judge(history(before=False)).verdict == "invalid"


def test_a_steady_state_missing_where_nothing_was_done_to_the_system_is_a_failure() -> None:
    spec = scenario(faults=[], slo={"good_request_fraction": ["rate>=0.9"]})
    assert judge(history(spec=spec, faults=[], before=False)).verdict == "fail"


def test_a_steady_state_that_does_not_come_back_fails_and_a_broken_probe_is_invalid() -> None:
    assert judge(history(after=False)).verdict == "fail"
    assert judge(history(after=None)).verdict == "invalid"


def test_a_late_heartbeat_makes_the_run_invalid_and_not_failed() -> None:
    results = judge(history(lag=0.4))
    assert check(results, "validity/client_lag").status == "invalid"
    assert results.verdict == "invalid"


def test_a_load_client_that_died_is_invalid_even_if_all_it_wrote_was_good() -> None:
    assert judge(history(finished=False)).verdict == "invalid"


def test_a_run_cut_short_is_invalid() -> None:
    assert judge(history(complete=False)).verdict == "invalid"


def test_requests_in_flight_when_the_fault_strikes_belong_to_the_fault() -> None:
    spec = scenario(slo={"good_request_fraction{phase:baseline}": ["rate>=1"], "truncated{phase:fault}": ["count==0"]})
    victims = [*GOOD, request(19.9, "truncated", took=0.3)]
    results = judge(history(spec=spec, requests=victims))
    assert check(results, "slo/good_request_fraction{phase:baseline}").status == "pass"
    assert check(results, "slo/truncated{phase:fault}").status == "fail"


def test_time_to_recover_runs_from_the_fault_to_the_first_good_completion_after_the_last_bad_one() -> None:
    broken = [request(LOAD_AT + n / 10, "connect_error" if 100 <= n < 140 else "ok") for n in range(300)]
    spec = scenario(slo={"time_to_recover": ["value<=5s"]})
    results = judge(history(spec=spec, requests=broken))
    assert results.time_to_recover == pytest.approx(4.5, abs=0.01)
    assert check(results, "slo/time_to_recover").status == "pass"


def test_users_who_never_get_a_good_answer_again_are_never_recovered() -> None:
    broken = [request(LOAD_AT + n / 10, "connect_error" if n >= 100 else "ok") for n in range(300)]
    results = judge(history(spec=scenario(slo={"time_to_recover": ["value<=5s"]}), requests=broken))
    assert check(results, "slo/time_to_recover").status == "fail"
    assert check(results, "slo/time_to_recover").observed == "never"


def test_a_recovery_that_was_not_watched_for_as_long_as_it_may_take_is_invalid() -> None:
    broken = [request(LOAD_AT + n / 10, "connect_error" if n >= 100 else "ok") for n in range(300)]
    results = judge(history(spec=scenario(slo={"time_to_recover": ["value<=25s"]}), requests=broken))
    assert check(results, "slo/time_to_recover").status == "invalid"
    assert "load for longer" in check(results, "slo/time_to_recover").reason


def test_a_limit_on_the_time_between_tokens_says_nothing_of_an_answer_of_one() -> None:
    load = {**SCENARIO["load"], "good": {"tpot": "10ms"}}
    short = [each.model_copy(update={"tokens": 1, "chunks": 1, "last": each.first}) for each in GOOD]
    assert check(judge(history(spec=scenario(load=load), requests=short)), "slo/good_request").status == "pass"
    assert check(judge(history(spec=scenario(load=load))), "slo/good_request").status == "fail"


def test_a_share_just_below_one_is_not_shown_as_all_of_it() -> None:
    nearly = [request(LOAD_AT + n / 1000, "timeout" if n == 7 else "ok") for n in range(25_000)]
    found = check(
        judge(history(spec=scenario(slo={"good_request_fraction": ["rate>=1"]}), requests=nearly)), "slo/good_request"
    )
    assert found.status == "fail"
    assert found.observed == "99.99600%"


def test_the_evidence_of_a_latency_is_its_slowest_requests_also_where_it_held() -> None:
    requests = [request(LOAD_AT + n / 10, ttft=0.4 if n == 50 else 0.1) for n in range(300)]
    spec = scenario(slo={"ttft": ["p(90)<=1s"]})
    found = check(judge(history(spec=spec, requests=requests)), "slo/ttft")
    assert found.status == "pass"
    assert found.evidence[0].startswith(f"t={LOAD_AT + 5.5:.2f}s ok")
    assert len(found.evidence) == 3


def test_a_request_level_limit_makes_a_slow_answer_bad() -> None:
    load = {**SCENARIO["load"], "good": {"ttft": "200ms"}}
    slow = [request(LOAD_AT + n / 10, ttft=0.3 if n % 10 == 0 else 0.1) for n in range(300)]
    results = judge(history(spec=scenario(load=load), requests=slow))
    assert check(results, "slo/good_request_fraction").status == "fail"


def attack(variant: str, outcome: str, by: str = "") -> AttackEvent:
    return AttackEvent(
        t=30, attempt="1-privileged", title="a privileged pod", variant=variant, outcome=outcome, expected_by="P", by=by
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([attack("attempt", "denied", "P"), attack("allowed", "succeeded")], "pass"),
        ([attack("attempt", "succeeded"), attack("allowed", "succeeded")], "fail"),
        ([attack("attempt", "denied", "P"), attack("allowed", "denied", "P")], "fail"),
        ([attack("attempt", "denied", "R"), attack("allowed", "succeeded")], "invalid"),
        ([attack("attempt", "error"), attack("allowed", "succeeded")], "invalid"),
        ([attack("attempt", "denied", "P")], "invalid"),
        ([attack("attempt", "denied", "P"), attack("allowed", "succeeded"), attack("attempt", "succeeded")], "fail"),
        ([attack("attempt", "denied", "P"), attack("allowed", "succeeded"), attack("allowed", "error")], "invalid"),
        ([attack("attempt", "denied", "P"), attack("allowed", "succeeded"), attack("allowed", "denied", "P")], "fail"),
        ([attack("attempt", "denied", "P"), attack("attempt", "error"), attack("allowed", "succeeded")], "invalid"),
        ([], "invalid"),
    ],
)
def test_an_attack_passes_only_when_the_right_layer_denies_it_and_its_twin_works(
    events: list[Event], status: str
) -> None:
    planned = Fact(t=9, about="attacks", values={"planned": ["1-privileged"]})
    results = judge(history(extra=[planned, *events]))
    assert check(results, "attack/1-privileged").status == status


def test_attacks_that_were_asked_for_and_never_begun_are_invalid() -> None:
    assert check(judge(history(spec=scenario(attacks=["all"]))), "attack/all").status == "invalid"


def test_judging_twice_gives_the_same_and_needs_no_cluster() -> None:
    events = history()
    assert judge(events) == judge(events)


def test_a_timeline_without_a_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.started"):
        judge([])


def test_a_request_that_was_attempted_and_not_recorded_makes_the_run_invalid() -> None:
    assert check(judge(history(attempted=301)), "validity/load-client").status == "invalid"


def test_a_load_that_was_ended_early_is_invalid_even_where_a_threshold_broke() -> None:
    assert check(judge(history(aborted="stopped by a signal")), "validity/load-client").status == "invalid"
    bad = [request(LOAD_AT + n / 10, "timeout") for n in range(300)]
    assert judge(history(aborted="stopped by a signal", requests=bad)).verdict == "invalid"
    assert judge(history(requests=bad)).verdict == "fail"


def test_a_run_that_stopped_early_says_once_that_the_rest_was_not_reached() -> None:
    events = [event for event in history(complete=False) if isinstance(event, RunStarted)]
    stopped = [
        PhaseChanged(t=1, name="up", status="started"),
        PhaseChanged(t=2, name="up", status="failed", detail="no disk"),
    ]
    results = judge([*events, *stopped])
    assert [item.id for item in results.checks] == ["phase/up", "phase/not-reached"]
    assert "no disk" in results.headline


def test_what_is_written_while_a_run_is_judged_does_not_change_its_verdict_when_it_is_judged_again() -> None:
    later = [PhaseChanged(t=60 + n, name=name, status="ok") for n, name in enumerate(("judge", "report"))]
    assert judge([*history(), *later]) == judge(history())


def test_why_requests_were_not_good_is_counted_and_those_that_failed_stand_first() -> None:
    load = {**SCENARIO["load"], "good": {"ttft": "200ms"}}
    mixed = [request(LOAD_AT + n / 10, "timeout" if n < 4 else "ok", ttft=0.3 if n > 289 else 0.1) for n in range(300)]
    evidence = check(judge(history(spec=scenario(load=load), requests=mixed)), "slo/good_request").evidence
    assert evidence[0] == "of 300 requests: 4 timeout, 10 ok but beyond a limit of `good`"
    assert [line.split()[1] for line in evidence[1:]] == ["timeout"] * 4 + ["ok"] * 4
    assert "ttft beyond 0.2 s" in evidence[-1]
