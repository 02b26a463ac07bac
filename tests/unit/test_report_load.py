"""`load.json`: a load small enough to reckon by hand, under everybody's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from timelines import Shape, events

from sandbox.judge import weigh as judge
from sandbox.report import aliases
from sandbox.report.load import figures, write_load
from sandbox.spec.results import Summary
from sandbox.timeline import Event, LoadFinished, LoadStarted, Request, RunStarted

# Each tool's own names, from the sources that docs/reference/outputs.md tells of.
VLLM = {
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"),
    *("request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s"),
    *("max_concurrent_requests", "model_id", "num_prompts", "request_rate", "burstiness", "max_concurrency"),
    *(
        f"{word}_{metric}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for word in ("mean", "median", "std", "p50", "p90", "p95", "p99")
    ),
}
AIPERF = {
    "request_throughput": "requests/sec",
    "request_latency": "ms",
    "request_count": "requests",
    "error_request_count": "requests",
    "time_to_first_token": "ms",
    "inter_token_latency": "ms",
    "inter_chunk_latency": "ms",
    "output_token_throughput": "tokens/sec",
    "output_token_throughput_per_user": "tokens/sec/user",
    "total_token_throughput": "tokens/sec",
    "input_sequence_length": "tokens",
    "output_sequence_length": "tokens",
    "total_isl": "tokens",
    "total_osl": "tokens",
    "goodput": "requests/sec",
    "good_request_count": "requests",
    "good_request_fraction": "ratio",
    "benchmark_duration": "sec",
}
LATENCY = {
    "request_latency",
    "normalized_time_per_output_token",
    "time_per_output_token",
    "time_to_first_token",
    "inter_token_latency",
}
THROUGHPUT = {"input_tokens_per_sec", "output_tokens_per_sec", "total_tokens_per_sec", "requests_per_sec"}


def _answer(at: float, first: float, gaps: list[float], *, tail: float = 0.0, tenant: str = "red") -> Request:
    """Sent 10 ms late; one token a chunk, 100 tokens of prompt."""
    sent = at + 0.01
    last = sent + first + sum(gaps)
    return Request(
        t=last + tail, scheduled=at, sent=sent, first=sent + first, last=last, chunks=len(gaps) + 1,
        tokens=len(gaps) + 1, prompt_tokens=100, gaps=gaps, outcome="ok", status=200, tags={"tenant": tenant},
    )  # fmt: skip


def _timeline(
    *requests: Request, good: dict[str, str] | None = None, asked: dict[str, Any] | None = None
) -> list[Event]:
    load = {
        "profile": "chat-short",
        "arrivals": {"process": "poisson", "rate": 2},
        "duration": "10s",
        **({"good": good} if good else {}),
    }
    scenario = {
        "apiVersion": "sandbox/v1",
        "kind": "Scenario",
        "metadata": {"name": "by-hand", "description": "Reckoned by hand."},
        "cluster": "solo",
        "stack": {"name": "vllm-sim"},
        "steadyState": ["openai.chat"],
        "load": load,
        "slo": {"ok": ["count>=1"]},
    }
    asked = asked or {"process": "poisson", "rate": 2.0}
    return [
        RunStarted(t=0.0, run_id="r", wall="2026-04-12T09:15:00+00:00", scenario=scenario, source="s.yaml"),
        LoadStarted(t=5.0, url="http://x/v1", model="sim-8b", profile="chat-short", asked=asked),
        *requests,
        LoadFinished(t=15.0, attempted=len(requests)),
    ]


HAND = (
    _answer(5.0, 0.1, [0.02, 0.04], tail=0.001),
    _answer(6.0, 0.3, [0.05, 0.05, 0.05, 0.05], tail=0.001, tenant="blue"),
    Request(t=7.5, scheduled=7.0, sent=7.01, outcome="http_error", status=503, tags={"tenant": "red"}),
    Request(t=8.0, scheduled=8.0, sent=None, outcome="dropped", tags={"tenant": "red"}),
)


def _load(*requests: Request, **others: Any) -> dict[str, Any]:
    timeline = _timeline(*requests, **others)
    return figures(judge(timeline), timeline)


def test_vllms_names_and_figures() -> None:
    found = _load(*HAND)["vllm"]
    assert set(found) == VLLM
    assert (found["completed"], found["failed"], found["num_prompts"]) == (2, 2, 4)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (200, 8)
    assert found["duration"] == pytest.approx(10.0)
    assert found["request_throughput"] == pytest.approx(0.2)
    assert found["output_throughput"] == pytest.approx(0.8)
    assert found["total_token_throughput"] == pytest.approx(20.8)
    assert found["mean_ttft_ms"] == pytest.approx(200.0), "from the send, as vLLM does, not from the schedule"
    assert found["std_ttft_ms"] == pytest.approx(100.0)
    assert found["mean_tpot_ms"] == pytest.approx((30.0 + 50.0) / 2)
    assert found["mean_itl_ms"] == pytest.approx((20 + 40 + 4 * 50) / 6), "the gaps of all requests pooled"
    assert found["median_e2el_ms"] == pytest.approx((161.0 + 501.0) / 2)
    assert found["max_concurrent_requests"] == 1
    assert found["max_output_tokens_per_s"] == 5.0
    assert (found["request_rate"], found["burstiness"], found["max_concurrency"]) == (2.0, 1.0, None)
    assert found["request_goodput"] is None, "the scenario has no limits"


def test_aiperfs_names_units_and_figures() -> None:
    found = _load(*HAND)["aiperf"]
    assert {name: figure["unit"] for name, figure in found.items()} == AIPERF
    assert set(found["time_to_first_token"]) == {
        *("unit", "avg", "min", "max", "std", "p50", "p90", "p95", "p99", "count")
    }
    assert found["time_to_first_token"]["avg"] == pytest.approx(200.0)
    assert found["inter_token_latency"]["avg"] == pytest.approx(40.0), "aiperf's is per request: our tpot"
    assert found["inter_chunk_latency"]["count"] == 6
    assert found["output_token_throughput_per_user"]["max"] == pytest.approx(1 / 0.03)
    assert found["error_request_count"]["avg"] == 2
    assert found["benchmark_duration"]["avg"] == pytest.approx(10.0)
    assert found["goodput"]["avg"] is None


def test_inference_perfs_names_and_figures() -> None:
    found = _load(*HAND)["inference_perf"]
    assert set(found) == {"benchmark_time_seconds", "load_summary", "successes", "failures"}
    assert set(found["successes"]["latency"]) == LATENCY
    assert set(found["successes"]["throughput"]) == THROUGHPUT
    first = found["successes"]["latency"]["time_to_first_token"]
    assert set(first) == {"mean", "min", "max", "median", "p90", "p95", "p99"}
    assert (first["min"], first["max"]) == (pytest.approx(0.1), pytest.approx(0.3))
    per = found["successes"]["latency"]["normalized_time_per_output_token"]
    assert per["mean"] == pytest.approx((0.161 / 3 + 0.501 / 5) / 2)
    assert found["load_summary"]["count"] == 4
    assert found["load_summary"]["schedule_delay"]["max"] == pytest.approx(0.01)
    assert found["load_summary"]["send_duration"] == pytest.approx(2.0)
    assert found["load_summary"]["achieved_rate"] == pytest.approx(1.5)
    assert found["successes"]["throughput"]["input_tokens_per_sec"] == pytest.approx(20.0)
    assert found["failures"]["count"] == 2
    assert found["failures"]["request_latency"]["mean"] == pytest.approx(0.49), "what was never sent took no time"
    assert found["failures"]["by_label"] == {"http_error": {"count": 1}, "dropped": {"count": 1}}


def test_with_limits_there_is_goodput_of_all_attempted() -> None:
    found = _load(*HAND, good={"ttft": "200ms"})
    assert found["vllm"]["request_goodput"] == pytest.approx(0.1)
    assert found["aiperf"]["good_request_count"]["avg"] == 1
    assert found["aiperf"]["good_request_fraction"]["avg"] == pytest.approx(0.25)
    goodput = found["inference_perf"]["successes"]["goodput_metrics"]
    assert (goodput["goodput_percentage"], goodput["good_requests"]) == (pytest.approx(25.0), 1)


def test_what_was_not_measured_is_null_and_never_zero() -> None:
    whole = Request(t=5.5, scheduled=5.0, sent=5.0, tokens=7, outcome="ok", tags={})
    found = _load(whole, asked={"process": "closed", "users": 3})
    vllm = found["vllm"]
    assert (vllm["mean_ttft_ms"], vllm["p99_tpot_ms"], vllm["std_itl_ms"]) == (None, None, None)
    assert (vllm["total_input_tokens"], vllm["total_token_throughput"]) == (None, None), "the server did not count them"
    assert vllm["total_output_tokens"] == 7
    assert (vllm["request_rate"], vllm["max_concurrency"]) == (None, 3)
    assert found["aiperf"]["time_to_first_token"] == {
        "unit": "ms", **dict.fromkeys(("avg", "std", "min", "max", "p50", "p90", "p95", "p99")), "count": 0,
    }  # fmt: skip
    assert found["inference_perf"]["successes"]["latency"]["time_to_first_token"] is None
    assert found["inference_perf"]["load_summary"]["achieved_rate"] is None


def test_a_load_in_which_nothing_was_answered_still_gives_its_file(tmp_path: Path) -> None:
    lost = [Request(t=5.0 + n, scheduled=5.0 + n, sent=None, outcome="connect_error") for n in range(3)]
    timeline = _timeline(*lost)
    found = json.loads(write_load(judge(timeline), timeline, tmp_path / "load.json").read_text())
    assert found["vllm"]["completed"] == 0
    assert found["vllm"]["max_output_tokens_per_s"] is None
    assert found["inference_perf"]["failures"] == {
        "count": 3, "request_latency": None, "by_label": {"connect_error": {"count": 3}},
    }  # fmt: skip


def test_each_phase_has_its_own_figures_and_they_are_those_of_the_results() -> None:
    timeline = events(Shape(lost=20))
    results = judge(timeline)
    found = figures(results, timeline)
    assert [group["phase"] for group in found["groups"]][:4] == ["all", "baseline", "fault", "recovery"]
    for group, summary in zip(found["groups"], results.summaries, strict=True):
        own = summary.model_dump(mode="json")
        assert {key: group[key] for key in own} == own
        vllm = group["vllm"]
        for theirs, ours in {"ttft": "ttft", "tpot": "tpot", "itl": "icl", "e2el": "e2e"}.items():
            for percent in ("p50", "p90", "p95", "p99"):
                assert vllm[f"{percent}_{theirs}_ms"] == pytest.approx(summary.percentiles[ours][percent] * 1e3)
        assert vllm["completed"] / vllm["duration"] == pytest.approx(summary.request_rate)
        assert vllm["total_output_tokens"] / vllm["duration"] == pytest.approx(summary.token_rate)
    assert {name: found[name] for name in ("vllm", "aiperf", "inference_perf")} == {
        name: found["groups"][0][name] for name in ("vllm", "aiperf", "inference_perf")
    }
    assert found["emulated"] == ["stack vllm-sim"]


class Tagged(Summary):
    """A summary of what one tag names."""

    tags: dict[str, str] = Field(default_factory=dict)


def test_a_group_by_tags_has_only_its_own_requests() -> None:
    timeline = _timeline(*HAND)
    results = judge(timeline)
    overall = results.summaries[0].model_dump()
    blue = Tagged(**{**overall, "tags": {"tenant": "blue"}, "requests": 1, "request_rate": 0.1})
    tagged = results.model_copy(update={"summaries": [results.summaries[0], blue]})
    found = figures(tagged, timeline)
    group = found["groups"][1]
    assert group["tags"] == {"tenant": "blue"}
    assert group["vllm"]["mean_ttft_ms"] == pytest.approx(300.0)
    assert group["vllm"]["request_rate"] is None, "what was asked was asked of all tenants together"
    assert found["vllm"]["mean_ttft_ms"] == pytest.approx(200.0)


def test_the_deviation_is_the_populations_and_nothing_has_no_figures() -> None:
    assert aliases.stats([1.0, 3.0])["std"] == 1.0
    assert set(aliases.stats([]).values()) == {None}
