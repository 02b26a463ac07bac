"""The load offered: a condition of its own, whatever the figures say."""

from __future__ import annotations

from typing import Any

import pytest
from test_intervals import answers, known
from test_judge import LOAD_AT, SCENARIO, check, history, request, scenario

from sandbox.judge import weigh as judge
from sandbox.spec.results import Results
from sandbox.timeline import ClientBeat, Event, LoadStarted, Request

EASY = {"ttft": ["p(50)<=10s"]}


def judged(requests: list[Request], slo: dict[str, Any] = EASY, **load: Any) -> Results:
    spec = scenario(faults=[], slo=slo, load={**SCENARIO["load"], **load})
    return judge(history(spec=spec, requests=requests, faults=[]))


def stopped(seconds: float, begin: float = LOAD_AT + 11.0, every: float = 0.1) -> list[Request]:
    """A client that stood still for so long: it sent late, and read late."""
    found = []
    for n in range(round(30 / every)):
        due = LOAD_AT + n * every
        sent = begin + seconds if begin <= due < begin + seconds else due
        found.append(known(request(sent)).model_copy(update={"scheduled": due}))
    return found


def test_a_client_that_stood_still_for_three_seconds_is_invalid_and_never_a_pass() -> None:
    results = judged(stopped(3.0))
    found = check(results, "validity/offered")
    assert (results.verdict, found.status) == ("invalid", "invalid")
    assert "20.0 s to 25.0 s" in " ".join(found.evidence)
    assert "the load was not offered" in found.reason


def test_what_such_a_client_saw_broken_is_not_proven_either() -> None:
    broken = [each.model_copy(update={"outcome": "truncated"}) for each in stopped(3.0)]
    results = judged(broken, {"ok": ["rate>=0.9"]})
    assert check(results, "slo/ok").status == "invalid"
    assert (
        judged([each.model_copy(update={"sent": each.scheduled}) for each in broken], {"ok": ["rate>=0.9"]}).verdict
        == "fail"
    )


def test_one_request_that_does_not_say_how_late_it_was_read_is_no_way_around() -> None:
    mixed = stopped(3.0)
    mixed[0] = mixed[0].model_copy(update={"end_uncertainty": None})
    results = judged(mixed)
    assert check(results, "validity/offered").status == "invalid"
    assert check(results, "validity/sched_lag").status == "invalid", "and the others are asked as well"


@pytest.mark.parametrize(("late", "status"), [(0, "pass"), (1, "pass"), (2, "pass"), (3, "invalid")])
def test_of_fifty_due_in_five_seconds_two_may_begin_late(late: int, status: str) -> None:
    requests = [
        each.model_copy(update={"sent": each.scheduled + 0.3}) if 60 <= n < 60 + late else each
        for n, each in enumerate(answers())
    ]
    assert check(judged(requests), "validity/offered").status == status


@pytest.mark.parametrize(("late", "status"), [(1, "pass"), (2, "invalid")])
def test_of_a_few_one_may_always_be_missing(late: int, status: str) -> None:
    requests = [known(request(LOAD_AT + n * 2.0)) for n in range(15)]
    requests[4:6] = [
        each.model_copy(update={"sent": each.scheduled + (0.3 if n < late else 0)})
        for n, each in enumerate(requests[4:6])
    ]
    assert check(judged(requests), "validity/offered").status == status


def test_a_quarter_of_a_second_late_is_in_time() -> None:
    late = [each.model_copy(update={"sent": each.scheduled + 0.24}) for each in answers()]
    assert check(judged(late), "validity/offered").status == "pass"


@pytest.mark.parametrize(("late", "status"), [(0.25, "pass"), (0.2500001, "invalid")])
def test_in_time_is_a_quarter_of_a_second_and_no_more(late: float, status: str) -> None:
    requests = [known(request(LOAD_AT + n * 2.0)) for n in range(15)]
    requests = [each.model_copy(update={"sent": each.scheduled + late}) for each in requests]
    found = check(judged(requests), "validity/offered")
    assert found.status == status
    assert bool(found.reason) == bool(found.evidence) == (status == "invalid")


def test_of_forty_due_in_five_seconds_two_may_begin_late() -> None:
    requests = [known(request(LOAD_AT + n / 8)) for n in range(240)]
    requests[80:82] = [each.model_copy(update={"sent": each.scheduled + 0.3}) for each in requests[80:82]]
    found = check(judged(requests), "validity/offered")
    assert (found.status, found.observed) == ("pass", "238 of 240 due requests began in time")


def test_what_was_dropped_is_an_outcome_and_no_load_that_was_not_offered() -> None:
    dropped = [Request(t=LOAD_AT + 20, scheduled=LOAD_AT + 20, sent=None, outcome="dropped") for _ in range(100)]
    assert check(judged([*answers(), *dropped]), "validity/offered").status == "pass"


@pytest.mark.parametrize(("late", "status"), [(0.01, "pass"), (0.019, "pass"), (0.021, "invalid"), (3.0, "invalid")])
def test_of_the_time_that_users_wait_at_most_two_in_a_hundred_are_the_clients(late: float, status: str) -> None:
    """Half a second each: ten milliseconds are how often an idle client looks, and ten more are two in a hundred."""
    users = [known(request(LOAD_AT + n / 10), late) for n in range(300)]
    results = judged(users, arrivals={"process": "closed", "users": 5})
    assert check(results, "validity/offered").status == status


