"""Threshold words: tags, and the keys that mean something only beside others."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.spec.base import Mistakes
from sandbox.spec.slo import Threshold, check_slo, parse_expression, parse_selector

ABORTING: dict[str, Any] = {"abortOnFail": True}


def refused(selector: str, **keys: Any) -> str:
    """What is said of one threshold; empty where it is taken."""
    try:
        check_slo({selector: [Threshold.model_validate(keys)]})
    except Mistakes as mistakes:
        return str(mistakes)
    return ""


def test_a_selector_takes_every_tag_of_requests_at_once() -> None:
    tags = {"phase": "fault", "tenant": "a", "model": "org/model:8b", "profile": "chat-short"}
    text = f"ttft{{{','.join(f'{key}:{value}' for key, value in tags.items())}}}"
    assert parse_selector(text).tags == tags
    assert str(parse_selector(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft{team:a}", "known: phase, tenant, model, profile, workload"),
        ("ttft{workload:a}", "it has phase, tenant, model, profile"),
        ("ttft{tenant:}", "needs exactly one value"),
        ("ttft{tenant:a,tenant:b}", "needs exactly one value"),
        ("client_added{tenant:a}", "measured over the whole run"),
    ],
)
def test_a_tag_that_no_request_has_is_refused_and_the_known_ones_are_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_selector(text)


@pytest.mark.parametrize(
    ("selector", "expression"),
    [
        ("ttft", "p(95)<=1s"),
        ("good_request_fraction{phase:fault}", "rate>=0.9"),
        ("ok", "rate>=0.9"),
        ("truncated", "count<=2"),
        ("truncated{tenant:a}", "value<3"),
        ("requests", "count<=1000"),
        ("e2e", "max<=5s"),
        ("e2e", "min>=1ms"),
        ("time_to_recover", "value<=5s"),
        ("client_cpu", "value<=0.9"),
        ("client_lag", "p(99)<=10ms"),
    ],
)
def test_what_can_be_broken_under_way_may_end_a_load(selector: str, expression: str) -> None:
    assert not refused(selector, threshold=expression, **ABORTING)


@pytest.mark.parametrize(
    ("selector", "expression"),
    [
        ("request_rate", "value>=1"),
        ("token_rate", "value<=1"),
        ("requests", "count>=100"),
        ("timeout", "count==3"),
        ("timeout", "value>=3"),
        ("ttft", "count>=100"),
        ("e2e", "max>=1s"),
        ("e2e", "min<=1s"),
        ("time_to_recover", "value>=5s"),
        ("pods_created", "count<=1"),
        ("ttft", "p(50)<=baseline+10%"),
    ],
)
def test_what_is_decided_in_the_end_only_ends_no_load(selector: str, expression: str) -> None:
    assert "abortOnFail" in refused(selector, threshold=expression, **ABORTING)
    assert not refused(selector, threshold=expression)


def test_keys_that_mean_nothing_are_refused_all_at_once() -> None:
    said = refused("ttft", threshold="p(50)<=1s", delayAbortEval="5s", confidence=0.99)
    assert "delayAbortEval means nothing" in said
    assert "confidence means nothing" in said
    assert not refused("ttft", threshold="p(50)<=baseline+10%", confidence=0.99)
    assert not refused("ttft", threshold="p(50)<=1s", delayAbortEval="5s", **ABORTING)


def test_a_threshold_written_out_in_full_by_a_run_is_read_back() -> None:
    """The timeline carries every key with its default: none of them is one that the user gave."""
    written = Threshold.model_validate("p(50)<=1s").model_dump(mode="json", by_alias=True)
    assert not refused("ttft", **written)


@pytest.mark.parametrize(
    ("metric", "text", "said"),
    [
        ("ttft", "max<=baseline+10%", "max is not held against a baseline"),
        ("ttft", "min<=baseline+10%", "min is not held against a baseline"),
        ("icl", "p(50)<=baseline+10%", "hold tpot against"),
        ("pods_created", "rate>=baseline-1%", "only times and shares"),
    ],
)
def test_a_baseline_of_what_two_equal_runs_differ_in_is_refused(metric: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_expression(text, metric)


@pytest.mark.parametrize(
    ("metric", "text", "bound"),
    [("tpot", "avg <= baseline + 2.5%", 0.025), ("ok", "rate>=baseline-1%", -0.01), ("ttft", "med<=baseline+0%", 0.0)],
)
def test_what_is_allowed_beyond_a_baseline_is_a_signed_share(metric: str, text: str, bound: float) -> None:
    expression = parse_expression(text, metric)
    assert (expression.relative, expression.bound) == (True, pytest.approx(bound))
