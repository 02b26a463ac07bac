"""The saturation search, against servers whose limit is known."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import UsageError
from sandbox.search import Step, Verdict, judged, most_steps, search
from sandbox.spec.results import Check, Results, Status, Summary


@dataclass
class Limits:
    """Answers as a server that holds up to `server`, seen by a client that can prove things up to `client`."""

    server: float
    client: float = math.inf
    noise: Callable[[], Verdict | None] = lambda: None
    asked: list[float] = field(default_factory=list)

    def __call__(self, rate: float) -> Step:
        self.asked.append(rate)
        if rate > self.client:
            return Step(rate, "invalid", "client_lag p(99)<=10ms: p(99) is 35.0 ms")
        if disturbed := self.noise():
            return Step(rate, disturbed, "the machine hiccuped")
        if rate > self.server:
            return Step(rate, "fail", "ttft p(95)<=300ms: p(95) is 812.0 ms")
        return Step(rate, "pass", "", rate)


RATES = st.floats(0.1, 5000)
PRECISIONS = st.floats(0.01, 0.5)


@settings(max_examples=300)
@given(RATES, st.floats(1, 3000), RATES, PRECISIONS)
def test_the_limit_is_found_within_the_precision_in_a_bounded_number_of_steps(
    start: float, width: float, limit: float, precision: float
) -> None:
    most = start * width
    server = Limits(limit)
    found = search(server, start, most, precision)
    assert len(found.steps) == len(server.asked) <= most_steps(start, most, precision)
    assert all(start <= rate <= most for rate in server.asked)
    if limit < start:
        assert (found.rate, found.broken) == (None, start)
        assert "not even the lowest rate holds" in found.why
    elif limit >= most:
        assert (found.rate, found.broken) == (most, None)
        assert "the top of the range holds too" in found.why
    else:
        assert found.rate is not None
        assert found.broken is not None
        assert found.rate <= limit < found.broken <= found.rate * (1 + precision)
        assert "ttft p(95)<=300ms: p(95) is 812.0 ms" in found.why
        assert f"at {found.broken:g} requests/s the SLO did not hold" in found.why


@settings(max_examples=300)
@given(RATES, RATES, RATES, PRECISIONS)
def test_a_limit_of_the_client_is_never_told_as_the_servers(
    start: float, server: float, client: float, precision: float
) -> None:
    found = search(Limits(server, client), start, start * 500, precision)
    if client < min(server, start * 500):
        assert found.broken is None
        assert "nothing was proven" in found.why
        assert "client_lag" in found.why
        assert found.rate is None or client / (1 + precision) <= found.rate <= client
    elif found.broken is not None:
        assert server < found.broken <= client
        assert "client_lag" not in found.why


def test_an_overloaded_server_that_drowns_the_client_is_still_measured_below() -> None:
    found = search(Limits(server=90, client=150), 10, 1000)
    assert [step.verdict for step in found.steps].count("invalid") == 2, "at 160, and once more"
    assert found.rate == pytest.approx(90, rel=0.05)
    assert "the SLO did not hold" in found.why


class Hiccups:
    """Every so often a step goes wrong for no fault of the server's, but never two in a row."""

    def __init__(self, seed: int, often: float = 0.4) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - reproducible
        self._often = often
        self._last = False

    def __call__(self) -> Verdict | None:
        self._last = not self._last and self._dice.random() < self._often
        return self._dice.choice(["fail", "invalid"]) if self._last else None  # type: ignore[return-value]


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.floats(1.5, 900))
def test_a_single_hiccup_never_counts(seed: int, limit: float) -> None:
    found = search(Limits(limit, noise=Hiccups(seed)), 1, 1000)
    assert found.rate is not None
    assert found.rate <= limit <= found.rate * 1.05 + 1e-9
    assert len(found.steps) <= most_steps(1, 1000)


@pytest.mark.parametrize("two", [("fail", "invalid"), ("invalid", "fail")])
def test_a_failure_that_is_not_confirmed_and_not_disproved_is_no_failure(two: tuple[Verdict, Verdict]) -> None:
    answers: list[Verdict] = ["pass", *two]

    def step(rate: float) -> Step:
        return Step(rate, answers.pop(0) if answers else "pass", "reason")

    found = search(step, 10, 20, 0.5)
    assert (found.rate, found.broken) == (14.14, None)
    assert "at 20 requests/s nothing was proven: reason" in found.why


def waits(rate: float, servers: int, service: float, seconds: float, seed: int) -> list[float]:
    """Queueing times of Poisson arrivals at `servers` equal ones that each take `service` seconds: M/D/c."""
    dice = random.Random(f"{seed}/{rate}")  # noqa: S311 - reproducible
    free = [0.0] * servers
    at, found = 0.0, []
    while at < seconds:
        begun = max(at, heapq.heappop(free))
        heapq.heappush(free, begun + service)
        found.append(begun - at)
        at += dice.expovariate(rate)
    return found


