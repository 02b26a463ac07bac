"""Each figure as an interval: what a client that read late, sent late or stood still can have made of it."""

from __future__ import annotations

from typing import Any

import pytest
from test_judge import GOOD, LOAD_AT, SCENARIO, check, fault, history, request, scenario

from sandbox.judge import weigh as judge
from sandbox.metrics import Rules, observe, record
from sandbox.spec.results import Check
from sandbox.spec.slo import parse_expression, parse_selector
from sandbox.timeline import BaselineSamples, ClientBeat, Event, FaultEvent, Request

LOAD = SCENARIO["load"]


def known(each: Request, late: float = 0.0, **more: Any) -> Request:
    """As a client writes it that says how late it may have read: each chunk by so many seconds, and the end too."""
    told = {
        "connect_uncertainty": 0.0,
        "end_uncertainty": late,
        "uncertainty": [late] * each.chunks,
        "gaps": [0.1] * max(0, each.chunks - 1),
        "content_bytes": 4 * each.chunks,
        "first_bytes": 4,
    }
    return each.model_copy(update={**told, **more})


def answers(many: int = 300, late: float = 0.0, **more: Any) -> list[Request]:
    return [known(request(LOAD_AT + n / 10, **more), late) for n in range(many)]


def held(
    selector: str, threshold: str, requests: list[Request], faults: list[FaultEvent] | None = None, **load: Any
) -> Check:
    spec = scenario(slo={selector: [threshold]}, load={**LOAD, **load}, **({} if faults else {"faults": []}))
    return check(judge(history(spec=spec, requests=requests, faults=faults or [])), f"slo/{selector}")


def ends(selector: str, requests: list[Request], expression: str = "avg<=1s", **rules: float) -> tuple[float, float]:
    """The interval of a figure of these requests, in seconds, shares or counts."""
    found = parse_selector(selector)
    seen = observe(
        record(history(requests=requests, faults=[]), rules=Rules(**rules)),
        found,
        parse_expression(expression, found.metric),
    )
    return round(float(seen.low), 9), round(float(seen.high), 9)


# the bounds of each time


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [
        ("ttft", 0.1 - 0.03 - 0.01, 0.1),  # the first token, and the connection that was noticed late
        ("ttft_intended", 0.1 - 0.03 - 0.01, 0.1 + 0.002),  # late sending is the client's doing
        ("e2e", 0.5 - 0.05 - 0.01, 0.5),
        ("ntpot", (0.5 - 0.05 - 0.01) / 5, 0.5 / 5),
        ("tpot", (0.4 - 0.04) / 4, (0.4 + 0.03) / 4),
        ("sched_lag", 0.002, 0.002),  # its own, and exact
    ],
)
def test_each_time_reaches_as_far_down_as_it_may_have_been_read_late(metric: str, low: float, high: float) -> None:
    told = {"connect_uncertainty": 0.01, "end_uncertainty": 0.05, "uncertainty": [0.03, 0, 0, 0, 0.04]}
    one = known(request(LOAD_AT), **told).model_copy(update={"scheduled": LOAD_AT - 0.002})
    assert ends(metric, [one]) == (pytest.approx(low), pytest.approx(high))


def test_a_gap_is_longer_by_its_first_reading_and_shorter_by_its_second() -> None:
    one = known(request(LOAD_AT), uncertainty=[0.01, 0.02, 0.2, 0, 0], gaps=[0.1] * 4)
    assert ends("icl", [one], "min<=1s") == (0.0, 0.1)
    assert ends("icl", [one], "max<=1s") == (0.1, 0.3)
    assert ends("icl", [one], "avg<=1s") == (
        pytest.approx((0.08 + 0 + 0.1 + 0.1) / 4),
        pytest.approx((0.11 + 0.12 + 0.3 + 0.1) / 4),
    )


