"""Requests without a good answer: every selection that is judged is asked for them, unless that share is promised."""

from __future__ import annotations

from typing import Any

import pytest
from test_judge import LOAD_AT, check, fault, history, request, scenario

from sandbox.judge import weigh as judge
from sandbox.spec.results import Check, Results
from sandbox.timeline import Request

LIFE = fault("started", "injected", "proven", "healed", at=20.0)  # heals at 23
TENANTS = {
    "mix": [{"profile": "chat-short", "tenant": "a"}, {"profile": "chat-tiny", "tenant": "b"}],
    "arrivals": {"process": "constant", "rate": 10},
    "duration": "30s",
}
MANY_LOST = 201


def load(bad: int, total: int = 246, outcome: str = "http_error", **more: Any) -> list[Request]:
    """So many requests in a row of thirty seconds, the first of which are bad."""
    return [
        request(LOAD_AT + n * 30 / total, outcome if n < bad else "ok", **(more if n >= bad else {}))
        for n in range(total)
    ]


def judged(slo: dict[str, Any], requests: list[Request], *, faults: bool = False, **keys: Any) -> Results:
    spec = scenario(slo=slo, **({} if faults else {"faults": []}), **keys)
    return judge(history(spec=spec, requests=requests, faults=LIFE if faults else []))


def guards(results: Results) -> dict[str, str]:
    """Status of each check of the guard, by what follows its name."""
    name = "validity/answered"
    return {each.id.removeprefix(name): each.status for each in results.checks if each.id.startswith(name)}


def guard(results: Results, of: str = "") -> Check:
    (found,) = [each for each in results.checks if each.id == f"validity/answered{of}"]
    return found


@pytest.mark.parametrize(
    "slo",
    [
        {"ttft": ["p(50)<=1s"]},
        {"ttft": ["p(50)<=1s"], "truncated": ["count==0"]},
        {"truncated": ["count==0"]},
        {"truncated": ["rate<=0.01"], "timeout": ["count<=3"]},
        {"token_rate": ["value>=0.1"]},
        {"request_rate": ["value>=0.1"]},
        {"requests": ["count>=1"]},
        {"client_cpu": ["value<=0.9"]},
        {"sched_lag": ["p(50)<=1s"]},
        {"ok": ["count>=1"]},
        {"http_error": ["count>=1"]},
        {"http_error": ["count<=1000"], "ttft": ["p(50)<=1s"]},
        {"http_error": ["rate<=1"]},
        {"good_request_fraction": ["rate>=0"]},
        {"good_request_fraction": ["rate<=0.5"]},
        {"ok": ["rate>=0"]},
    ],
    ids=str,
)
def test_what_is_named_does_not_hide_what_is_not(slo: dict[str, Any]) -> None:
    results = judged(slo, load(MANY_LOST))
    assert results.verdict == "invalid", results.headline
    broken = {each.id for each in results.checks if each.status != "pass"}
    assert {each for each in broken if not each.startswith("validity/scenario")} == {"validity/answered"}
    found = guard(results)
    assert found.observed == "201 of 246 not good: 201 http_error"
    assert 'write the share that has to be good, such as `good_request_fraction: ["rate>=0.95"]`' in found.reason
    assert guards(judged(slo, load(0))) == {"": "pass"}


@pytest.mark.parametrize(
    ("bad", "total", "outcome"), [(201, 246, "http_error"), (210, 246, "dropped"), (98, 99, "timeout")]
)
def test_a_load_that_was_hardly_answered_is_invalid_whatever_became_of_it(bad: int, total: int, outcome: str) -> None:
    for slo in ({"truncated": ["count==0"]}, {"token_rate": ["value>=0.1"]}, {"client_cpu": ["value<=0.9"]}):
        results = judged(slo, load(bad, total, outcome))
        assert results.verdict == "invalid"
        assert guard(results).observed == f"{bad} of {total} not good: {bad} {outcome}"


@pytest.mark.parametrize(
    ("bad", "total", "status"), [(3, 300, "pass"), (4, 300, "invalid"), (1, 100, "pass"), (1, 99, "invalid")]
)
def test_one_in_a_hundred_may_be_bad_and_no_more(bad: int, total: int, status: str) -> None:
    assert guard(judged({"ttft": ["p(50)<=1s"]}, load(bad, total))).status == status


@pytest.mark.parametrize(
    "promise",
    [
        {"good_request_fraction": ["rate>=0.1"]},
        {"good_request_fraction": ["value>0.1"]},
        {"ok": ["rate>=0.1"]},
        {"http_error": ["count<=201"]},
        {"http_error": ["rate<=0.9"]},
        {"http_error": ["rate>=0.5"]},
    ],
    ids=str,
)
def test_a_share_that_is_promised_is_the_promises_to_break(promise: dict[str, Any]) -> None:
    results = judged({"ttft": ["p(50)<=1s"], **promise}, load(MANY_LOST))
    assert results.verdict == "pass", results.headline
    validity = scenario(faults=[], slo={"ttft": ["p(50)<=1s"]}, validity=promise)
    assert judge(history(spec=validity, requests=load(MANY_LOST), faults=[])).verdict == "pass"