def p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def true_limit(servers: int, service: float, slo: float) -> float:
    """The rate at which the 95th percentile of a very long load crosses the SLO."""
    low, high = 0.5 * servers / service, servers / service
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (
            (middle, high) if p95(waits(middle, servers, service, 8000 / middle * 4, 0)) <= slo else (low, middle)
        )
    return low


@pytest.mark.parametrize(("servers", "service"), [(4, 0.1), (16, 0.5)])
def test_a_queue_saturates_where_theory_says(servers: int, service: float) -> None:
    slo = 2 * service
    capacity = servers / service
    limit = true_limit(servers, service, slo)
    assert 0.8 * capacity < limit < capacity

    for seed in range(5):

        def step(rate: float, seed: int = seed) -> Step:
            seen = p95(waits(rate, servers, service, 120, seed))
            return Step(rate, "pass" if seen <= slo else "fail", f"p(95) is {seen:.3f} s", min(rate, capacity))

        found = search(step, capacity / 50, capacity * 10)
        assert found.rate == pytest.approx(limit, rel=0.08)
        assert len(found.steps) <= most_steps(capacity / 50, capacity * 10)
        assert "p(95) is" in found.why


def test_the_usual_search_takes_about_a_dozen_steps() -> None:
    server = Limits(47)
    search(server, 1, 200)
    assert server.asked[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert server.asked[7] == 64, "confirmed"
    assert len(server.asked) <= 16
    assert all(rate == float(f"{rate:.4g}") for rate in server.asked)


@pytest.mark.parametrize(("start", "most"), [(0, 10), (-1, 10), (5, 4), (1, math.inf), (math.nan, 4)])
def test_a_range_that_is_none_is_refused(start: float, most: float) -> None:
    with pytest.raises(UsageError, match="is not a range"):
        search(Limits(5), start, most)


def test_a_precision_that_no_load_can_have_is_refused_with_all_else_that_is_wrong() -> None:
    with pytest.raises(UsageError, match="is not a range") as caught:
        search(Limits(5), 5, 1, precision=0.0001)
    assert caught.value.details == ["precision 0.0001 lies outside 0.01 to 1; 0.05 ends within five per cent"]


def check(group: str, status: Status, title: str, reason: str = "") -> Check:
    return Check.model_validate(
        {
            "id": title,
            "group": group,
            "title": title,
            "status": status,
            "observed": "x",
            "expected": "y",
            "reason": reason,
        }
    )


def results(verdict: Status, *checks: Check, dropped: int = 0) -> Results:
    overall = Summary(
        phase="all",
        requests=100,
        outcomes={"ok": 100 - dropped, **({"dropped": dropped} if dropped else {})},
        good_fraction=1.0,
        request_rate=9.5,
        token_rate=None,
        percentiles={},
    )
    return Results(
        run_id="r",
        scenario="s",
        description="d",
        started="now",
        duration=10,
        verdict=verdict,
        headline="headline",
        checks=list(checks),
        summaries=[overall],
    )


HELD = check("slo", "pass", "tpot p(90)<=40ms")
BROKEN = check("slo", "fail", "ttft p(95)<=300ms", "p(95) is 812.0 ms, asked for p(95)<=300ms")
SLOW = check("validity", "invalid", "client_lag p(99)<=10ms", "p(99) is 35.0 ms")
FEW = check("slo", "invalid", "ttft p(99)<=1s", "30 samples say nothing about p(99) (needs 459)")


def test_a_run_that_broke_its_slo_says_which() -> None:
    assert judged(10, results("fail", HELD, BROKEN)) == Step(
        10, "fail", "ttft p(95)<=300ms: p(95) is 812.0 ms, asked for p(95)<=300ms", 9.5
    )


def test_a_run_whose_client_was_slow_proves_nothing_though_its_verdict_is_fail() -> None:
    assert judged(10, results("fail", BROKEN, SLOW)) == Step(
        10, "invalid", "client_lag p(99)<=10ms: p(99) is 35.0 ms", 9.5
    )


def test_a_run_that_dropped_requests_did_not_send_what_was_asked() -> None:
    for verdict, seen_so_far in (("fail", BROKEN), ("pass", HELD)):
        seen = judged(10, results(verdict, seen_so_far, dropped=7))
        assert seen.verdict == "invalid"
        assert "7 requests were dropped at maxInFlight" in seen.why


def test_too_few_samples_prove_nothing() -> None:
    assert judged(10, results("invalid", HELD, FEW)).why.startswith("ttft p(99)<=1s: 30 samples say nothing")


def test_a_run_that_held_passes() -> None:
    assert judged(10, results("pass", HELD)).verdict == "pass"
