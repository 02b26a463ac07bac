"""Figures and verdicts that a person can reckon: what they are has been worked out on paper, not by the code."""

from __future__ import annotations

import pytest
from test_judge import LOAD_AT, check, history, judge, request, scenario

from sandbox.metrics.interval import aggregate
from sandbox.spec.slo import parse_expression
from sandbox.timeline import AttackEvent

HUNDRED = [number / 1000 for number in (*range(2, 101, 2), *range(1, 101, 2))]  # 1 to 100 ms, in no order


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("p(50)<=1s", 0.0505),
        ("p(90)<=1s", 0.0901),
        ("p(95)<=1s", 0.09505),
        ("p(99)<=1s", 0.09901),
        ("p(99.9)<=1s", 0.099901),
        ("med<=1s", 0.0505),
        ("avg<=1s", 0.0505),
        ("min<=1s", 0.001),
        ("max<=1s", 0.1),
        ("count>=1", 100),
    ],
)
def test_of_the_numbers_from_1_to_100_every_figure_is_known(expression: str, wanted: float) -> None:
    assert aggregate(HUNDRED, parse_expression(expression, "ttft")) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("bad", "wanted"), [([21.0], 1.5), ([21.0, 25.0], 5.5), ([21.0, 23.0, 29.0], 9.5)])
def test_recovery_ends_with_the_first_good_answer_after_the_last_bad_one(bad: list[float], wanted: float) -> None:
    """The fault strikes at 20 s; a request of half a second is due each half second. Good ones between do not count."""
    due = [LOAD_AT + n / 2 for n in range(60)]
    requests = [request(at, "timeout" if at in bad else "ok", took=0.5) for at in due]
    results = judge(history(spec=scenario(slo={"time_to_recover": ["value<=1m"]}), requests=requests))
    assert results.time_to_recover == pytest.approx(wanted + 0.5)


@pytest.mark.parametrize("by", ["", "P", "R"])
@pytest.mark.parametrize("broken", ["attempt", "allowed"])
def test_an_attempt_that_errored_proves_nothing_whoever_it_names(by: str, broken: str) -> None:
    def tried(variant: str, outcome: str) -> AttackEvent:
        found = {"outcome": "error", "by": by} if variant == broken else {"outcome": outcome, "by": "P"}
        return AttackEvent(t=20, attempt="1-x", title="x", variant=variant, expected_by="P", message="", **found)  # type: ignore[arg-type]

    own = scenario(attacks=["all"], guardrails=["tenant"])
    results = judge(history(spec=own, extra=[tried("attempt", "denied"), tried("allowed", "succeeded")]))
    assert check(results, "attack/1-x").status == "invalid"
    assert "could not be made" in check(results, "attack/1-x").reason