def test_a_broken_promise_is_a_failure_and_not_the_guards() -> None:
    results = judged({"good_request_fraction": ["rate>=0.9"]}, load(MANY_LOST))
    assert (results.verdict, guards(results)) == ("fail", {})


def test_a_share_against_an_earlier_run_promises_nothing_for_both_may_be_bad() -> None:
    results = judged({"good_request_fraction": ["rate>=baseline-1%"]}, load(MANY_LOST))
    assert guards(results) == {"": "invalid"}


def test_a_promise_of_one_outcome_covers_no_other() -> None:
    mixed = [request(LOAD_AT + n / 10, "http_error" if n < 50 else "dropped" if n < 54 else "ok") for n in range(300)]
    slo: dict[str, Any] = {"ttft": ["p(50)<=1s"], "http_error": ["rate<=0.2"]}
    results = judged(slo, mixed)
    assert (results.verdict, guard(results).observed) == ("invalid", "4 of 300 not good: 4 dropped")
    assert judged({**slo, "dropped": ["count<=4"]}, mixed).verdict == "pass"


def test_answers_beyond_a_limit_are_not_good_and_a_share_of_ok_does_not_speak_of_them() -> None:
    slow = [request(LOAD_AT + n / 10, ttft=0.3 if n < 10 else 0.1) for n in range(300)]
    limited = {**scenario()["load"], "good": {"ttft": "200ms"}}
    for slo in ({"ttft": ["p(50)<=1s"]}, {"ttft": ["p(50)<=1s"], "ok": ["rate>=0.9"]}):
        results = judged(slo, slow, load=limited)
        assert guard(results).observed == "10 of 300 not good: 10 ok but beyond a limit of `good`"
        assert results.verdict == "invalid"
    assert judged({"good_request_fraction": ["rate>=0.9"]}, slow, load=limited).verdict == "pass"


BROKEN_BEFORE = [request(LOAD_AT + n / 10, "http_error" if n < 40 else "ok") for n in range(300)]
BROKEN_WITHIN = [request(LOAD_AT + n / 10, "http_error" if 100 <= n < 120 else "ok") for n in range(300)]


@pytest.mark.parametrize(
    ("slo", "requests", "invalid"),
    [
        # a promise for another phase
        ({"ttft{phase:baseline}": ["p(50)<=1s"], "good_request_fraction{phase:fault}": ["rate>=0.1"]}, BROKEN_BEFORE,
         {"{phase:baseline}"}),
        # a promise for a part says nothing of the whole, nor one for the whole of a part
        ({"ttft": ["p(50)<=1s"], "good_request_fraction{phase:fault}": ["rate>=0.1"]}, BROKEN_BEFORE, {""}),
        ({"ttft": ["p(50)<=1s"], "good_request_fraction{phase:fault}": ["rate>=0.1"]}, BROKEN_WITHIN, {""}),
        ({"ttft{phase:fault}": ["p(50)<=1s"], "good_request_fraction": ["rate>=0.5"]}, BROKEN_WITHIN,
         {"{phase:fault}"}),
        ({"ttft{phase:fault}": ["p(50)<=1s"], "good_request_fraction": ["rate>=0.5"]}, BROKEN_BEFORE, set()),
        # users are kept waiting by a fault, but that is no leave for what was bad before it
        ({"time_to_recover": ["value<=5s"]}, BROKEN_BEFORE, {""}),
        ({"time_to_recover": ["value<=5s"], "good_request_fraction": ["rate>=0.8"]}, BROKEN_BEFORE, set()),
        # what nobody looks at
        ({"good_request_fraction{phase:fault}": ["rate>=0.1"]}, BROKEN_BEFORE, {"/elsewhere"}),
        ({"good_request_fraction{phase:fault}": ["rate>=0.1"]}, BROKEN_WITHIN, set()),
    ],
)  # fmt: skip
def test_a_promise_counts_for_the_window_that_it_names(
    slo: dict[str, Any], requests: list[Request], invalid: set[str]
) -> None:
    results = judged(slo, requests, faults=True)
    assert {name for name, status in guards(results).items() if status != "pass"} == invalid
    assert results.verdict == ("invalid" if invalid else "pass"), results.headline


