from __future__ import annotations

import pytest
from timelines import Shape, events

from sandbox.judge import judge
from sandbox.report import charts, series
from sandbox.timeline import Request


def _request(at: float, took: float = 0.1, outcome: str = "ok") -> Request:
    first = at + took / 2 if outcome == "ok" else None
    return Request(t=at + took, scheduled=at, sent=at, first=first, last=first, chunks=1, tokens=1, outcome=outcome)


def test_a_small_run_is_drawn_whole() -> None:
    found = series.first_tokens(series.load(events()))
    assert found.complete
    assert found.total == 1194


def test_a_big_run_is_thinned_and_keeps_its_slowest_and_fastest_request() -> None:
    load = series.Load(0.0, [_request(n / 100, 0.1 + (n * 7919 % 1000) / 5000) for n in range(50_000)])
    load.requests[31_234] = _request(312.34, 99.0)
    found = series.whole_answers(load)
    assert not found.complete
    assert len(found.points) <= 1200
    assert max(p.y for p in found.points) == pytest.approx(99.0)
    assert min(p.y for p in found.points) == pytest.approx(min(r.t - r.scheduled for r in load.requests))


def test_rates_add_up_to_the_requests_and_tokens_there_were() -> None:
    load = series.load(events())
    made = series.bins(load)
    width = made[0].end - made[0].start
    spans = [max(part.end - part.start, width / 2) for part in made]
    ended = sum(rate * span for part, span in zip(made, spans, strict=True) for rate in part.requests.values())
    tokens = sum(part.tokens * span for part, span in zip(made, spans, strict=True))
    assert ended == pytest.approx(len(load.requests))
    assert tokens == pytest.approx(sum(r.chunks if r.tokens is None else r.tokens for r in load.requests))


def test_the_page_counts_phases_as_the_judge_does() -> None:
    timeline = events()
    results = judge(timeline)
    load = series.load(timeline)
    mine: dict[str, int] = {}
    for request in load.requests:
        phase = series.phase_of(request, results.windows)
        mine[phase] = mine.get(phase, 0) + 1
    assert mine == {summary.phase: summary.requests for summary in results.summaries if summary.phase != "all"}
    assert set(mine) == {"baseline", "fault", "recovery"}


def test_first_token_times_are_the_judges() -> None:
    timeline = events()
    overall = next(summary for summary in judge(timeline).summaries if summary.phase == "all")
    values = [point.y for point in series.first_tokens(series.load(timeline)).points]
    assert max(values) == pytest.approx(overall.percentiles["ttft_intended"]["max"])
    answers = [point.y for point in series.whole_answers(series.load(timeline)).points]
    assert max(answers) == pytest.approx(overall.percentiles["e2e"]["max"])


def test_a_phase_that_lost_requests_never_reaches_all_of_them() -> None:
    timeline = events(Shape(lost=20))
    curves = series.distribution(series.load(timeline), judge(timeline).windows)
    assert curves["baseline"][-1].y == 1.0
    assert curves["fault"][-1].y < 0.95
    assert all(a.y < b.y and a.x <= b.x for a, b in zip(curves["fault"], curves["fault"][1:], strict=False))


def test_nothing_gives_nothing_to_draw() -> None:
    empty = series.load([])
    assert series.bins(empty) == []
    assert series.distribution(empty, []) == {}
    assert series.first_tokens(empty).points == []
    assert series.causes(empty) == ([], 0)


def test_one_request_gives_one_bin() -> None:
    made = series.bins(series.Load(0.0, [_request(0.0)]))
    assert len(made) == 1
    assert made[0].end == pytest.approx(0.1)


def test_causes_come_commonest_first_and_the_rest_is_counted() -> None:
    requests = [_request(n, outcome="timeout") for n in range(3)] + [_request(9, outcome="http_error")]
    found, more = series.causes(series.Load(0.0, requests), most=1)
    assert [(cause.outcome, cause.count) for cause in found] == [("timeout", 3)]
    assert more == 1


def test_the_table_under_the_latency_chart_counts_every_request_once() -> None:
    timeline = events(Shape(lost=20))
    load = series.load(timeline)
    chart = charts.latency(load, judge(timeline).windows)
    assert chart is not None
    assert sum(int(row[1]) + int(row[5]) for row in chart.rows) == len(load.requests) == 1200
    assert sum(int(row[5]) for row in chart.rows) == 20


def test_stretches_of_a_day_long_load_are_written_in_plain_numbers() -> None:
    chart = charts.latency(series.Load(0.0, [_request(0.0), _request(86_000.0)]), [])
    assert chart is not None
    assert chart.rows[-1][0] == "84600 to 86000.1"