def test_a_client_that_says_nothing_of_its_lateness_is_judged_by_what_it_measured() -> None:
    found = judge(history(spec=scenario(slo={"ttft": ["p(50)<=100ms"]}, faults=[]), faults=[]))
    assert check(found, "slo/ttft").observed == "100.0 ms"
    assert {each.id.split("/")[1] for each in found.checks if each.group == "validity"} >= {"client_lag", "sched_lag"}
    of_known = judge(history(spec=scenario(slo={"ttft": ["p(50)<=100ms"]}, faults=[]), faults=[], requests=answers()))
    names = {each.id.split("/")[1] for each in of_known.checks if each.group == "validity"}
    assert not names & {"client_lag", "client_added", "sched_lag", "client_cpu"}
    assert names >= {"offered", "bounds"}


def test_what_a_client_that_says_so_does_not_say_of_one_reading_may_be_anything() -> None:
    one = known(request(LOAD_AT))
    assert ends("ttft", [one.model_copy(update={"uncertainty": None})]) == (0.0, 0.1)
    assert ends("ttft", [one.model_copy(update={"connect_uncertainty": None})]) == (0.0, 0.1)
    assert ends("e2e", [one.model_copy(update={"connect_uncertainty": None})]) == (0.0, 0.5)


# three answers


@pytest.mark.parametrize(
    ("limit", "status"),
    [("3s", "pass"), ("100ms", "pass"), ("99ms", "invalid"), ("60ms", "invalid"), ("59ms", "fail"), ("10ms", "fail")],
)
def test_a_limit_beyond_the_interval_is_decided_and_one_inside_is_not(limit: str, status: str) -> None:
    found = held("ttft", f"p(90)<={limit}", answers(late=0.04))
    assert found.status == status, found.reason
    assert found.observed == "100.0 ms (60.0 ms to 100.0 ms)"
    assert (found.low, found.high) == (pytest.approx(0.06), pytest.approx(0.1))


def test_what_cannot_be_told_says_by_how_much() -> None:
    reason = held("ttft", "p(90)<=70ms", answers(late=0.04)).reason
    assert "between 60.0 ms and 100.0 ms" in reason
    assert "40.0 ms apart" in reason
    assert "70.0 ms lies 10.0 ms above" in reason


@pytest.mark.parametrize(("late", "bound"), [(0.04, "at the least it is 60.0 ms"), (0.0, "p(90) is 100.0 ms, asked")])
def test_a_fail_names_the_bound_that_breaks_the_limit_and_what_others_took_of_the_machine(
    late: float, bound: str
) -> None:
    beats: list[Event] = [
        ClientBeat(t=LOAD_AT + n, lag=[0.001], beats=100, cpu=0.2, in_flight=3, machine=0.63) for n in range(1, 31)
    ]
    spec = scenario(slo={"ttft": ["p(90)<=50ms"]}, faults=[])
    found = check(judge(history(spec=spec, requests=answers(late=late), faults=[], extra=beats)), "slo/ttft")
    assert found.status == "fail"
    assert bound in found.reason
    assert "all but the load client used 63% of the machine" in found.reason


def test_a_stack_that_is_really_slow_fails_however_busy_the_machine() -> None:
    found = held("ttft", "p(90)<=3s", answers(ttft=4.0, took=5.0, late=0.5))
    assert found.status == "fail"
    assert "3.50 s" in found.reason


# shares and outcomes


@pytest.mark.parametrize(("late", "status"), [(0.0, "fail"), (0.02, "invalid"), (0.2, "invalid")])
def test_late_reading_makes_good_shares_too_low_only(late: float, status: str) -> None:
    slow = [known(request(LOAD_AT + n / 10, ttft=0.21 if n < 30 else 0.1), late) for n in range(300)]
    assert held("good_request_fraction", "rate>=0.99", slow, good={"ttft": "200ms"}).status == status
    assert held("good_request_fraction", "rate>=0.9", slow, good={"ttft": "200ms"}).status == "pass"


def test_a_limit_of_the_time_between_tokens_errs_both_ways() -> None:
    requests = answers(late=0.05)  # 100 ms a token, and 87.5 to 112.5 ms in truth
    for limit, status in (("80ms", "fail"), ("90ms", "invalid"), ("110ms", "invalid"), ("113ms", "pass")):
        assert held("good_request_fraction", "rate>=0.9", requests, good={"tpot": limit}).status == status