def test_a_promise_counts_for_the_tenant_that_it_names() -> None:
    requests = [
        request(LOAD_AT + n / 10, "timeout" if n % 20 == 1 else "ok", tags={"tenant": "ab"[n % 2]}) for n in range(300)
    ]
    one = {"ttft{tenant:a}": ["p(50)<=1s"], "ttft{tenant:b}": ["p(50)<=1s"]}
    assert guards(judged(one, requests, load=TENANTS)) == {"{tenant:a}": "pass", "{tenant:b}": "invalid"}
    other = {**one, "good_request_fraction{tenant:a}": ["rate>=0.9"]}
    assert guards(judged(other, requests, load=TENANTS)) == {"{tenant:b}": "invalid"}
    both = {**other, "good_request_fraction{tenant:b}": ["rate>=0.9"]}
    assert guards(judged(both, requests, load=TENANTS)) == {}
    assert guards(judged({"ttft{tenant:a}": ["p(50)<=1s"]}, requests, load=TENANTS))["/elsewhere"] == "invalid"


@pytest.mark.parametrize(
    ("bound", "covers"),
    [
        ("rate<0.02", True), ("rate<=0.02", True), ("rate<=1", False), ("rate<1", False), ("rate==1", True),
        ("count<=3", True), ("count<4", True), ("count==3", True), ("count<=246", False), ("count<246", False),
        ("count>=3", False), ("rate>=0.01", True), ("rate>=0", False), ("rate<=baseline+2%", False),
    ],
)  # fmt: skip
def test_a_bound_on_an_outcome_covers_it_where_it_could_be_broken(bound: str, covers: bool) -> None:
    results = judged({"ttft": ["p(50)<=1s"], "http_error": [bound]}, load(3))
    assert guards(results)[""] == ("pass" if covers else "invalid")


@pytest.mark.parametrize(("bad", "status"), [(1, "pass"), (2, "invalid")])
def test_of_a_hundred_requests_that_no_threshold_looks_at_one_may_be_bad(bad: int, status: str) -> None:
    requests = [
        request(LOAD_AT + n * 0.15, "timeout" if n % 2 and n < 2 * bad else "ok", tags={"tenant": "ab"[n % 2]})
        for n in range(200)
    ]
    found = guard(judged({"ttft{tenant:a}": ["p(50)<=1s"]}, requests, load=TENANTS), "/elsewhere")
    assert (found.status, found.observed, found.samples) == (status, f"{bad} of 100 not good: {bad} timeout", 100)
    assert found.reason.startswith("no threshold looks at 100 requests, and 2 of them" if bad > 1 else "")
    assert bool(found.reason) == (bad > 1)


def test_tags_are_the_same_in_any_order() -> None:
    requests = [request(LOAD_AT + n / 10, "timeout" if n % 9 == 0 else "ok", tags={"tenant": "a"}) for n in range(300)]
    slo = {
        "ttft{phase:baseline,tenant:a}": ["p(50)<=1s"],
        "good_request_fraction{tenant:a,phase:baseline}": ["rate>=0.5"],
    }
    assert guards(judged(slo, requests, load=TENANTS)) == {}


def test_a_selection_that_holds_no_request_proves_nothing() -> None:
    results = judged({"client_cpu": ["value<=0.9"]}, [])
    assert (results.verdict, guard(results).status) == ("invalid", "invalid")
    assert "there are no requests" in guard(results).reason


def test_a_load_that_no_threshold_asks_about_is_asked_all_the_same() -> None:
    of_pods: dict[str, Any] = {"pods_running": ["value==1"]}
    for bad, status in ((MANY_LOST, "invalid"), (0, "pass")):
        assert guards(judged(of_pods, load(bad), workloads=[{"name": "trainers"}])) == {"": status}


def test_without_a_load_nobody_is_asked() -> None:
    spec = scenario(load=None, faults=[], slo={"pods_running": ["value==1"]}, workloads=[{"name": "trainers"}])
    assert guards(judge(history(spec=spec, requests=[], faults=[]))) == {}


def test_the_check_shows_those_that_were_not_good() -> None:
    found = check(judged({"ttft": ["p(50)<=1s"]}, load(MANY_LOST)), "validity/answered")
    assert found.samples == 246
    assert found.evidence[0] == "of 246 requests: 201 http_error"
    assert all("http_error" in line for line in found.evidence[1:])


def test_a_bad_request_near_the_edge_of_a_phase_is_asked_for_in_both() -> None:
    """It may have ended before the fault struck, so much later the client may have read its end."""
    slo = {"ttft{phase:baseline}": ["p(50)<=1s"], "good_request_fraction{phase:fault}": ["rate>=0.5"]}
    read_at_once = {"connect_uncertainty": 0.0, "uncertainty": [0.0] * 5, "end_uncertainty": 0.0, "gaps": [0.1] * 4}
    rest = [request(LOAD_AT + n / 10, **read_at_once) for n in range(300)]
    for late, status in ((0.0, "pass"), (0.05, "pass"), (0.15, "invalid")):
        told = {"connect_uncertainty": 0.0, "uncertainty": [], "end_uncertainty": late}
        victims = [request(19.6, "truncated", took=0.5, **told) for _ in range(2)]
        found = guard(judged(slo, [*rest, *victims], faults=True), "{phase:baseline}")
        assert found.status == status, found
    assert found.observed == "2 of 97 not good: 2 truncated"
