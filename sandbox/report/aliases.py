"""The figures of a load under the names of other tools: `vllm bench serve`, aiperf, inference-perf.

So that what reads their files can read ours. docs/reference/outputs.md says, name by name, where definitions differ,
and which versions' sources the names were taken from. None where there is no such number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sandbox.report import series
from sandbox.spec.results import Summary
from sandbox.timeline import Request

_PERCENTS = (50, 90, 95, 99)
_METRICS = ("ttft", "tpot", "icl", "ntpot", "e2e", "sched_lag")
_MS = 1e3
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Group:
    """The requests that a summary is of.

    Attributes:
        span: seconds that its rates are of.
        limited: whether the scenario has limits that a good request must meet.
        asked: how the load was asked for, as the timeline has it.
        model: what was asked.
    """

    summary: Summary
    requests: Sequence[Request]
    span: float
    limited: bool
    asked: dict[str, Any]
    model: str

    @cached_property
    def latencies(self) -> dict[str, list[float]]:
        """Samples in seconds of every trend metric."""
        return {metric: series.samples(self.requests, metric) for metric in _METRICS}

    @cached_property
    def answered(self) -> list[Request]:
        """Those that ended well."""
        return [request for request in self.requests if request.outcome == "ok"]

    @property
    def good(self) -> float | None:
        """How many met the limits; None without limits."""
        share = self.summary.good_fraction
        return round(share * self.summary.requests) if self.limited and share is not None else None

    @cached_property
    def tokens_in(self) -> int | None:
        """Of the prompts of answered requests; None where a server did not count them."""
        counts = [request.prompt_tokens for request in self.answered]
        return None if not counts or None in counts else sum(count or 0 for count in counts)

    @cached_property
    def tokens_out(self) -> int | None:
        """Of the answers; None where neither a server nor a stream counted any of them."""
        counted = [each for each in self.answered if each.tokens is not None or each.chunks]
        return sum(map(series.received, counted)) if counted or not self.answered else None

    @property
    def token_rate(self) -> float | None:
        """Of the answers, per second."""
        return None if self.tokens_out is None else self.summary.token_rate

    def per_second(self, count: float | None) -> float | None:
        """A count over the group's time."""
        return count / self.span if count is not None and self.span > 0 else None

    @property
    def tokens(self) -> int | None:
        """Of prompts and answers."""
        return None if self.tokens_in is None or self.tokens_out is None else self.tokens_in + self.tokens_out


def stats(values: Sequence[float], factor: float = 1.0) -> Figures:
    """Mean, median and the like, each times `factor`; None of nothing. The deviation is the population's."""
    if not len(values):
        return dict.fromkeys(("mean", "std", "min", "max", *(f"p{percent}" for percent in _PERCENTS)))
    taken = np.asarray(values, dtype=float) * factor
    percentiles = np.percentile(taken, _PERCENTS)
    found: Figures = {"mean": float(taken.mean()), "std": float(taken.std())}
    found |= {"min": float(taken.min()), "max": float(taken.max())}
    return found | {f"p{percent}": float(value) for percent, value in zip(_PERCENTS, percentiles, strict=True)}


def vllm(group: Group) -> dict[str, Any]:
    """As `vllm bench serve --save-result` writes it; times in milliseconds."""
    process = group.asked.get("process")
    found: dict[str, Any] = {
        "model_id": group.model,
        "num_prompts": group.summary.requests,
        "request_rate": group.asked.get("rate"),
        "burstiness": 1.0 if process == "poisson" else group.asked.get("burstiness"),
        "max_concurrency": group.asked.get("users"),
        "duration": group.span,
        "completed": len(group.answered),
        "failed": group.summary.requests - len(group.answered),
        "total_input_tokens": group.tokens_in,
        "total_output_tokens": group.tokens_out,
        "request_throughput": group.summary.request_rate,
        "request_goodput": group.per_second(group.good),
        "output_throughput": group.token_rate,
        "total_token_throughput": group.per_second(group.tokens),
        "max_output_tokens_per_s": _busiest_second(group.answered),
        "max_concurrent_requests": _most_at_once(group.answered),
    }
    for name, metric in {"ttft": "ttft", "tpot": "tpot", "itl": "icl", "e2el": "e2e"}.items():
        figures = stats(group.latencies[metric], _MS)
        found |= {f"mean_{name}_ms": figures["mean"], f"median_{name}_ms": figures["p50"]}
        found |= {f"std_{name}_ms": figures["std"]}
        found |= {f"p{percent}_{name}_ms": figures[f"p{percent}"] for percent in _PERCENTS}
    return found