def test_an_answer_that_was_silent_for_nearly_as_long_as_ends_one_may_have_been_a_time_out() -> None:
    near = known(request(LOAD_AT, took=9.5), uncertainty=[0.2, 0, 0, 0, 0], gaps=[9.0, 0.1, 0.1, 0.2])
    assert ends("timeout", [near], "count<=0", idle=10.0) == (0, 0)
    assert ends("timeout", [near], "count<=0", idle=9.1) == (0, 1)
    assert ends("ok", [near], "rate<=1", idle=9.1) == (0, 1)
    assert ends("ttft", [near, *answers(9)], "max<=1s", idle=9.1) == (0.1, 0.1), "whether it counts or not"


def test_an_answer_that_was_read_after_its_limit_was_over_may_have_been_a_time_out() -> None:
    over = [known(request(LOAD_AT, took=3.0), 1.5)]
    assert ends("timeout", over, "count<=0", timeout=2.9) == (0, 1)
    assert ends("timeout", over, "count<=0", timeout=3.0) == (0, 0)


def test_a_time_out_is_sure_where_the_client_looked_once_more_and_its_request_went_out_in_time() -> None:
    gone = known(request(LOAD_AT, "timeout", took=3.1), 0.1)
    assert ends("timeout", [gone], "count<=0", timeout=3.0) == (1, 1)
    for doubt in ({"end_uncertainty": 0.3}, {"connect_uncertainty": 0.2}):
        assert ends("timeout", [gone.model_copy(update=doubt)], "count<=0", timeout=3.0) == (0, 1)
        assert ends("ok", [gone.model_copy(update=doubt)], "count<=0", timeout=3.0) == (0, 1)


@pytest.mark.parametrize(("late", "expected"), [(0.0, (1, 1)), (0.4, (0, 1))])
def test_an_arrival_that_was_dropped_beside_answers_that_were_read_late_may_have_had_room(
    late: float, expected: tuple[int, int]
) -> None:
    two = [known(request(LOAD_AT + n / 10), late) for n in range(2)]
    dropped = Request(t=LOAD_AT + 0.3, scheduled=LOAD_AT + 0.3, sent=None, outcome="dropped")
    assert ends("dropped", [*two, dropped], "count<=0", in_flight=2) == expected


def test_rates_over_the_whole_run_are_too_low_only() -> None:
    low, high = ends("request_rate", answers(late=0.3), "value>=1")
    assert (low, high) == (pytest.approx(300 / 30.5), pytest.approx(300 / 30.1))


# phases


def phases(requests: list[Request], late: float = 0.0, at: float = 20.0) -> dict[str, tuple[float, float]]:
    life = [*fault("started", "injected", "proven", at=at)]
    life.append(FaultEvent(t=at + 3, fault="pod.kill", index=0, state="healed", uncertainty=late))
    rec = record(history(requests=requests, faults=life))
    found = {}
    for phase in ("baseline", "fault", "recovery"):
        seen = observe(rec, parse_selector(f"requests{{phase:{phase}}}"), parse_expression("count<=1", "requests"))
        found[phase] = (float(seen.low), float(seen.high))
    return found


def test_a_request_that_may_have_ended_before_the_fault_counts_on_either_side() -> None:
    assert phases([known(request(19.8, took=0.3), 0.05)]) == {"baseline": (0, 0), "fault": (1, 1), "recovery": (0, 0)}
    assert phases([known(request(19.8, took=0.3), 0.15)]) == {"baseline": (0, 1), "fault": (0, 1), "recovery": (0, 0)}


def test_a_request_near_a_heal_that_was_seen_late_counts_on_either_side() -> None:
    one = [known(request(22.8))]
    assert phases(one) == {"baseline": (0, 0), "fault": (1, 1), "recovery": (0, 0)}
    assert phases(one, late=0.5) == {"baseline": (0, 0), "fault": (0, 1), "recovery": (0, 1)}


