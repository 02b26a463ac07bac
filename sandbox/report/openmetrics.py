"""`metrics.om`: a run's figures as OpenMetrics text, for whatever stores or compares such series.

Histograms are counted from every request of the timeline, so those of several runs can be added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.openmetrics.exposition import generate_latest

from sandbox.report import series
from sandbox.report.files import write_atomic
from sandbox.report.text import emulated, plain
from sandbox.spec.results import Results, Status, Summary
from sandbox.timeline import Event, Request

_LABELS = ("phase", "profile", "model", "tenant")
_LONG = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)
_SHORT = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_HISTOGRAMS = {
    "ttft": ("From the send to the first content, of answered requests", _LONG),
    "ttft_intended": ("From the scheduled send to the first content, of answered requests", _LONG),
    "tpot": ("Per token after the first, of answered requests", _SHORT),
    "icl": ("Between the chunks of answered requests", _SHORT),
    "e2e": ("From the send to the last byte, of answered requests", _LONG),
}
_RATES = {
    "request_rate": "Requests answered per second; phase and tags empty or all: over all of them",
    "token_rate": "Tokens received per second",
    "good_request_fraction": "Good requests of those attempted",
}
_VERDICTS: tuple[Status, ...] = ("pass", "fail", "invalid")


def write_metrics(results: Results, timeline: Sequence[Event], path: Path) -> Path:
    """Write `metrics.om`; a run without a load has its verdict alone."""
    return write_atomic(path, exposition(results, timeline))


def exposition(results: Results, timeline: Sequence[Event]) -> str:
    """OpenMetrics 1.0 text, `# EOF` included."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Run(results, series.load(timeline)))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


class _Run:
    """A collector, in the client library's sense, of a run that is over."""

    def __init__(self, results: Results, found: series.Load) -> None:
        self._results = results
        self._groups: dict[tuple[str, ...], list[Request]] = {}
        for request in found.requests:
            phase = series.phase_of(request, results.windows)
            labels = (phase, *(plain(request.tags.get(key, "")) for key in _LABELS[1:]))
            self._groups.setdefault(labels, []).append(request)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, those of a load only where there was one."""
        yield from self._of_the_run()
        if self._groups:
            yield from self._histograms()
            yield from self._counters()
        if self._results.summaries:
            yield from self._rates(self._results.summaries)

    def _of_the_run(self) -> Iterator[Metric]:
        results = self._results
        told = emulated(results.facts)
        info = {
            "run_id": plain(results.run_id),
            "scenario": plain(results.scenario),
            "started": plain(results.started),
            "emulated": "true" if told else "false",
            "emulated_parts": plain("; ".join(told)),
        }
        yield InfoMetricFamily("sandbox_run", "Which run this is, and what of its ground was not the real thing", info)
        verdict = StateSetMetricFamily("sandbox_verdict", "What came of it")
        verdict.add_metric([], {name: name == results.verdict for name in _VERDICTS})
        yield verdict
        checks = GaugeMetricFamily("sandbox_checks", "Checks by what came of them", labels=("status",))
        for name in _VERDICTS:
            checks.add_metric([name], results.count(name))
        yield checks
        took = GaugeMetricFamily("sandbox_run_duration_seconds", "First event to last", unit="seconds")
        took.add_metric([], results.duration)
        yield took
        if results.time_to_recover is not None:
            recover = GaugeMetricFamily(
                "sandbox_time_to_recover_seconds", "Fault to first good answer after the last bad one", unit="seconds"
            )
            recover.add_metric([], results.time_to_recover)
            yield recover

    def _histograms(self) -> Iterator[Metric]:
        for metric, (told, edges) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"sandbox_{metric}_seconds", told, labels=_LABELS, unit="seconds")
            for labels, requests in self._groups.items():
                values = np.sort(np.asarray(series.samples(requests, metric), dtype=float))
                counts = np.searchsorted(values, edges, side="right")
                buckets = [(f"{float(edge)}", float(count)) for edge, count in zip(edges, counts, strict=True)]
                family.add_metric(labels, [*buckets, ("+Inf", float(len(values)))], float(values.sum()))
            yield family

    def _counters(self) -> Iterator[Metric]:
        ended = CounterMetricFamily("sandbox_requests", "Requests by how they ended", labels=(*_LABELS, "outcome"))
        tokens = CounterMetricFamily("sandbox_output_tokens", "Tokens of answered requests", labels=_LABELS)
        prompts = CounterMetricFamily("sandbox_input_tokens", "Tokens of their prompts, where told", labels=_LABELS)
        for labels, requests in self._groups.items():
            for outcome, count in Counter(plain(request.outcome) for request in requests).items():
                ended.add_metric([*labels, outcome], count)
            answered = [request for request in requests if request.outcome == "ok"]
            tokens.add_metric(labels, sum(map(series.received, answered)))
            prompts.add_metric(labels, sum(request.prompt_tokens or 0 for request in answered))
        yield from (ended, tokens, prompts)

    def _rates(self, summaries: Sequence[Summary]) -> Iterator[Metric]:
        for name, told in _RATES.items():
            family = GaugeMetricFamily(f"sandbox_{name}", told, labels=_LABELS)
            for summary in summaries:
                value = summary.good_fraction if name == "good_request_fraction" else getattr(summary, name)
                tags = summary.tags
                if value is not None:
                    family.add_metric([summary.phase, *(plain(tags.get(key, "")) for key in _LABELS[1:])], value)
            yield family
