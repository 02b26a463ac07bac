"""The report in a real browser: seen, clicked, printed, and watched for what it fetches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from timelines import HOSTILE, Shape, events, hostile_results

from sandbox.judge import weigh as judge
from sandbox.report.html import write_html
from sandbox.report.suite import write_suite

pytestmark = pytest.mark.browser

_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_LUMINANCE = """(() => {
  const lum = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const style = getComputedStyle(document.documentElement);
  const probe = document.createElement('i'); document.body.append(probe);
  const colour = name => { probe.style.color = style.getPropertyValue(name); return getComputedStyle(probe).color; };
  const pairs = [['--ink', '--paper'], ['--muted', '--paper'], ['--muted', '--raised'], ['--pass', '--paper'],
    ['--fail', '--paper'], ['--invalid', '--paper'], ['--pass', '--pass-bg'], ['--fail', '--fail-bg'],
    ['--invalid', '--invalid-bg'], ['--muted', '--fail-bg'], ['--muted', '--pass-bg'], ['--muted', '--invalid-bg'],
    ['--link', '--paper'], ['--band-ink', '--paper']];
  const found = Object.fromEntries(pairs.map(([a, b]) => [a + ' on ' + b, ratio(lum(colour(a)), lum(colour(b)))]));
  probe.remove(); return found; })()"""


def executable() -> str:
    """A Chromium. None is a failure: what is skipped without a word is taken for tested."""
    found = chromium.find()
    if found is None:
        pytest.fail("no Chromium here; fix: apt-get install -y chromium (or leave these out: -m 'not browser')")
    return found


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    with chromium.browser(executable(), tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    shapes = {
        "pass": Shape(),
        "fail": Shape(breach=True, lost=20, detail=HOSTILE),
        "invalid": Shape(proven=False),
        "big": Shape(seconds=500.0, rate=100.0, lost=400),
    }
    found = {}
    for name, shape in shapes.items():
        timeline = events(shape)
        found[name] = write_html(judge(timeline), timeline, folder / f"{name}.html")
    found["hostile"] = write_html(hostile_results(), [], folder / "hostile.html")
    return found


def test_a_machine_without_chromium_fails_and_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match="apt-get install -y chromium"):
        executable()


@pytest.mark.parametrize("name", ["pass", "fail", "invalid", "big", "hostile"])
def test_a_page_fetches_nothing_and_the_console_stays_silent(
    name: str, tab: chromium.Tab, pages: dict[str, Path]
) -> None:
    tab.look(1280, 900)
    tab.open(pages[name])
    assert tab.fetched() == []
    assert tab.complaints() == []


def test_a_page_that_fetches_or_runs_something_is_caught(tab: chromium.Tab, tmp_path: Path) -> None:
    page = tmp_path / "sabotaged.html"
    (tmp_path / "style.css").write_text("p { color: red }")
    page.write_text('<!doctype html><link rel="stylesheet" href="style.css"><script>oops()</script>')
    tab.open(page)
    assert [url.rsplit("/", 1)[1] for url in tab.fetched()] == ["style.css"]
    assert any("oops" in text for text in tab.complaints())


def test_a_script_smuggled_into_the_page_is_not_run(tab: chromium.Tab, pages: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "smuggled.html"
    text = pages["pass"].read_text(encoding="utf-8")
    page.write_text(text.replace("<main", "<script>window.owned = 1</script><main"), encoding="utf-8")
    tab.open(page)
    assert tab.ask("window.owned") is None
    assert any("Content Security Policy" in text for text in tab.complaints())


@pytest.mark.parametrize(("name", "word"), [("pass", "PASS"), ("fail", "FAIL"), ("invalid", "INVALID")])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_verdict_is_seen_without_scrolling(
    name: str, word: str, size: tuple[int, int], tab: chromium.Tab, pages: dict[str, Path]
) -> None:
    tab.look(*size)
    tab.open(pages[name])
    box = tab.ask(
        "(() => {const r = document.querySelector('h1 .word').getBoundingClientRect(); return [r.top, r.bottom]})()"
    )
    assert 0 <= box[0] < box[1] < size[1] / 2
    assert tab.ask("document.querySelector('h1 .word').innerText") == word
    assert tab.ask(f"document.title.startsWith('{word}')")


@pytest.mark.parametrize("name", ["pass", "fail", "invalid", "hostile"])
@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_the_page_never_scrolls_sideways(name: str, width: int, tab: chromium.Tab, pages: dict[str, Path]) -> None:
    tab.look(width, 900)
    tab.open(pages[name])
    assert tab.ask(_OVERFLOW) <= 0


def test_the_fault_window_lies_where_the_fault_was(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    tab.look(1280, 900)
    tab.open(pages["pass"])
    found = tab.ask(
        """[...document.querySelectorAll('.chart')].map(chart => {
          const bands = [...chart.querySelectorAll('[fill="var(--band)"]')].map(b => b.getBoundingClientRect());
          const plot = chart.querySelector('.role-axis-domain line, .role-axis-domain').getBoundingClientRect();
          return bands.map(b => [b.left - plot.left, b.width, plot.width]); })"""
    )
    assert [len(bands) for bands in found] == [2, 0, 1, 2], "in each panel over time, in no other"
    for left, width, whole in (band for bands in found for band in bands):
        assert left / whole == pytest.approx(20.0 / 60.3, abs=0.02)
        assert width / whole == pytest.approx(11.0 / 60.3, abs=0.02)
    assert tab.ask("getComputedStyle(document.querySelector('[fill=\"var(--band)\"]')).fill") != "none"
    assert "pod.kill 20.0 to 31.0 s" in tab.ask("document.querySelector('.chart').textContent")


def test_the_rates_drawn_are_those_of_the_table(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    """A line's height on the screen, against the figures under the chart."""
    tab.look(1280, 900)
    tab.open(pages["pass"])
    line, twenty, fifteen = tab.ask(
        """(() => {
          const chart = [...document.querySelectorAll('figure')].find(f => f.innerText.startsWith('Rate asked'));
          const line = chart.querySelector('.mark-line path[stroke="var(--c-first)"]');
          const labels = [...chart.querySelectorAll('.role-axis-label text[text-anchor=end]')];
          const at = text => { const found = labels.find(l => l.textContent === text).getBoundingClientRect();
            return (found.top + found.bottom) / 2; };
          const box = line.getBoundingClientRect();
          return [(box.top + box.bottom) / 2, at('20'), at('15')]; })()"""
    )
    assert line == pytest.approx(twenty, abs=(fifteen - twenty) / 5), "20 a second were sent, all the time"


