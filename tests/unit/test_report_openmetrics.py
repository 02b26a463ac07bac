"""`metrics.om`, read back with the client library's own strict parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from timelines import HOSTILE, Shape, events, hostile_results

from sandbox.judge import weigh as judge
from sandbox.report import series
from sandbox.report.openmetrics import exposition, write_metrics
from sandbox.timeline import Event, Request


def _read(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def _families(timeline: list[Event]) -> dict[str, Metric]:
    return _read(exposition(judge(timeline), timeline))


def _value(family: Metric, suffix: str = "", **labels: str) -> float:
    wanted = family.name + suffix
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == wanted and all(sample.labels.get(key) == value for key, value in labels.items())
    )


def test_the_file_is_openmetrics_from_the_first_line_to_the_eof(tmp_path: Path) -> None:
    timeline = events()
    text = write_metrics(judge(timeline), timeline, tmp_path / "metrics.om").read_text()
    assert text.endswith("# EOF\n")
    assert len(_read(text)) == 16


def test_a_text_that_is_cut_is_not_taken() -> None:
    text = exposition(judge(events()), events())
    with pytest.raises(ValueError, match="EOF"):
        _read(text.removesuffix("# EOF\n"))


@pytest.mark.parametrize("metric", ["ttft", "ttft_intended", "tpot", "icl", "e2e"])
def test_histograms_count_every_sample_of_each_phase_once(metric: str) -> None:
    timeline = events(Shape(lost=20))
    results = judge(timeline)
    family = _read(exposition(results, timeline))[f"sandbox_{metric}_seconds"]
    assert (family.type, family.unit) == ("histogram", "seconds")
    for summary in results.summaries:
        if summary.phase == "all":
            continue
        told = summary.percentiles[metric]
        assert _value(family, "_count", phase=summary.phase) == told["count"]
    assert {sample.labels["phase"] for sample in family.samples} == {"baseline", "fault", "recovery"}
    load = series.load(timeline)
    values = np.asarray(series.samples(load.requests, metric))
    assert _value(family, "_sum") == pytest.approx(values.sum())
    edges = sorted({float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels})
    for edge in edges:
        counted = sum(
            sample.value
            for sample in family.samples
            if sample.name.endswith("_bucket") and float(sample.labels["le"]) == edge
        )
        assert counted == (values <= edge).sum(), edge
    assert len(edges) > 15
    assert edges[-1] == float("inf")


def test_a_sample_on_the_edge_of_a_bucket_is_in_it() -> None:
    request = Request(t=1.0, scheduled=0.0, sent=0.0, first=0.5, last=0.5, chunks=1, tokens=1, outcome="ok")
    family = _read(exposition(hostile_results(), [request]))["sandbox_ttft_seconds"]
    assert _value(family, "_bucket", le="0.5") == 1
    assert _value(family, "_bucket", le="0.3") == 0


def test_outcomes_tokens_and_rates_are_those_of_the_results() -> None:
    timeline = events(Shape(lost=20))
    results = judge(timeline)
    found = _read(exposition(results, timeline))
    for summary in results.summaries:
        if summary.phase == "all":
            assert _value(found["sandbox_request_rate"], phase="all") == pytest.approx(summary.request_rate)
            assert _value(found["sandbox_token_rate"], phase="all") == pytest.approx(summary.token_rate)
            continue
        for outcome, count in summary.outcomes.items():
            assert _value(found["sandbox_requests"], "_total", phase=summary.phase, outcome=outcome) == count
        rate = _value(found["sandbox_good_request_fraction"], phase=summary.phase)
        assert rate == pytest.approx(summary.good_fraction)
    assert found["sandbox_requests"].type == "counter"
    assert _value(found["sandbox_requests"], "_total") == 1200
    assert _value(found["sandbox_output_tokens"], "_total") == 1180 * 12


@pytest.mark.parametrize(
    ("shape", "verdict"), [(Shape(), "pass"), (Shape(breach=True), "fail"), (Shape(proven=False), "invalid")]
)
def test_the_verdict_is_one_of_three(shape: Shape, verdict: str) -> None:
    family = _families(events(shape))["sandbox_verdict"]
    assert family.type == "stateset"
    assert {s.labels["sandbox_verdict"]: s.value for s in family.samples} == {
        name: float(name == verdict) for name in ("pass", "fail", "invalid")
    }


def test_time_to_recover_is_there_where_there_was_a_fault() -> None:
    results = judge(events())
    recovered = _families(events())["sandbox_time_to_recover_seconds"]
    assert _value(recovered) == pytest.approx(results.time_to_recover)
    assert "sandbox_time_to_recover_seconds" not in _families(events(Shape(struck=None)))


def test_an_emulated_ground_is_stamped_and_a_real_one_is_not() -> None:
    results = judge(events())
    stamped = _read(exposition(results, events()))["sandbox_run"].samples[0].labels
    assert (stamped["emulated"], stamped["emulated_parts"]) == ("true", "stack vllm-sim")
    real = results.model_copy(update={"facts": {"stack": {"name": "llama-cpp", "emulated": False}}})
    assert _read(exposition(real, events()))["sandbox_run"].samples[0].labels["emulated"] == "false"


def test_tags_become_labels() -> None:
    def tagged(event: Event, index: int) -> Event:
        if not isinstance(event, Request):
            return event
        tags = {"tenant": ("red", "blue")[index % 2], "model": "sim-8b", "profile": "chat-short"}
        return event.model_copy(update={"tags": tags})

    timeline = [tagged(event, index) for index, event in enumerate(events())]
    family = _families(timeline)["sandbox_requests"]
    labels: list[dict[str, Any]] = [sample.labels for sample in family.samples]
    assert {each["tenant"] for each in labels} == {"red", "blue"}
    assert {(each["model"], each["profile"]) for each in labels} == {("sim-8b", "chat-short")}
    assert _value(family, "_total") == 1200


def test_hostile_text_stays_a_label() -> None:
    request = Request(t=1.0, scheduled=0.0, sent=0.0, outcome=HOSTILE, tags={"tenant": f'{HOSTILE}"}} 1\nx 2'})
    text = exposition(hostile_results(), [request])
    found = _read(text)
    assert "x" not in found
    assert not {char for char in text if ord(char) < 32} - {"\n"}
    assert "<script>" in found["sandbox_requests"].samples[0].labels["tenant"]


def test_a_run_without_a_load_has_its_verdict() -> None:
    found = _read(exposition(hostile_results(), []))
    assert set(found) == {"sandbox_run", "sandbox_verdict", "sandbox_checks", "sandbox_run_duration_seconds"}