def aiperf(group: Group) -> dict[str, Any]:
    """As `profile_export_aiperf.json` has its metrics, each with its unit; times in milliseconds."""
    answered = group.answered
    per_token = group.latencies["tpot"]
    prompts = [request.prompt_tokens for request in answered if request.prompt_tokens is not None]
    return {
        "request_throughput": _single("requests/sec", group.summary.request_rate),
        "request_latency": _record("ms", group.latencies["e2e"], _MS),
        "request_count": _single("requests", len(answered)),
        "error_request_count": _single("requests", group.summary.requests - len(answered)),
        "time_to_first_token": _record("ms", group.latencies["ttft"], _MS),
        "inter_token_latency": _record("ms", per_token, _MS),
        "inter_chunk_latency": _record("ms", group.latencies["icl"], _MS),
        "output_token_throughput": _single("tokens/sec", group.token_rate),
        "output_token_throughput_per_user": _record("tokens/sec/user", [1 / each for each in per_token if each > 0]),
        "total_token_throughput": _single("tokens/sec", group.per_second(group.tokens)),
        "input_sequence_length": _record("tokens", prompts),
        "output_sequence_length": _record("tokens", [series.received(request) for request in answered]),
        "total_isl": _single("tokens", group.tokens_in),
        "total_osl": _single("tokens", group.tokens_out),
        "goodput": _single("requests/sec", group.per_second(group.good)),
        "good_request_count": _single("requests", group.good),
        "good_request_fraction": _single("ratio", group.summary.good_fraction if group.limited else None),
        "benchmark_duration": _single("sec", group.span),
    }


def inference_perf(group: Group) -> dict[str, Any]:
    """As `summary_lifecycle_metrics.json`; times in seconds."""
    answered = group.answered
    failed = [request for request in group.requests if request.outcome != "ok"]
    sent = [request.sent for request in group.requests if request.sent is not None]
    sending = max(sent) - min(sent) if sent else 0.0
    found: dict[str, Any] = {
        "benchmark_time_seconds": group.span,
        "load_summary": {
            "count": group.summary.requests,
            "schedule_delay": _spread(group.latencies["sched_lag"]),
            "send_duration": sending,
            "requested_rate": group.asked.get("rate"),
            "achieved_rate": len(sent) / sending if sending > 0 else None,
        },
        "successes": {
            "count": len(answered),
            "latency": {
                "request_latency": _spread(group.latencies["e2e"]),
                "normalized_time_per_output_token": _spread(group.latencies["ntpot"]),
                "time_per_output_token": _spread(group.latencies["tpot"]),
                "time_to_first_token": _spread(group.latencies["ttft"]),
                "inter_token_latency": _spread(group.latencies["icl"]),
            },
            "throughput": {
                "input_tokens_per_sec": group.per_second(group.tokens_in),
                "output_tokens_per_sec": group.token_rate,
                "total_tokens_per_sec": group.per_second(group.tokens),
                "requests_per_sec": group.summary.request_rate,
            },
            "prompt_tokens": {"total": group.tokens_in},
            "output_tokens": {"total": group.tokens_out, **(_spread([*map(series.received, answered)]) or {})},
        },
        "failures": {
            "count": len(failed),
            "request_latency": _spread([request.t - request.sent for request in failed if request.sent is not None]),
            "by_label": {name: {"count": n} for name, n in Counter(r.outcome for r in failed).most_common()},
        },
    }
    if group.limited:
        found["successes"]["goodput_metrics"] = {
            "goodput_percentage": None if group.summary.good_fraction is None else group.summary.good_fraction * 100,
            "request_goodput": group.per_second(group.good),
            "good_requests": group.good,
            "total_requests": group.summary.requests,
        }
    return found


def _single(unit: str, value: float | None) -> dict[str, Any]:
    return {"unit": unit, "avg": value}


def _record(unit: str, values: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    figures = stats(values, factor)
    return {"unit": unit, "avg": figures.pop("mean"), **figures, "count": len(values)}


def _spread(values: Sequence[float]) -> Figures | None:
    if not len(values):
        return None
    figures = stats(values)
    return {"mean": figures["mean"], "min": figures["min"], "max": figures["max"], "median": figures.pop("p50")} | {
        name: value for name, value in figures.items() if name.startswith("p")
    }


def _busiest_second(answered: Sequence[Request]) -> float | None:
    """Chunks in the fullest second since the first send, as vLLM counts them."""
    begun = min((request.sent for request in answered if request.sent is not None), default=0.0)
    moments = [np.cumsum([request.first, *request.gaps]) for request in answered if request.first is not None]
    if not moments:
        return None
    return float(np.bincount(np.maximum(np.concatenate(moments) - begun, 0.0).astype(int)).max())


def _most_at_once(answered: Sequence[Request]) -> int | None:
    """Answered requests in flight together; one that ends as another begins is not."""
    moves = [(request.sent, 1) for request in answered if request.sent is not None]
    moves += [(request.t, -1) for request in answered if request.sent is not None]
    now = most = 0
    for _, step in sorted(moves):
        now += step
        most = max(most, now)
    return most or None