def test_a_check_opens_by_mouse_and_by_keyboard_and_shows_its_evidence(
    tab: chromium.Tab, pages: dict[str, Path]
) -> None:
    tab.look(1280, 900)
    tab.open(pages["pass"])
    seen = (
        "document.querySelector('#checks .check .body').checkVisibility({contentVisibilityAuto: true}) && "
        "document.querySelector('#checks .check').open"
    )
    assert tab.ask(seen) is False
    tab.click("#checks .check summary")
    assert tab.ask(seen) is True
    assert "slo/ttft_intended" in tab.ask("document.querySelector('#checks .check').innerText")
    tab.ask("document.querySelector('#checks .check summary').focus()")
    tab.press("Enter")
    assert tab.ask(seen) is False


def test_dark_is_dark_light_is_light_and_paper_is_always_light(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    dot = "getComputedStyle(document.querySelector('.chart [fill=\"var(--c-first)\"]')).fill"
    found = {}
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        tab.look(1280, 900, scheme=scheme, media=media)
        tab.open(pages["pass"])
        found[scheme, media] = (tab.ask(paper), tab.ask(dot))
    assert found["light", "screen"][0] == "rgb(255, 255, 255)"
    assert found["dark", "screen"][0] == "rgb(20, 23, 26)"
    assert found["light", "screen"][1] != found["dark", "screen"][1]
    assert found["dark", "print"] == found["light", "screen"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: str, tab: chromium.Tab, pages: dict[str, Path]) -> None:
    tab.look(1280, 900, scheme=scheme)
    tab.open(pages["fail"])
    poor = {pair: round(ratio, 2) for pair, ratio in tab.ask(_LUMINANCE).items() if ratio < 4.5}
    assert poor == {}


def test_a_screen_reader_gets_headings_in_order_named_charts_and_tables_with_headers(
    tab: chromium.Tab, pages: dict[str, Path]
) -> None:
    tab.look(1280, 900)
    tab.open(pages["fail"])
    levels = tab.ask("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert tab.ask("[...document.querySelectorAll('table')].every(t => t.querySelector('th[scope=col]'))")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in nodes if node.get("role", {}).get("value") in {"img", "image"}]
    names = [node["name"]["value"] for node in images if not node.get("ignored")]
    assert [name.split(".")[0] for name in names] == [
        "Latency over time",
        "Latency distribution by phase",
        "Rate asked and achieved",
        "Throughput over time",
    ]


def test_paper_shows_every_check_with_its_evidence(tab: chromium.Tab, pages: dict[str, Path]) -> None:
    tab.look(1280, 900, media="print")
    tab.open(pages["pass"])
    heights = tab.ask("[...document.querySelectorAll('.check .body')].map(b => b.getBoundingClientRect().height)")
    assert len(heights) == len(judge(events()).checks)
    assert min(heights) > 40
    printed = tab.pdf()
    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 12


def test_the_index_of_a_suite_leads_to_each_report(tab: chromium.Tab, pages: dict[str, Path], tmp_path: Path) -> None:
    run = judge(events())
    written = write_suite([run], tmp_path, {run.run_id: pages["pass"]}).files
    tab.look(1280, 900)
    tab.open(written["index.html"])
    assert tab.fetched() == []
    assert tab.complaints() == []
    assert tab.ask("document.querySelector('a').href") == pages["pass"].resolve().as_uri()
    assert tab.ask(_OVERFLOW) <= 0
