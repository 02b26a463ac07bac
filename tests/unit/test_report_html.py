from __future__ import annotations

import functools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from timelines import HOSTILE, Shape, events, hostile_results

from sandbox.judge import weigh as judge
from sandbox.report import charts
from sandbox.report.html import write_html
from sandbox.spec.results import Results
from sandbox.timeline import AttackEvent, Event, PhaseChanged, Request

_LOADS = {"src", "srcset", "action", "formaction", "data", "poster", "background", "ping"}
Whole = Callable[[Shape], tuple[Results, str, "_Page"]]
_VOID = {"meta", "link", "br", "img", "input", "hr"}


class _Page(HTMLParser):
    """What a browser would fetch or run, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.fetched: list[str] = []
        self.ran: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.said = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in _LOADS or (name in {"href", "xlink:href"} and tag != "a"):
                self.fetched.append(value or "")
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.ran.append(f"{tag} {name}")
        if tag in {"script", "iframe", "object", "embed"}:
            self.ran.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.said += data


def _written(results: Results, timeline: list[Event], tmp_path: Path) -> tuple[str, _Page]:
    text = write_html(results, timeline, tmp_path / "report.html").read_text(encoding="utf-8")
    return text, _Page(text)


def _whole(shape: Shape, tmp_path: Path) -> tuple[Results, str, _Page]:
    timeline = events(shape)
    results = judge(timeline)
    return results, *_written(results, timeline, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The page of a shape, written once."""
    return functools.cache(lambda shape: _whole(shape, tmp_path_factory.mktemp("page")))


@pytest.mark.parametrize("shape", [Shape(), Shape(breach=True, lost=20, detail=HOSTILE), Shape(proven=False)])
def test_the_page_is_whole_runs_nothing_and_fetches_nothing(shape: Shape, whole: Whole) -> None:
    _, text, page = whole(shape)
    assert page.open == []
    assert page.ran == []
    assert all(link.startswith("data:") for link in page.fetched)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids)), "an id stands twice"
    assert "default-src 'none'" in text


def test_the_look_for_scripts_finds_one() -> None:
    page = _Page('<img src="http://example.invalid/x" onerror="x()"><script>x()</script>')
    assert page.ran == ["img onerror", "script"]
    assert page.fetched == ["http://example.invalid/x"]


def test_hostile_text_everywhere_is_shown_and_does_nothing(tmp_path: Path) -> None:
    timeline = events(Shape(lost=20, detail=HOSTILE))
    judged = judge(timeline)
    hostile = hostile_results()
    windows = [window.model_copy(update={"name": HOSTILE}) for window in judged.windows]
    results = hostile.model_copy(update={"windows": windows, "summaries": judged.summaries})
    text, page = _written(results, timeline, tmp_path)
    assert page.open == []
    assert page.ran == []
    assert "img" not in page.tags
    assert page.said.count("<script>alert") > 10
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ufffe]", text)


def test_every_check_and_every_line_of_evidence_is_on_the_page(whole: Whole) -> None:
    results, _, page = whole(Shape(breach=True, lost=20))
    for check in results.checks:
        for line in (check.title, check.observed, check.expected, check.reason, check.id, *check.evidence):
            assert line in page.said, line


def test_what_went_wrong_stands_above_the_charts_and_open(whole: Whole) -> None:
    _, text, _ = whole(Shape(breach=True, lost=20))
    assert text.index("What went wrong") < text.index("Under load")
    assert text.count('<details class="check fail" open') == 3


def test_a_pass_has_no_section_for_what_went_wrong(whole: Whole) -> None:
    _, text, _ = whole(Shape())
    assert "What went wrong" not in text
    assert "What could not be proven" not in text


def test_the_fault_window_is_drawn_and_named(whole: Whole) -> None:
    _, text, page = whole(Shape())
    assert "pod.kill 20.0 to 31.0 s" in page.said
    assert 'fill="var(--band)"' in text
    _, text, _ = whole(Shape(struck=None))
    assert 'fill="var(--band)"' not in text


def test_charts_tell_their_figures_to_those_who_do_not_see_them(whole: Whole) -> None:
    _, text, _ = whole(Shape())
    told = re.findall(r'role="img" aria-label="([^"]+)"', text)
    assert len(told) == 4
    assert "1,200 requests, 6 failed" in told[0]
    assert "pod.kill from 20.0 to 31.0 s" in told[0]


def test_attacks_show_attempt_and_twin_and_a_breach_is_marked(whole: Whole) -> None:
    _, text, page = whole(Shape(breach=True))
    assert "not held" in text
    assert "(had to be denied)" in page.said
    assert "4 secrets" in page.said
    assert "by Pod Security" in page.said


