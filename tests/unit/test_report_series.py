from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from timelines import Shape, events

from sandbox.judge import weigh as judge
from sandbox.report import charts, series
from sandbox.timeline import LoadStarted, Request


def _request(at: float, took: float = 0.1, outcome: str = "ok") -> Request:
    first = at + took / 2 if outcome == "ok" else None
    return Request(t=at + took, scheduled=at, sent=at, first=first, last=first, chunks=1, tokens=1, outcome=outcome)


def _whole(at: float, profile: str) -> Request:
    return Request(t=at + 0.1, scheduled=at, sent=at, tokens=0, outcome="ok", tags={"profile": profile})


def test_a_small_run_is_drawn_whole() -> None:
    found = series.over_time(series.load(events()), "ttft_intended")
    assert found.complete
    assert found.total == 1194


def test_a_big_run_is_thinned_and_keeps_its_slowest_and_fastest_request() -> None:
    load = series.Load(0.0, [_request(n / 100, 0.1 + (n * 7919 % 1000) / 5000) for n in range(50_000)])
    load.requests[31_234] = _request(312.34, 99.0)
    found = series.over_time(load, "e2e")
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


@pytest.mark.parametrize("metric", ["ttft", "ttft_intended", "tpot", "icl", "e2e", "sched_lag"])
def test_latencies_are_the_judges(metric: str) -> None:
    timeline = events(Shape(lost=20))
    results = judge(timeline)
    load = series.load(timeline)
    for summary in results.summaries:
        inside = [r for r in load.requests if summary.phase in {"all", series.phase_of(r, results.windows)}]
        values = series.samples(inside, metric)
        told = summary.percentiles[metric]
        assert len(values) == told["count"] > 0
        assert float(np.percentile(values, 99)) == pytest.approx(told["p99"])


def test_a_phase_that_lost_requests_never_reaches_all_of_them() -> None:
    timeline = events(Shape(lost=20))
    curves = series.distribution(series.load(timeline), judge(timeline).windows)
    points = curves["fault"].points
    assert curves["baseline"].points[-1].y == 1.0
    assert points[-1].y < 0.95
    assert all(a.y < b.y and a.x <= b.x for a, b in pairwise(points))


def test_requests_of_a_profile_that_does_not_stream_do_not_lower_the_curve_of_those_that_do() -> None:
    streaming = [_request(n).model_copy(update={"tags": {"profile": "chat"}}) for n in range(10)]
    whole = [_whole(n, "embeddings") for n in range(90)]
    load = series.Load(0.0, sorted([*streaming, *whole], key=lambda r: r.scheduled))
    assert series.distribution(load, [])["load"].points[-1].y == 1.0
    assert series.distribution(load, [])["load"].of == 10
    lost = _request(99, outcome="timeout").model_copy(update={"tags": {"profile": "chat"}})
    more = series.Load(0.0, [*load.requests, lost])
    assert series.distribution(more, [])["load"].points[-1].y == pytest.approx(10 / 11)


def test_the_rate_asked_is_the_schedules_and_drops_are_not_sent() -> None:
    requests = [_request(n / 10, 0.35) for n in range(200)]
    for index in range(100, 150):
        at = index / 10
        requests[index] = Request(t=at, scheduled=at, sent=None, outcome="dropped")
    made = series.paces(series.Load(0.0, requests))
    at_12 = next(part for part in made if part.start <= 12.0 < part.end)
    assert (at_12.asked, at_12.sent, at_12.dropped) == (pytest.approx(10.0), 0.0, pytest.approx(10.0))
    assert at_12.answered == 0.0
    width = made[0].end
    for name, count in (("asked", 200), ("sent", 150), ("answered", 150), ("dropped", 50)):
        total = sum(getattr(part, name) * max(part.end - part.start, width / 2) for part in made)
        assert total == pytest.approx(count), name


def test_a_closed_loop_asks_for_no_rate() -> None:
    timeline = [
        event.model_copy(update={"asked": {"process": "closed", "users": 4}})
        if isinstance(event, LoadStarted)
        else event
        for event in events()
    ]
    load = series.load(timeline)
    assert load.closed
    assert {part.asked for part in series.paces(load)} == {None}
    assert not series.load(events()).closed


def test_nothing_gives_nothing_to_draw() -> None:
    empty = series.load([])
    assert series.bins(empty) == []
    assert series.distribution(empty, []) == {}
    assert series.over_time(empty, "tpot").points == []
    assert series.paces(empty) == []
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
    assert sum(int(row[1]) + int(row[-1]) for row in chart.rows) == len(load.requests) == 1200
    assert sum(int(row[-1]) for row in chart.rows) == 20


def test_stretches_of_a_day_long_load_are_written_in_plain_numbers() -> None:
    chart = charts.latency(series.Load(0.0, [_request(0.0), _request(86_000.0)]), [])
    assert chart is not None
    assert chart.rows[-1][0] == "84600 to 86000.1"
