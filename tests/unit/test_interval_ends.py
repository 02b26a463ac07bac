"""The bounds that figures are put together from: all lower ones, all upper ones, what may count or not at the ends."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from test_intervals import known
from test_judge import LOAD_AT, history, request

from sandbox import metrics
from sandbox.metrics import Rules, interval
from sandbox.metrics.interval import Seconds
from sandbox.metrics.table import Table
from sandbox.metrics.truth import Perhaps
from sandbox.spec.slo import parse_expression, parse_selector
from sandbox.timeline import FaultEvent, Request

RULES = Rules(timeout=3.0)
QUICK = known(request(LOAD_AT, ttft=0.1), 0.04)
SLOW = known(request(LOAD_AT + 1, ttft=0.3), 0.1)
# one that the client gave up, after its connection was noticed late: it may have been an answer
GIVEN_UP = known(request(LOAD_AT + 2, "timeout", took=3.0), connect_uncertainty=0.5)
LOST = known(request(LOAD_AT + 3, "http_error"))


def ends(requests: list[Request], maybe: set[int], metric: str = "ttft") -> tuple[list[float], list[float]]:
    """Of requests that surely count, but for those at the places `maybe`."""
    sure = np.array([place not in maybe for place in range(len(requests))])
    lower, upper = interval.ends(Table(requests, rules=RULES), metric, Perhaps(sure, np.ones(len(sure), dtype=bool)))
    return [round(each, 9) for each in lower], [round(each, 9) for each in upper]


@pytest.mark.parametrize(
    ("requests", "maybe", "lower", "upper"),
    [
        ([QUICK, SLOW], set(), [0.06, 0.2], [0.1, 0.3]),
        ([QUICK, SLOW], {1}, [0.06, 0.06], [0.1, 0.3]),
        ([QUICK, SLOW], {0}, [0.2, 0.06], [0.3, 0.3]),
        ([QUICK, SLOW], {0, 1}, [0.06, 0.06], [0.3, 0.3]),
        ([QUICK, LOST], {1}, [0.06], [0.1]),
        ([LOST], set(), [], []),
        # of what nobody saw nothing is known but that it took no longer than a request may
        ([QUICK, GIVEN_UP], set(), [0.06, 0.0], [0.1, 3.0]),
        ([SLOW, GIVEN_UP], {0}, [0.0, 0.0], [3.0, 3.0]),
        ([GIVEN_UP, GIVEN_UP], {0}, [0.0, 0.0], [3.0, 3.0]),
    ],
)
def test_what_may_count_or_not_stands_at_the_least_and_at_the_greatest(
    requests: list[Request], maybe: set[int], lower: list[float], upper: list[float]
) -> None:
    assert ends(requests, maybe) == (lower, upper)


def test_a_time_longer_than_a_request_may_take_is_still_the_greatest() -> None:
    late = known(request(LOAD_AT, ttft=4.0, took=5.0)).model_copy(update={"sent": LOAD_AT + 2.5})
    assert ends([late, GIVEN_UP], set(), "ttft_intended") == ([1.5, 0.0], [4.0, 4.0])


def test_what_nobody_saw_took_no_longer_than_a_request_may_however_short_that_is() -> None:
    table = Table([GIVEN_UP.model_copy(update={"t": LOAD_AT + 2.25})], rules=Rules(timeout=0.25))
    one = np.ones(1, dtype=bool)
    lower, upper = interval.ends(table, "ttft", Perhaps(one, one))
    assert (lower.tolist(), upper.tolist()) == ([0.0], [0.25])


def test_the_clients_own_delay_counts_whatever_became_of_the_request() -> None:
    requests = [
        each.model_copy(update={"scheduled": (each.sent or 0) - lag})
        for each, lag in ((QUICK, 0.01), (LOST, 0.02), (GIVEN_UP, 0.03))
    ]
    assert ends(requests, set(), "sched_lag") == ([0.01, 0.02, 0.03], [0.01, 0.02, 0.03])
    assert ends(requests, {2}, "sched_lag") == ([0.01, 0.02, 0.01], [0.01, 0.02, 0.03])


def test_gaps_of_a_request_that_may_count_or_not_do_so_one_by_one() -> None:
    first = known(request(LOAD_AT), gaps=[0.1] * 4)
    second = known(request(LOAD_AT + 1), 0.01, gaps=[0.2, 0.3, 0.2, 0.2])
    assert ends([first, second], {1}, "icl") == ([0.1] * 8, [0.1] * 4 + [0.31] * 4)
    assert ends([first, second], {0}, "icl") == (
        [0.19, 0.29, 0.19, 0.19] + [0.1] * 4,
        [0.21, 0.31, 0.21, 0.21] + [0.31] * 4,
    )


def test_nobody_knows_how_many_gaps_an_answer_would_have_had_that_was_given_up() -> None:
    assert ends([QUICK, GIVEN_UP], set(), "icl") == ([0.0], [1e9])


@pytest.mark.parametrize(
    ("maybe", "gone", "count"), [(set(), [], (2, 2, 2)), ({1}, [], (1, 2, 1)), (set(), [GIVEN_UP], (2, 3, 2))]
)
def test_a_count_of_times_reaches_from_those_that_surely_count_to_all_that_may(
    maybe: set[int], gone: list[Request], count: tuple[int, int, int]
) -> None:
    requests = [QUICK, SLOW, *gone]
    rec = metrics.record(history(requests=requests, faults=[]), rules=RULES)
    every = np.ones(len(requests), dtype=bool)
    may = Perhaps(np.array([place not in maybe for place in range(len(requests))]), every)
    seen = interval.trend(rec, "ttft", every, may, parse_expression("count>=1", "ttft"))
    assert (seen.low, seen.high, seen.samples) == count


def test_what_is_certain_of_every_request_is_no_interval() -> None:
    requests = [request(LOAD_AT), request(LOAD_AT + 1, ttft=0.3)]
    rec = metrics.record(history(requests=requests, faults=[]), rules=RULES)
    every = np.ones(2, dtype=bool)
    seen = interval.trend(rec, "ttft", every, Perhaps(every, every), parse_expression("max<=1s", "ttft"))
    assert (seen.value, seen.low, seen.high, seen.why) == (pytest.approx(0.3), seen.value, seen.value, "")


# shares and counts


def perhaps(sure: str, possible: str) -> Perhaps:
    return Perhaps(*(np.array([each == "1" for each in text]) for text in (sure, possible)))


# five rows of whom some surely belong and others may; it is true of some, perhaps of others: then the share as a
# fraction and the count, each at the least and at the greatest, and the ones and zeros of the share at both ends
SHARES = {
    "true of one that may belong": (("11100", "11111"), ("11011", "11011"), (2 / 3, 4 / 5), (2, 4)),
    "true of no other": (("11100", "11111"), ("11000", "11000"), (2 / 5, 2 / 3), (2, 2)),
    "perhaps true of one that may belong": (("11100", "11111"), ("10000", "11010"), (1 / 5, 3 / 4), (1, 3)),
    "perhaps true of one that belongs": (("11000", "11000"), ("10111", "11111"), (1 / 2, 1.0), (1, 2)),
    "none surely belongs, it is true of all": (("00000", "00011"), ("00011", "00011"), (0.0, 1.0), (0, 2)),
    "none surely belongs, it is true of none": (("00000", "00011"), ("00000", "00000"), (0.0, 1.0), (0, 0)),
}
ONES = (
    ([1, 1, 0], [1, 1, 0, 1, 1]),
    ([1, 1, 0, 0, 0], [1, 1, 0]),
    ([1, 0, 0, 0, 0], [1, 1, 0, 1]),
    ([1, 0], [1, 1]),
    ([], [1, 1]),
    ([0, 0], []),
)
Masks = tuple[str, str]


@pytest.mark.parametrize(("masks", "ones"), list(zip(SHARES.values(), ONES, strict=True)), ids=SHARES)
def test_a_share_is_least_where_the_bad_ones_belong_and_greatest_where_the_good_ones_do(
    masks: tuple[Masks, Masks, tuple[float, float], tuple[int, int]], ones: tuple[list[float], list[float]]
) -> None:
    chosen, so, share, count = masks
    may, true = perhaps(*chosen), perhaps(*so)
    seen = interval.share(may.possible, may, true.possible, true)
    assert (float(seen.low), float(seen.high)) == pytest.approx(share)
    assert seen.samples == may.sure.sum()
    counted = interval.count(may.possible, may, true.possible, true)
    assert (counted.low, counted.high, counted.samples) == (*count, may.possible.sum())
    assert interval.ones(may, true) == ones


# rates


def test_a_rate_is_least_over_the_longest_time_and_greatest_over_the_shortest() -> None:
    rec = metrics.record(history(requests=[QUICK, SLOW], faults=[]), rules=RULES)
    every = np.ones(2, dtype=bool)
    may = perhaps("10", "11")
    seen = interval.pace(rec, "request_rate", every, may, Seconds(4.0, 2.0, 5.0))
    assert (seen.value, seen.low, seen.high, seen.samples) == (Fraction(1, 2), Fraction(1, 5), 1, 2)
    tokens = interval.pace(rec, "token_rate", every, may, Seconds(4.0, 2.0, 5.0))
    assert (tokens.value, tokens.low, tokens.high) == (2.5, 1.0, 5.0)
    assert (seen.why, tokens.why) == ("", "")
    unheard = metrics.record(history(requests=[QUICK, SLOW.model_copy(update={"tokens": 50})], faults=[]))
    doubted = interval.pace(unheard, "token_rate", every, perhaps("11", "11"), Seconds(4.0, 2.0, 5.0))
    assert "of some answers nothing but the server's word" in doubted.why
    assert not interval.pace(unheard, "request_rate", every, perhaps("11", "11"), Seconds(4.0, 2.0, 5.0)).why
    quick = interval.pace(rec, "request_rate", every, may, Seconds(0.5, 0.25, 0.5))
    assert (quick.value, quick.low, quick.high) == (4, 2, 8)
    assert interval.pace(rec, "request_rate", every, may, Seconds(4.0, 0.0, 5.0)).high == math.inf
    assert interval.pace(rec, "request_rate", every, may, Seconds(0.0, 0.0, 5.0)).value is None
    assert interval.pace(rec, "request_rate", ~every, may, Seconds(4.0, 2.0, 5.0)).value is None


def test_of_an_answer_that_was_given_up_nobody_knows_how_much_it_would_have_said() -> None:
    rec = metrics.record(history(requests=[QUICK, GIVEN_UP], faults=[]), rules=RULES)
    every = np.ones(2, dtype=bool)
    seen = interval.pace(rec, "token_rate", every, perhaps("11", "11"), Seconds(4.0, 2.0, 5.0))
    assert (seen.value, seen.low, seen.high, seen.samples) == (1.25, 1.0, math.inf, 2)
    answers = interval.pace(rec, "request_rate", every, perhaps("11", "11"), Seconds(4.0, 2.0, 5.0))
    assert (answers.value, answers.low, answers.high) == (Fraction(1, 4), Fraction(1, 5), 1)


# how long a phase was


def lasted(selector: str, late: float, heal_late: float) -> tuple[float, float, float]:
    """Of ten answers at one a second from 10 s on, the last of which was read so late; asked for 5 s of load."""
    requests = [known(request(LOAD_AT + n), late) for n in range(10)]
    life = [
        FaultEvent(t=12.0, fault="pod.kill", index=0, state="started"),
        FaultEvent(t=12.0, fault="pod.kill", index=0, state="injected"),
        FaultEvent(t=12.5, fault="pod.kill", index=0, state="proven"),
        FaultEvent(t=16.0, fault="pod.kill", index=0, state="healed", uncertainty=heal_late),
    ]
    rec = metrics.record(history(requests=requests, faults=life), rules=RULES)
    found = metrics._seconds(rec, parse_selector(selector).tags.get("phase"))
    return tuple(round(each, 6) for each in (found.measured, found.least, found.most))  # type: ignore[return-value]


@pytest.mark.parametrize("late", [0.0, 0.2])
@pytest.mark.parametrize("heal_late", [0.0, 0.5])
def test_a_phase_is_shorter_by_what_was_read_late_at_its_end_and_by_a_heal_that_was_seen_late(
    late: float, heal_late: float
) -> None:
    whole, before, fault, after = (
        lasted(f"request_rate{phase}", late, heal_late)
        for phase in ("", "{phase:baseline}", "{phase:fault}", "{phase:recovery}")
    )
    at_end = whole[0] - (9.5 - late)  # the load's end was noticed long after its last answer
    assert whole == pytest.approx((whole[0], whole[0] - at_end, whole[0]))
    assert before == (2.0, 2.0, 2.0)
    assert fault == pytest.approx((4.0, 4.0 - heal_late, 4.0))
    assert after == pytest.approx((after[0], after[0] - at_end, after[0] + heal_late))