def test_an_attack_is_marked_as_the_judge_found_it(tmp_path: Path) -> None:
    timeline = [
        event.model_copy(update={"by": "Q"}) if isinstance(event, AttackEvent) and event.by == "P" else event
        for event in events()
    ]
    results = judge(timeline)
    assert results.verdict == "invalid"
    text, _ = _written(results, timeline, tmp_path)
    table = text[text.index('<table class="attacks">') :]
    assert re.findall(r'class="mark (\w+)"', table) == ["invalid", "pass"]


def test_an_emulated_ground_is_stamped_and_a_real_one_is_not(tmp_path: Path, whole: Whole) -> None:
    results, text, _ = whole(Shape())
    stamp = '<span class="stamp">emulated</span> stack vllm-sim'
    assert text.index(stamp) < text.index('id="verdict"') < text.index("<main")
    facts = {about: values for about, values in results.facts.items() if about != "stack"}
    text, _ = _written(results.model_copy(update={"facts": facts}), events(), tmp_path)
    assert 'class="stamp"' not in text


def test_the_machine_that_the_figures_are_of_stands_with_the_verdict(tmp_path: Path) -> None:
    results = judge(events())
    host = {"cores": 2, "memory_gib": 15.6, "system": "Linux 6.1 x86_64", "engine": HOSTILE}
    text, page = _written(results.model_copy(update={"facts": {"host": host}}), events(), tmp_path)
    assert "On 2 cores, 15.6 GiB, Linux 6.1 x86_64, <script>" in page.said
    assert text.index("On 2 cores") < text.index("<main")
    assert page.ran == []


def test_a_check_says_how_many_samples_it_stands_on_and_does_not_complain_of_evidence(tmp_path: Path) -> None:
    results = judge(events())
    (found, *_) = [check for check in results.checks if check.samples is not None]
    for samples, complains in ((54321, False), (None, True)):
        check = found.model_copy(update={"samples": samples, "evidence": []})
        _, page = _written(results.model_copy(update={"checks": [check]}), [], tmp_path)
        assert ("54,321" in page.said) is not complains
        assert ("No further evidence" in page.said) is complains


def test_the_commands_on_the_page_name_the_real_file_and_folder(tmp_path: Path) -> None:
    results, folder = judge(events()), tmp_path / "my runs" / "1"
    text, _ = _written(results.model_copy(update={"source": "mine/slow start.yaml"}), [], folder)
    assert f"sandbox judge &#39;{folder}&#39;" in text
    assert "sandbox run &#39;mine/slow start.yaml&#39;" in text
    text, _ = _written(results, events(), folder)
    assert "sandbox run scenarios/chaos/survive-a-lost-replica.yaml" in text


def test_a_stretch_after_the_judging_lies_within_its_lane(tmp_path: Path) -> None:
    timeline, results = events(), judge(events())
    begun = results.duration + 1
    told = [
        PhaseChanged(t=begun, name="report", status="started"),
        PhaseChanged(t=begun + 5, name="report", status="ok"),
    ]
    text, _ = _written(results, [*timeline, *told], tmp_path)
    bars = re.findall(r'<rect x="([\d.]+)" y="1" width="([\d.]+)" height="10"/>', text)
    assert bars
    assert max(float(x) + float(width) for x, width in bars) == pytest.approx(1000, abs=0.2)


def test_an_empty_run_still_gives_a_page(tmp_path: Path) -> None:
    results = hostile_results().model_copy(update={"checks": [], "facts": {}, "notes": [], "verdict": "invalid"})
    text, page = _written(results, [], tmp_path)
    assert page.open == []
    assert "Nothing was checked" in page.said
    assert "<figure>" not in text


@pytest.mark.parametrize("outcome", ["ok", "timeout"])
def test_a_run_of_one_request_gives_a_page_with_charts(outcome: str, tmp_path: Path) -> None:
    timeline = [event for event in events() if not isinstance(event, Request)]
    first = 42.2 if outcome == "ok" else None
    timeline.append(Request(t=42.5, scheduled=42.0, sent=42.0, first=first, last=first, chunks=1, outcome=outcome))
    text, page = _written(judge(timeline), timeline, tmp_path)
    assert page.open == []
    assert "could not be drawn" not in text
    assert "NaN" not in text
    assert text.count("<figure>") == (4 if outcome == "ok" else 3)


def test_fifty_thousand_requests_stay_a_small_file_that_says_what_it_left_out(whole: Whole) -> None:
    _, text, page = whole(Shape(seconds=500.0, rate=100.0, lost=400))
    assert len(text.encode()) < 3_000_000
    assert re.search(r"Of 49,\d{3} answered requests 1,\d{3} are drawn", page.said)


def test_a_chart_that_cannot_be_drawn_does_not_cost_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no <renderer>")

    monkeypatch.setattr(charts, "latency", broken)
    _, text, page = _whole(Shape(), tmp_path)
    assert text.count("<figure>") == 3
    assert "chart could not be drawn: RuntimeError: no <renderer>" in page.said


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    assert _whole(Shape(), tmp_path)[1] == _whole(Shape(), tmp_path)[1]
