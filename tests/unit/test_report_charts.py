"""The pictures of a load, for every kind of load: open, closed, whole answers, mixes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import Field
from timelines import Shape, events

from sandbox.judge import weigh as judge
from sandbox.report import charts, charts_pace, charts_share, series
from sandbox.report.drawing import Chart
from sandbox.report.github import markdown
from sandbox.report.html import write_html
from sandbox.report.text import labelled, worth_showing
from sandbox.spec.results import Results, Summary
from sandbox.timeline import Event, LoadStarted, Request

DASH = "\N{EN DASH}"


class Tagged(Summary):
    """A summary of what tags name."""

    tags: dict[str, str] = Field(default_factory=dict)


def _closed(timeline: list[Event]) -> list[Event]:
    return [
        event.model_copy(update={"asked": {"process": "closed", "users": 8}})
        if isinstance(event, LoadStarted)
        else event
        for event in timeline
    ]


def _whole(timeline: list[Event]) -> list[Event]:
    """As a profile that does not stream leaves it: no first token, no chunks."""
    nothing = {"first": None, "last": None, "chunks": 0, "gaps": []}
    return [event.model_copy(update=nothing) if isinstance(event, Request) else event for event in timeline]


def _dropping(timeline: list[Event]) -> list[Event]:
    return [
        Request(t=e.scheduled, scheduled=e.scheduled, sent=None, outcome="dropped")
        if isinstance(e, Request) and 70 <= e.scheduled < 75
        else e
        for e in timeline
    ]


def _drawn(make: object, timeline: list[Event]) -> Chart:
    chart = make(series.load(timeline), judge(timeline).windows)  # type: ignore[operator]
    assert isinstance(chart, Chart)
    return chart


def _said(chart: Chart) -> str:
    return " ".join(re.findall(r">([^<>]+)</text>", chart.svg))


def test_the_rate_asked_stands_beside_what_was_sent_and_answered() -> None:
    chart = _drawn(charts_pace.pace, events())
    for name in ("asked", "sent", "answered"):
        assert re.search(rf"\b{name}\b", _said(chart)), name
    assert "dropped" not in _said(chart)
    assert "1,200 asked, 1,200 sent, 1,194 answered, 0 dropped" in chart.says
    assert chart.head == ["load second", "asked/s", "sent/s", "answered/s", "dropped/s"]


def test_drops_are_seen_and_told() -> None:
    chart = _drawn(charts_pace.pace, _dropping(events()))
    assert "dropped" in _said(chart)
    assert "1,200 asked, 1,100 sent" in chart.says
    assert "100 dropped" in chart.says
    assert 'fill="var(--o-dropped)"' in chart.svg
    row = next(row for row in chart.rows if row[0] == "30 to 32")
    assert row[1:] == ["20.0", "0.00", "0.00", "20.0"]


def test_a_closed_loop_has_no_line_of_what_was_asked() -> None:
    chart = _drawn(charts_pace.pace, _closed(events()))
    assert not re.search(r"\basked\b", _said(chart))
    assert "asked/s" not in chart.head
    assert "closed loop" in chart.caption
    assert "asked" not in chart.says.removeprefix(chart.title)


def test_a_load_that_does_not_stream_has_whole_answers_and_no_first_token() -> None:
    timeline = _whole(events())
    latency = _drawn(charts.latency, timeline)
    assert "first token" not in _said(latency)
    assert "per token" not in _said(latency)
    assert "whole answer" in _said(latency)
    assert "Nothing was streamed" in latency.caption
    assert {row[2] for row in latency.rows} == {DASH}
    shares = _drawn(charts_share.distribution, timeline)
    assert "time to the whole answer" in _said(shares)
    assert "first token" not in _said(shares)
    assert {row[0] for row in shares.rows} == {
        "whole answer, baseline", "whole answer, fault", "whole answer, recovery"
    }  # fmt: skip


def test_time_per_token_is_drawn_over_time_and_as_a_distribution() -> None:
    latency = _drawn(charts.latency, events())
    assert latency.svg.count('fill="var(--c-per)"') == 1194
    assert "Time per token: 18.7 ms in the middle" in latency.says
    shares = _drawn(charts_share.distribution, events())
    assert "time per token" in _said(shares)
    told = {row[0]: row for row in shares.rows}
    results = judge(events())
    baseline = next(summary for summary in results.summaries if summary.phase == "baseline")
    assert told["per token, baseline"][1] == f"{baseline.percentiles['tpot']['count']:,.0f}"


def test_answers_of_one_token_draw_no_time_per_token() -> None:
    one = {"chunks": 1, "tokens": 1, "gaps": []}
    timeline = [
        e.model_copy(update={**one, "last": e.first}) if isinstance(e, Request) and e.outcome == "ok" else e
        for e in events()
    ]
    assert "var(--c-per)" not in _drawn(charts.latency, timeline).svg
    assert {row[0].partition(",")[0] for row in _drawn(charts_share.distribution, timeline).rows} == {"first token"}


def test_a_share_that_too_few_requests_tell_of_is_a_dash() -> None:
    rows = {row[0]: row for row in _drawn(charts_share.distribution, events()).rows}
    fault = rows["first token, fault"]
    assert (fault[1], fault[5]) == ("227", DASH), "the 99th percentile needs 459"
    assert fault[4] != DASH
    assert rows["first token, recovery"][5] != DASH


def test_every_outcome_is_in_the_legend_with_its_count() -> None:
    chart = _drawn(charts_pace.throughput, events(Shape(lost=20)))
    for told in ("ok: 1,180", "http_error: 6", "truncated: 14"):
        assert told in _said(chart)


def _tagged(results: Results, *tags: dict[str, str]) -> Results:
    overall = results.summaries[0].model_dump()
    return results.model_copy(
        update={"summaries": [*results.summaries, *(Tagged(**{**overall, "tags": each}) for each in tags)]}
    )


def test_tenants_have_rows_where_there_are_several() -> None:
    results = _tagged(judge(events()), {"tenant": "red"}, {"tenant": "blue"}, {"model": "sim-8b"})
    assert [labelled(summary) for summary in worth_showing(results.summaries)] == [
        *("all", "baseline", "fault", "recovery", "tenant red", "tenant blue"),
    ]
    assert "| tenant blue | 1,200 |" in markdown(results)


def test_one_tenant_has_no_row_that_says_the_same_again(tmp_path: Path) -> None:
    results = _tagged(judge(events()), {"tenant": "red"})
    assert len(worth_showing(results.summaries)) == len(results.summaries) - 1
    page = write_html(results, events(), tmp_path / "report.html").read_text()
    assert '<th scope="row">all</th>' in page
    assert "tenant red</th>" not in page


@pytest.mark.parametrize("seconds", [10.0, 100.0])
def test_the_seconds_of_an_axis_are_written_out(seconds: float) -> None:
    chart = _drawn(charts_pace.pace, events(Shape(seconds=seconds, struck=None)))
    assert f"{seconds:g}" in _said(chart).split()
    assert not re.search(r"\de[+-]\d", _said(chart) + chart.svg)


@pytest.mark.parametrize("rate", [0.5, 200.0])
def test_slow_and_fast_loads_are_drawn(rate: float) -> None:
    timeline = events(Shape(rate=rate, struck=None))
    for make in (charts.latency, charts_pace.pace, charts_pace.throughput, charts_share.distribution):
        chart = _drawn(make, timeline)
        assert chart.svg.startswith("<svg")
        assert "NaN" not in chart.svg
        assert all(len(row) == len(chart.head) for row in chart.rows)
