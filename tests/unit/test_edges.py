"""Every kind of threshold at its edge, just below it and just above: what is written is what is held."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from test_intervals import known
from test_judge import LOAD_AT, SCENARIO, check, history, request, scenario
from test_watch import Running, aborting
from whole_runs import whole

from sandbox.judge import judge, regression
from sandbox.search import judged
from sandbox.spec.slo import parse_expression
from sandbox.timeline import Request

OPERATORS = {"<=": (True, True, False), "<": (True, False, False), ">=": (False, True, True), ">": (False, False, True)}
OPERATORS |= {"==": (False, True, False), "!=": (True, False, True)}


def share(good: int, many: int) -> list[Request]:
    return [request(LOAD_AT + n * 30 / many, "ok" if n < good else "timeout", took=0.2) for n in range(many)]


@pytest.mark.parametrize("bound", ["99.9%", "0.999", "99.90%", "9.99e-1"])
@pytest.mark.parametrize(("operator", "expected"), OPERATORS.items())
def test_a_share_is_compared_exactly(operator: str, bound: str, expected: tuple[bool, bool, bool]) -> None:
    if "e" in bound and operator in {"==", "!="}:
        bound = "0.999"
    expression = parse_expression(f"rate{operator}{bound}", "good_request_fraction")
    edge = Fraction(999, 1000)
    for figure, holds in zip((edge - Fraction(1, 10**12), edge, edge + Fraction(1, 10**12)), expected, strict=True):
        assert expression.holds(figure) is holds, figure


@pytest.mark.parametrize(("good", "status"), [(2996, "fail"), (2997, "pass"), (2998, "pass")])
def test_a_share_of_exactly_what_is_asked_for_holds_in_the_judge_and_in_a_search(good: int, status: str) -> None:
    """2997 of 3000 are 99.9 %, and 1 - 0.001 is less than 0.999 in floats."""
    spec = scenario(slo={"good_request_fraction": ["rate>=99.9%"]}, faults=[])
    results = judge(whole(history(spec=spec, requests=share(good, 3000), faults=[])))
    assert check(results, "slo/good_request").status == status
    assert judged(100.0, results).verdict == status


@pytest.mark.parametrize(("lost", "status"), [(0, "pass"), (3, "pass"), (4, "fail")])
@pytest.mark.parametrize("bound", ["0.1%", "0.001", "1e-3"])
def test_so_is_a_share_of_one_outcome(lost: int, status: str, bound: str) -> None:
    spec = scenario(slo={"timeout": [f"rate<={bound}"], "good_request_fraction": ["rate>=0.9"]}, faults=[])
    results = judge(history(spec=spec, requests=share(3000 - lost, 3000), faults=[]))
    assert check(results, "slo/timeout").status == status


@pytest.mark.parametrize(("good", "ends"), [(997, True), (998, True), (999, False)])
def test_a_share_of_exactly_what_is_asked_for_ends_no_load(tmp_path: Path, good: int, ends: bool) -> None:
    load = Running(tmp_path, slo={"good_request_fraction": aborting("rate>=99.9%")})
    load.write(share(good, 1000))
    assert load.watch.look() is ends


@pytest.mark.parametrize("unit", ["300ms", "0.3s", "300000us", "0.005m"])
@pytest.mark.parametrize(("operator", "expected"), OPERATORS.items())
def test_a_time_is_compared_to_the_nanosecond(operator: str, unit: str, expected: tuple[bool, bool, bool]) -> None:
    expression = parse_expression(f"max{operator}{unit}", "ttft")
    for start in (0.0, 10.0, 41.3, 90_000.1):  # readings of a clock, whose difference is not quite 0.3
        for moved, holds in zip((-1e-9, 0.0, 1e-9), expected, strict=True):
            figure = round(start + 0.3, 9) - start if not moved else 0.3 + moved
            assert expression.holds(figure) is holds, (start, moved)


@pytest.mark.parametrize(("ttft", "status"), [(0.299999, "pass"), (0.3, "pass"), (0.300001, "fail")])
@pytest.mark.parametrize("left", ["p(90)", "p(50)", "avg", "min", "max", "med"])
def test_each_aggregation_of_times_holds_at_its_edge(left: str, ttft: float, status: str) -> None:
    spec = scenario(slo={"ttft": [f"{left}<=300ms"]}, faults=[])
    requests = [known(request(LOAD_AT + n / 10, ttft=ttft)) for n in range(300)]
    assert check(judge(history(spec=spec, requests=requests, faults=[])), "slo/ttft").status == status


@pytest.mark.parametrize(("ttft", "status"), [(0.199999, "pass"), (0.2, "pass"), (0.200001, "fail")])
def test_so_does_a_limit_of_good_requests(ttft: float, status: str) -> None:
    load = {**SCENARIO["load"], "good": {"ttft": "200ms"}}
    for known_ in (False, True):
        requests = [request(LOAD_AT + n / 10, ttft=ttft) for n in range(300)]
        requests = [known(each) for each in requests] if known_ else requests
        found = check(judge(history(spec=scenario(load=load), requests=requests)), "slo/good_request")
        assert found.status == status


@pytest.mark.parametrize(("count", "expected"), [(1, "pass"), (2, "pass"), (3, "fail")])
def test_so_does_a_count(count: int, expected: str) -> None:
    spec = scenario(slo={"timeout": ["count<=2"], "good_request_fraction": ["rate>=0.9"]}, faults=[])
    results = judge(history(spec=spec, requests=share(300 - count, 300), faults=[]))
    assert check(results, "slo/timeout").status == expected


@pytest.mark.parametrize(("many", "status"), [(304, "fail"), (305, "pass"), (306, "pass")])
def test_so_does_a_rate_over_the_run(many: int, status: str) -> None:
    """The load took 30.5 s."""
    spec = scenario(slo={"request_rate": ["value>=10"]}, faults=[])
    requests = [request(LOAD_AT + n * 30 / many, took=0.2) for n in range(many)]
    assert check(judge(history(spec=spec, requests=requests, faults=[])), "slo/request_rate").status == status


@pytest.mark.parametrize(("until", "status"), [(239, "pass"), (240, "pass"), (241, "fail")])
def test_so_does_a_recovery(until: int, status: str) -> None:
    requests = [request(n / 10, "connect_error" if 200 <= n < until else "ok") for n in range(100, 400)]
    spec = scenario(slo={"time_to_recover": ["value<=4.5s"]})
    assert check(judge(history(spec=spec, requests=requests)), "slo/time_to_recover").status == status


@pytest.mark.parametrize(("now", "status"), [(0.1099, "pass"), (0.11, "pass"), (0.1101, "fail")])
def test_so_does_what_is_allowed_beyond_a_baseline(now: float, status: str) -> None:
    expression = parse_expression("p(50)<=baseline+10%", "ttft")
    found = regression.compare("ttft", expression, [now] * 100, [0.1] * 100, 0.95)
    assert found is not None
    assert found.status == status


def test_a_bound_is_kept_as_it_was_written() -> None:
    assert parse_expression("rate>=99.9%", "ok").exact == Fraction(999, 1000)
    assert parse_expression("p(99)<=1.1ms", "ttft").exact == Fraction(11, 10_000)
    assert parse_expression("rate>=baseline-0.1%", "ok").exact == Fraction(-1, 1000)