def test_a_share_of_a_phase_is_the_worst_and_the_best_of_both_sides() -> None:
    """Ten in the fault, one of which is bad; another that is bad may have ended before it struck."""
    bad = known(request(19.8, "http_error", took=0.3), 0.15)
    inside = [known(request(20.5 + n / 10, "http_error" if n == 0 else "ok", took=0.05, ttft=0.01)) for n in range(10)]
    rec = record(history(requests=[bad, *inside], faults=fault("started", "injected", "proven", "healed", at=20.0)))
    seen = observe(rec, parse_selector("ok{phase:fault}"), parse_expression("rate>=0", "ok"))
    assert (float(seen.low), float(seen.high)) == (pytest.approx(9 / 11), 0.9)


# time to recover


def recovered(requests: list[Request], bound: str = "5s", **more: Any) -> Check:
    spec = scenario(slo={"time_to_recover": [f"value<={bound}"]}, **more)
    return check(judge(history(spec=spec, requests=requests)), "slo/time_to_recover")


def outage(late: float = 0.0, until: float = 24.0) -> list[Request]:
    return [
        known(request(at, "connect_error" if 20 <= at < until else "ok", took=0.5), late)
        for at in (LOAD_AT + n / 10 for n in range(300))
    ]


def test_late_reading_makes_a_recovery_too_long() -> None:
    found = recovered(outage(late=0.2), "4.4s")
    assert (found.low, found.high) == (pytest.approx(4.3), pytest.approx(4.5))
    assert found.status == "invalid"
    assert recovered(outage(late=0.2), "4.5s").status == "pass"
    assert recovered(outage(late=0.2), "4.2s").status == "fail"


def test_late_sending_makes_a_recovery_too_short() -> None:
    """All of an outage's requests were sent when it was over: they were good, and say nothing of when they were due."""
    stalled = [
        known(each).model_copy(update={"sent": 22.0, "t": 22.5, "first": 22.1, "last": 22.5})
        if 20.0 <= each.scheduled < 21.9
        else known(each)
        for each in GOOD
    ]
    found = recovered(stalled, "1s")
    assert (found.low, found.high) == (0.0, pytest.approx(2.4))
    assert found.status == "invalid"
    assert recovered(stalled, "3s").status == "pass"
    in_time = [each.model_copy(update={"sent": each.scheduled + 0.2}) for each in stalled]
    assert recovered(in_time, "1s").status == "pass"


SILENT = {
    "a silent stage": [each for each in GOOD if not 19.5 <= each.scheduled < 24],
    "a load that ended early": [each for each in GOOD if each.scheduled < 15],
    "one slow user": [request(LOAD_AT, took=1.0), request(18.0, took=1.5), request(26.0, took=1.0)],
    "nobody at all": [],
}


@pytest.mark.parametrize("requests", SILENT.values(), ids=SILENT)
def test_nobody_recovers_from_what_nobody_could_be_hurt_by(requests: list[Request]) -> None:
    for each in (requests, [known(one) for one in requests]):
        found = recovered(each, "60s")
        assert found.status == "invalid"
        assert not requests or "no request was due while pod.kill" in found.reason


def test_one_of_two_faults_without_a_chance_to_hurt_leaves_the_figure_open_above() -> None:
    second = [
        event.model_copy(update={"index": 1, "t": event.t + 15.0})
        for event in fault("started", "injected", "proven", "healed")
    ]
    spec = scenario(slo={"time_to_recover": ["value<=3s", "value<=20s"]})
    requests = [each for each in outage() if each.scheduled < 34.5]
    checks = judge(history(spec=spec, requests=requests, extra=list(second))).checks
    found = {each.expected: each.status for each in checks if each.id.startswith("slo/time")}
    assert found == {"value<=3s": "fail", "value<=20s": "invalid"}


def test_a_silence_after_the_last_bad_request_is_no_proof_that_users_waited() -> None:
    quiet = [each for each in outage() if each.scheduled < 21]
    found = recovered(quiet, "5s")
    assert found.status == "invalid", "the last bad one was after 0.9 s, and then nobody asked"


# the server's word


