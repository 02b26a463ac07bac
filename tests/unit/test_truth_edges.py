"""What may have been otherwise: each rule at its edge, with figures that binary fractions hold exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_intervals import known
from test_judge import history, request

from sandbox import metrics
from sandbox.metrics import Rules, recovery, truth
from sandbox.metrics.table import Table
from sandbox.spec.results import Window
from sandbox.timeline import FaultEvent, Request

RULES = Rules(timeout=4.0, idle=2.0)
AT = 16.0


def doubtful(*requests: Request, rules: Rules = RULES) -> list[bool]:
    return truth.doubtful(Table(requests, rules=rules)).tolist()


def ended(outcome: str, took: float, end: float = 0.0, connect: float = 0.0, lag: float = 0.0) -> Request:
    told = known(request(AT, outcome, took=took), end, connect_uncertainty=connect)
    return told.model_copy(update={"scheduled": AT - lag, "uncertainty": [0.0] * told.chunks})


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        # of an answer: read after the limit was over
        (ended("ok", 4.0, end=1.0), False),
        (ended("ok", 4.0 + 1e-8), True),
        (ended("http_error", 4.5), True),
        # of a time-out: the connection was noticed late, or nobody looked once more
        (ended("timeout", 4.0, connect=0.04), False),
        (ended("timeout", 4.0, connect=0.041), True),
        (ended("timeout", 4.5, end=0.5), False),
        (ended("timeout", 4.5, end=0.5001), False),
        (ended("timeout", 4.5, end=0.502), True),
        (ended("timeout", 4.0, end=1.0), False),
        (ended("timeout", 4.5, end=0.25), False),
        # of a connection that failed: it had waited for as long as a request may, and nobody looked for a while
        (ended("connect_error", 4.0, end=0.02), True),
        (ended("connect_error", 4.0, end=0.01), False),
        (ended("connect_error", 3.5, end=0.02), False),
        (ended("connect_error", 3.5, end=0.02, lag=0.5), True),
        (ended("http_error", 4.0, end=0.02), False),
    ],
)
def test_whose_outcome_may_have_been_another(request_: Request, expected: bool) -> None:
    assert doubtful(request_) == [expected]
    unknown = request_.model_copy(update={"end_uncertainty": None, "connect_uncertainty": None, "uncertainty": None})
    assert doubtful(unknown) == [False]
    assert doubtful(unknown, request_) == [False, expected]


@pytest.mark.parametrize(
    ("gaps", "late", "end", "expected"),
    [
        # the first chunk comes after 1 s, then these gaps, and after the last of them 0.25 s until the end
        ([1.75], [0.25, 0.0], 0.0, True),
        ([1.75], [0.24, 0.0], 0.0, False),
        ([2.5], [0.0, 0.5], 0.0, True),
        ([2.5], [0.0, 0.49], 0.0, False),
        ([2.0], [0.0, 0.0], 0.0, True),
        ([0.5, 1.75], [0.0, 0.25, 0.0], 0.0, True),
        ([0.5, 1.75], [0.25, 0.0, 0.0], 0.0, False),
        ([1.0], [0.0, 1.75], 0.0, True),  # the silence before the end
        ([1.0], [0.0, 1.74], 0.0, False),
    ],
)
def test_what_may_have_been_silent_for_as_long_as_ends_a_stream(
    gaps: list[float], late: list[float], end: float, expected: bool
) -> None:
    last = AT + 1.0 + sum(gaps)
    told = {"gaps": gaps, "uncertainty": late, "end_uncertainty": end, "chunks": len(gaps) + 1}
    one = known(request(AT, ttft=1.0)).model_copy(update={**told, "last": last, "t": last + 0.25})
    assert doubtful(one, rules=Rules(timeout=60.0, idle=2.0)) == [expected]
    for outcome in ("timeout", "connect_error"):  # the client gave it up itself
        given_up = one.model_copy(update={"outcome": outcome})
        assert doubtful(given_up, rules=Rules(timeout=60.0, idle=2.0)) == [False]


def test_a_stream_too_short_to_have_been_silent_that_long_was_not() -> None:
    short = known(request(AT, ttft=0.25, took=0.75)).model_copy(
        update={"chunks": 2, "gaps": [0.25], "uncertainty": [10.0, 0.0]}
    )
    assert doubtful(short) == [False], "nothing can be late by more than it took"
    assert doubtful(short.model_copy(update={"uncertainty": [math.inf, 0.0]})) == [True], "but nobody knows it of this"
    twice = short.model_copy(update={"t": AT + 1.0, "last": AT + 1.0, "gaps": [0.75], "uncertainty": [1.25, 0.0]})
    assert doubtful(twice) == [True]


def test_an_arrival_was_one_too_many_only_where_all_places_were_surely_taken() -> None:
    def told(late: float, due: float = AT + 0.5, places: int = 2) -> bool:
        held = [known(request(AT, took=0.625), late), known(request(AT + 0.5, took=1.0), late)]
        dropped = Request(t=due, scheduled=due, sent=None, outcome="dropped")
        return doubtful(*held, dropped, rules=Rules(timeout=60.0, in_flight=places))[2]

    assert not told(0.0)
    assert not told(0.1)
    assert told(0.125), "the first had perhaps gone at that moment"
    assert told(0.0, places=3)
    assert told(0.0, due=AT + 0.25), "the second had not come"
    assert not told(0.0, due=AT + 0.25, places=1)


def test_what_was_dropped_took_no_place_itself() -> None:
    held = known(request(AT, took=2.0))
    gone = Request(t=AT + 1.0, scheduled=AT + 0.5, sent=None, outcome="dropped")
    assert doubtful(held, gone, rules=Rules(timeout=60.0, in_flight=2)) == [False, True]


def may_be_good(one: Request, **limits: float) -> str:
    found = truth.perhaps_good(Table([one], rules=RULES), limits)
    return "surely" if found.sure[0] else "perhaps" if found.possible[0] else "no"


# given up after 4 s, and its connection had been noticed late by so much: it may have been answered in truth
GIVEN_UP = known(request(AT, "timeout", took=4.0), 0.5, connect_uncertainty=0.25)
# the same, of which the first chunk was seen after 1 s, late by a quarter at the most
BEGUN = GIVEN_UP.model_copy(
    update={"first": AT + 1.0, "last": AT + 1.0, "chunks": 1, "uncertainty": [0.25], "gaps": []}
)
# the same, with two chunks more
GOING_ON = BEGUN.model_copy(
    update={"last": AT + 2.0, "chunks": 3, "tokens": 3, "uncertainty": [0.25] * 3, "gaps": [0.5, 0.5]}
)


@pytest.mark.parametrize(
    ("one", "limits", "expected"),
    [
        (GIVEN_UP, {}, "perhaps"),
        (GIVEN_UP, {"e2e": 3.25}, "perhaps"),
        (GIVEN_UP, {"e2e": 3.2499999996}, "perhaps"),  # times are known to the nanosecond
        (GIVEN_UP, {"e2e": 3.249}, "no"),
        (GIVEN_UP, {"ttft": 3.25}, "perhaps"),
        (GIVEN_UP, {"ttft": 3.249}, "no"),  # nothing had come by then
        (GIVEN_UP, {"tpot": 0.001}, "perhaps"),
        (GIVEN_UP, {"tpot": 0.001, "e2e": 1.0}, "no"),
        (GOING_ON, {"tpot": 0.001}, "perhaps"),  # all the others may have come at once
        (BEGUN, {"ttft": 0.5}, "perhaps"),
        (BEGUN, {"ttft": 0.499}, "no"),
        (BEGUN, {"ntpot": 0.5}, "perhaps"),
        (BEGUN, {"e2e": 3.25}, "perhaps"),
        (BEGUN, {"e2e": 3.249}, "no"),
        (known(request(AT, "timeout", took=4.0)), {}, "no"),
        (known(request(AT, "http_error", took=4.0), 0.5, connect_uncertainty=0.25), {}, "no"),
    ],
)
def test_what_was_given_up_may_have_been_good_where_what_was_seen_of_it_allows_it(
    one: Request, limits: dict[str, float], expected: str
) -> None:
    assert may_be_good(one, **limits) == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [(0.125, "surely"), (0.1249, "perhaps"), (0.0625, "perhaps"), (0.0624, "no")]
)
def test_an_answer_is_surely_good_by_its_upper_bound_and_perhaps_by_its_lower(limit: float, expected: str) -> None:
    one = known(request(AT, ttft=0.125), 0.0625)
    assert may_be_good(one, ttft=limit) == expected
    assert may_be_good(one, ttft=limit, e2e=0.25) == "no"


def test_an_answer_of_two_tokens_has_one_time_between_them() -> None:
    two = known(request(AT, ttft=0.25, took=0.75), chunks=2, tokens=2, gaps=[0.5], uncertainty=[0.125, 0.25])
    found = truth.between(Table([two], rules=RULES), "tpot")
    assert (found.low.tolist(), found.high.tolist()) == ([0.25], [0.625])
    one = known(request(AT, ttft=0.25, took=0.75), chunks=1, tokens=1, gaps=[], uncertainty=[0.125])
    assert np.isnan(truth.between(Table([one], rules=RULES), "tpot").low).all()


def phases(at: float, took: float, late: float = 0.0, heal_late: float = 0.0) -> dict[str, str]:
    """Of one request the phases, from 16 s to 20 s is the fault's, to which it belongs surely or perhaps."""
    windows = [Window(name="fault", kind="phase", start=16.0, end=20.0)]
    table = Table([known(request(at, took=took, ttft=took / 2), late)], rules=RULES)
    found = {
        name: truth.perhaps_in_phase(table, name, windows, heal_late) for name in ("baseline", "fault", "recovery")
    }
    said = {name: "surely" if each.sure[0] else "perhaps" if each.possible[0] else "" for name, each in found.items()}
    return {name: word for name, word in said.items() if word}