@pytest.mark.parametrize(("late", "status"), [(0.24, "pass"), (0.25, "pass"), (0.3, "invalid")])
def test_where_users_waited_for_little_a_quarter_of_a_second_may_be_the_clients(late: float, status: str) -> None:
    users = [known(request(LOAD_AT + n * 2.0)) for n in range(15)]
    users[4] = users[4].model_copy(update={"sent": users[4].scheduled + late})
    results = judged(users, arrivals={"process": "closed", "users": 1})
    assert check(results, "validity/offered").status == status


def test_of_a_connection_that_never_came_nobody_knows_how_late_it_was_noticed() -> None:
    users = [known(request(LOAD_AT + n / 10)) for n in range(300)]
    gone = [Request(t=LOAD_AT + n + 0.5, scheduled=LOAD_AT + n, sent=None, outcome="connect_error") for n in range(3)]
    results = judged([*users, *gone], arrivals={"process": "closed", "users": 5})
    found = check(results, "validity/offered")
    assert (found.status, found.observed) == ("pass", "0.00% of the users' time was the client's own")


def test_where_no_user_waited_the_client_kept_nobody_waiting() -> None:
    users = [known(request(LOAD_AT + n / 10, took=0.0, ttft=0.0)) for n in range(300)]
    found = check(judged(users, arrivals={"process": "closed", "users": 5}), "validity/offered")
    assert (found.status, found.observed) == ("pass", "nobody waited")


def test_a_client_that_is_slow_only_while_its_last_users_end_has_offered_the_load() -> None:
    users = [known(request(LOAD_AT + n / 10)) for n in range(300)]
    tail = [known(request(LOAD_AT + 29.6 + n / 100), 0.09) for n in range(5)]
    results = judged([*users, *tail], arrivals={"process": "closed", "users": 5})
    assert check(results, "validity/offered").status == "pass"


def beats(**more: Any) -> list[ClientBeat]:
    return [ClientBeat(t=LOAD_AT + n, lag=[0.001], beats=100, cpu=0.2, in_flight=3, **more) for n in range(1, 31)]


def test_one_token_later_than_the_client_says_shows_that_no_bound_is_to_be_believed() -> None:
    spec = scenario(faults=[], slo=EASY)
    fine = judge(history(spec=spec, requests=answers(), faults=[], extra=[*beats(calibrated=200, checked=190)]))
    assert check(fine, "validity/bounds").status == "pass"
    one = [*beats(calibrated=200, checked=190), *beats(calibrated=1, checked=1, uncovered=1, uncovered_by=0.02)[:1]]
    found = check(judge(history(spec=spec, requests=answers(), faults=[], extra=[*one])), "validity/bounds")
    assert found.status == "invalid"
    assert "20.0 ms" in found.reason


NOT_CALIBRATED = "the client was to be calibrated, and wrote nothing of it; see load.log beside the timeline"
WROTE_NOTHING = "the load client wrote nothing of itself; see load.log beside the timeline"
NOT_BORNE_OUT = (
    "30 tokens of known send time were read up to 1000.0 ms later than the client says: "
    "its bounds are not to be believed"
)


def bounds(asked: dict[str, Any], told: list[ClientBeat]) -> tuple[str, str, str]:
    """Of a load that was asked for so, with these beats and no others: status, what was observed, and why."""
    events: list[Event] = []
    for event in history(spec=scenario(faults=[], slo=EASY), requests=answers(), faults=[], extra=[*told]):
        if isinstance(event, LoadStarted):
            events.append(event.model_copy(update={"asked": asked}))
        elif not isinstance(event, ClientBeat) or event in told:
            events.append(event)
    found = check(judge(events), "validity/bounds")
    return found.status, found.observed, found.reason


@pytest.mark.parametrize(
    ("asked", "told", "expected"),
    [
        ({}, beats(), ("pass", "never calibrated", "")),
        ({"calibrated": False}, beats(), ("pass", "never calibrated", "")),
        ({"calibrated": True}, beats(calibrated=2, checked=2), ("pass", "0 of 60 tokens of known send time were", "")),
        (
            {"calibrated": True}, beats(),
            ("invalid", "never calibrated", NOT_CALIBRATED),
        ),
        (
            {}, beats(calibrated=10, checked=10, uncovered=1, uncovered_by=1.0),
            (
                "invalid", "30 of 300 tokens of known send time were",
                NOT_BORNE_OUT,
            ),
        ),
        (
            {}, [],
            ("invalid", "never calibrated", WROTE_NOTHING),
        ),
    ],
    ids=["not asked for", "asked for none", "borne out", "nothing written", "not borne out", "no beat"],
)  # fmt: skip
def test_what_the_client_says_of_itself_is_borne_out_or_not_believed(
    asked: dict[str, Any], told: list[ClientBeat], expected: tuple[str, str, str]
) -> None:
    assert bounds(asked, told) == expected
