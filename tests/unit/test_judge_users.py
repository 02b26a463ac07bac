"""Loads of users, judged by what the client counted of them: how many came, and whom they asked."""

from __future__ import annotations

from typing import Any

import pytest
from test_judge import GOOD, check, history, scenario

from sandbox.judge import weigh as judge
from sandbox.spec.results import Results
from sandbox.timeline import Event, LoadFinished, LoadStarted

OWN = {"locustfile": "own.py", "arrivals": {"process": "closed", "users": 50}, "duration": "30s"}
CLOSED = {"profile": "chat-short", "arrivals": {"process": "closed", "users": 50}, "duration": "30s"}
URL = "http://127.0.0.1:1"
SLO = {"good_request_fraction": ["rate>=0.99"]}


def judged(load: dict[str, Any], aborted: str = "", **told: Any) -> Results:
    events: list[Event] = []
    for event in history(spec=scenario(load=load, faults=[], slo=SLO), faults=[], aborted=aborted):
        if isinstance(event, LoadFinished):
            events.append(event.model_copy(update=told))
        elif isinstance(event, LoadStarted):
            events.append(event.model_copy(update={"url": URL}))
        else:
            events.append(event)
    return judge(events)


def ids(results: Results) -> set[str]:
    return {each.id for each in results.checks}


@pytest.mark.parametrize("load", [OWN, CLOSED], ids=["locustfile", "planned"])
@pytest.mark.parametrize(
    ("came", "asked", "status"),
    [(3, 50, "invalid"), (47, 50, "invalid"), (48, 50, "pass"), (50, 50, "pass"), (95, 100, "pass"), (1, 2, "invalid"),
     (0, 1, "invalid"), (60, 50, "pass"), (1899, 2000, "invalid"), (1900, 2000, "pass")],
)  # fmt: skip
def test_a_load_of_users_that_hardly_came_is_invalid(load: dict[str, Any], came: int, asked: int, status: str) -> None:
    results = judged(load, users=came, users_asked=asked)
    assert results.verdict == status
    found = check(results, "validity/users")
    assert (found.status, found.observed) == (status, f"{came} of {asked} users began what they were to do")
    if status == "invalid":
        assert f"no load of {asked}" in found.reason


@pytest.mark.parametrize(
    ("targets", "status", "said"),
    [
        ({URL: 300}, "pass", "300 of 300 requests went there"),
        ({URL: 200, "http://auth:80": 100}, "pass", "200 of 300 requests went there, 100 to http://auth:80"),
        ({URL: 150, "http://auth:80": 150}, "pass", "150 of 300 requests went there, 150 to http://auth:80"),
        ({URL: 149, "http://auth:80": 151}, "invalid", "149 of 300 requests went there, 151 to http://auth:80"),
        ({URL: 1, "http://auth:80": 299}, "invalid", "1 of 300 requests went there, 299 to http://auth:80"),
        ({"http://a:1": 100, "http://b:2": 200}, "invalid", "0 of 300 requests went there, 200 to http://b:2, 100 to"),
        ({"": 300}, "invalid", "0 of 300 requests went there, 300 to nobody knows where"),
    ],
)
def test_a_locustfile_that_asks_others_is_no_load_of_the_server(
    targets: dict[str, int], status: str, said: str
) -> None:
    results = judged(OWN, targets=targets)
    assert results.verdict == status
    found = check(results, "validity/target")
    assert found.status == status
    assert found.observed.startswith(said)
    if status == "invalid":
        assert all((server or "nobody knows") in found.reason for server in targets if server != URL)


def test_what_a_timeline_does_not_tell_is_not_asked_of_it() -> None:
    assert len(GOOD) == 300
    assert ids(judged(OWN)) & {"validity/users", "validity/target"} == set()
    assert judged(OWN).verdict == "pass"
    assert "validity/target" not in ids(judged(CLOSED, users=50, users_asked=50, targets={}))


def test_a_load_that_was_ended_early_is_not_asked_who_had_come() -> None:
    results = judged(OWN, aborted="asked to end (SIGTERM)", users=3, users_asked=50)
    assert "validity/users" not in ids(results)
    assert results.verdict == "invalid"