@pytest.mark.parametrize(
    ("at", "took", "late", "heal_late", "expected"),
    [
        (15.0, 0.5, 0.0, 0.0, {"baseline": "surely"}),
        (15.0, 1.0, 0.0, 0.0, {"fault": "surely"}),
        (15.0, 1.25, 0.25, 0.0, {"fault": "surely"}),
        (15.0, 1.25, 0.5, 0.0, {"baseline": "perhaps", "fault": "perhaps"}),
        (15.0, 0.5, 0.25, 0.0, {"baseline": "surely"}),
        (20.0, 0.5, 0.0, 0.0, {"recovery": "surely"}),
        (19.75, 0.5, 0.0, 0.0, {"fault": "surely"}),
        (19.75, 0.5, 0.0, 0.25, {"fault": "perhaps", "recovery": "perhaps"}),
        (19.5, 0.25, 0.0, 0.25, {"fault": "surely"}),
        (20.0, 0.5, 0.0, 0.25, {"recovery": "surely"}),
        (19.75, 0.5, 0.5, 0.0, {"fault": "surely"}),
    ],
)
def test_to_which_phase_a_request_belongs(
    at: float, took: float, late: float, heal_late: float, expected: dict[str, str]
) -> None:
    assert phases(at, took, late, heal_late) == expected