def one_piece(**more: Any) -> list[Request]:
    whole = {"chunks": 1, "gaps": [], "uncertainty": [0.0], "tokens": 1000, "content_bytes": 40, "first_bytes": 40}
    return [
        known(request(LOAD_AT + n / 10, ttft=3.0, took=3.1), **whole).model_copy(
            update={"last": LOAD_AT + n / 10 + 3.0, **more}
        )
        for n in range(300)
    ]


@pytest.mark.parametrize("counted", [40, None], ids=["its bytes were counted", "an older timeline"])
def test_one_piece_after_three_seconds_shows_neither_a_pace_nor_a_thousand_tokens(counted: int | None) -> None:
    pieces = one_piece(content_bytes=counted, first_bytes=counted)
    found = held("tpot", "p(90)<=10ms", pieces)
    assert (found.status, found.observed) == ("invalid", "no data")
    assert "in one piece" in found.reason
    assert held("token_rate", "value>=2000", pieces).status in {"fail", "invalid"}
    assert held("good_request_fraction", "rate>=0.99", pieces, good={"tpot": "10ms"}).status == "invalid"
    assert held("ntpot", "p(90)<=10ms", pieces).status in {"fail", "invalid"}


def test_a_few_pieces_among_streams_leave_a_percentile_as_it_is() -> None:
    mixed = [*answers(290), *one_piece()[:10]]
    assert held("tpot", "p(90)<=200ms", mixed).status == "pass"
    assert held("tpot", "p(99)<=200ms", [*answers(500), *one_piece()[:10]]).status == "invalid"


def test_tokens_beyond_the_bytes_that_carried_them_are_not_believed() -> None:
    liars = [known(each, tokens=5000, content_bytes=20) for each in GOOD]
    assert ends("token_rate", liars, "value>=1") == (pytest.approx(300 * 5 / 30.5), pytest.approx(300 * 20 / 30.4))


def test_tokens_that_came_with_the_first_chunk_show_no_time_between_them() -> None:
    """Ninety of a hundred tokens at once, then four chunks in 0.4 s: 40 ms each and not 4."""
    held_back = known(request(LOAD_AT), tokens=100, content_bytes=400, first_bytes=360)
    assert ends("tpot", [held_back]) == (pytest.approx(0.4 / 99), pytest.approx(0.4 / 4))
    even = known(request(LOAD_AT), tokens=100, content_bytes=400, first_bytes=80)
    assert ends("tpot", [even]) == (pytest.approx(0.4 / 99), pytest.approx(0.4 / 20))


def test_an_answer_of_one_token_has_no_time_between_tokens_and_meets_every_limit_of_it() -> None:
    short = [
        known(each, tokens=1, chunks=1, gaps=[], uncertainty=[0.0], content_bytes=3, first_bytes=3) for each in GOOD
    ]
    assert held("good_request_fraction", "rate>=1", short, good={"tpot": "1ms"}).status == "pass"


# against an earlier run


def test_a_baseline_is_held_against_with_the_bounds_of_both_runs() -> None:
    def against(late: float, late_then: float) -> str:
        low = [0.1 - late_then] * 300
        before = BaselineSamples(
            t=0, run_id="r0", source="r", selector="ttft", samples=[0.1] * 300, low=low, high=[0.1] * 300
        )
        spec = scenario(slo={"ttft": ["p(50)<=baseline+10%"]}, faults=[])
        events = history(spec=spec, requests=answers(late=late), faults=[], extra=[before])
        return check(judge(events), "slo/ttft").status

    assert (against(0.0, 0.0), against(0.05, 0.0)) == ("pass", "pass")
    assert against(0.0, 0.05) == "invalid", "the earlier run may have been twice as quick"
    slower = [known(request(LOAD_AT + n / 10, ttft=0.2), 0.05) for n in range(300)]
    spec = scenario(slo={"ttft": ["p(50)<=baseline+10%"]}, faults=[])
    before = BaselineSamples(t=0, run_id="r0", source="r", selector="ttft", samples=[0.1] * 300)
    assert check(judge(history(spec=spec, requests=slower, faults=[], extra=[before])), "slo/ttft").status == "fail"