def test_without_a_fault_all_of_the_load_is_baseline() -> None:
    table = Table([known(request(AT))], rules=RULES)
    found = {name: truth.perhaps_in_phase(table, name, [], 0.0) for name in ("baseline", "fault", "recovery")}
    assert [each.sure.tolist() for each in found.values()] == [[True], [False], [False]]
    assert all(each.certain for each in found.values())


def test_the_soonest_end_takes_off_late_reading_and_late_sending_but_never_reaches_before_the_due_time() -> None:
    def soonest(lag: float, connect: float, end: float) -> float:
        one = ended("ok", 1.0, end=end, connect=connect, lag=lag)
        return float(truth.soonest(Table([one], rules=RULES))[0]) - AT

    assert soonest(0.0, 0.0, 0.0) == 1.0
    assert soonest(0.0, 0.25, 0.125) == 0.625
    assert soonest(0.5, 0.25, 0.125) == 0.125
    assert soonest(0.5, 0.5, 1.0) == -0.5
    assert soonest(-0.5, 0.0, 0.25) == 0.75, "what was sent too soon does not end later for it"


# time to recover


def recoveries(requests: list[Request], *, healed: float | None = 20.0, late: float = 0.0, second: float = 0.0) -> str:
    """The figure of a fault that strikes at 16 s: `measured (low to high)`, in seconds; and of a second one too."""
    life = [FaultEvent(t=16.0, fault="pod.kill", index=0, state=state) for state in ("started", "injected", "proven")]
    if healed is not None:
        life.append(FaultEvent(t=healed, fault="pod.kill", index=0, state="healed", uncertainty=late))
    if second:
        states = ("started", "injected", "proven", "healed")
        life += [FaultEvent(t=second, fault="pod.kill", index=1, state=state) for state in states]
    rec = metrics.record(history(requests=requests, faults=life), rules=RULES)
    found = recovery.recovery(rec)
    return f"{found.value} ({float(found.low)} to {float(found.high)})"


def bad(at: float, took: float = 0.5, **more: float) -> Request:
    return known(request(at, "http_error", took=took), more.get("late", 0.0))


def good(at: float, took: float = 0.5, late: float = 0.0, sent: float | None = None) -> Request:
    one = known(request(at, took=took, ttft=0.125), late)
    return (
        one
        if sent is None
        else one.model_copy(update={"sent": sent, "t": sent + took, "first": sent + 0.125, "last": sent + took})
    )


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        # bad ones that ended as it struck are its own, those that ended before are not
        ([bad(15.0, took=1.0), good(17.0)], "1.5 (1.5 to 1.5)"),
        ([bad(15.0, took=0.75), good(17.0)], "0 (0.0 to 0.0)"),
        # recovered is who asked after the last bad one and was answered first
        ([bad(16.0), good(17.0, took=2.0), good(17.5)], "2.0 (2.0 to 2.0)"),
        ([bad(17.0), good(17.0), good(18.0)], "2.5 (2.5 to 2.5)"),
        ([bad(16.0), good(16.5), bad(18.0), good(19.0)], "3.5 (3.5 to 3.5)"),
        ([bad(18.0), bad(16.0), good(19.0)], "3.5 (3.5 to 3.5)"),
        ([bad(17.5)], "inf (1.5 to inf)"),
        # late reading
        ([bad(16.0), good(17.0, late=0.25)], "1.5 (1.25 to 1.5)"),
        ([bad(15.0, took=1.25, late=0.5), good(17.0)], "1.5 (0.0 to 1.5)"),
        ([bad(15.0, took=1.25, late=0.25), good(17.0)], "1.5 (1.5 to 1.5)"),
        # late sending: by more than a quarter of a second, of what was due after it struck
        ([good(16.5, sent=16.75), good(18.0)], "0 (0.0 to 0.0)"),
        ([good(16.5, sent=17.0), good(18.0)], "0 (0.0 to 2.5)"),
        ([good(16.0, sent=16.5), good(18.0)], "0 (0.0 to 2.5)"),
        ([good(15.75, sent=16.5), good(18.0)], "0 (0.0 to 0.0)"),
        # a chance to hurt: a request that was due while it lasted
        ([good(15.0), good(16.0), good(21.0)], "0 (0.0 to 0.0)"),
        ([good(15.0), good(20.0), good(21.0)], "0 (0.0 to 0.0)"),
        ([good(15.0), good(20.25)], "None (0.0 to inf)"),
        ([good(15.0), good(15.75)], "None (0.0 to inf)"),
        ([], "None (0.0 to inf)"),
    ],
)
def test_how_long_a_fault_kept_users_from_answers(requests: list[Request], expected: str) -> None:
    assert recoveries(requests).replace("0.0 (", "0 (", 1) == expected


def test_a_heal_that_was_seen_late_gives_no_chance_to_hurt() -> None:
    assert recoveries([good(15.0), good(19.75)], late=0.5).startswith("None")
    assert recoveries([good(15.0), good(19.5)], late=0.5).startswith("0.0")
    assert recoveries([good(15.0), good(30.0)], healed=None).startswith("0.0"), "it lasted until the end"


def test_what_was_due_before_a_fault_was_injected_is_no_chance_to_hurt() -> None:
    def told(at: float) -> str:
        life = [FaultEvent(t=16.0, fault="pod.kill", index=0, state="started")]
        life += [FaultEvent(t=18.0, fault="pod.kill", index=0, state=state) for state in ("injected", "proven")]
        life.append(FaultEvent(t=20.0, fault="pod.kill", index=0, state="healed"))
        rec = metrics.record(history(requests=[good(15.0), good(at), good(21.0)], faults=life), rules=RULES)
        return str(recovery.recovery(rec).value)

    assert told(17.0) == "None"
    assert told(18.0) == "0.0"


def test_the_second_of_two_faults_takes_what_is_due_from_its_start_on() -> None:
    requests = [bad(16.0), good(17.0), good(20.0), bad(21.0), good(24.0)]
    assert recoveries(requests, second=21.0) == "3.5 (3.5 to 3.5)"
    assert recoveries(requests, second=21.5) == "8.5 (8.5 to 8.5)", "what was due before is the first one's"


def test_why_a_figure_has_no_value_names_the_fault_and_its_time() -> None:
    life = [
        FaultEvent(t=16.0 + step / 4, fault="pod.kill", index=0, state=state)
        for step, state in enumerate(("started", "injected", "proven"))
    ]
    rec = metrics.record(history(requests=[good(12.0)], faults=life), rules=RULES)
    assert recovery.recovery(rec).why == (
        "no request was due while pod.kill (from 16.25 s to the end) lasted, so nobody could be hurt"
    )
    life.append(FaultEvent(t=18.0, fault="pod.kill", index=0, state="healed"))
    rec = metrics.record(history(requests=[good(12.0)], faults=life), rules=RULES)
    assert "(from 16.25 s to 18.00 s)" in recovery.recovery(rec).why
    assert not np.isfinite(float(recovery.recovery(rec).high))
