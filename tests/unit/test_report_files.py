from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from timelines import Shape, events, hostile_results

from sandbox.errors import UsageError
from sandbox.judge import weigh as judge
from sandbox.kube import stacks
from sandbox.report import write
from sandbox.report.files import read_results, write_atomic, write_results
from sandbox.report.github import annotation_lines, announce, markdown
from sandbox.report.junit import write_junit
from sandbox.report.suite import write_suite
from sandbox.report.write import write_all
from sandbox.spec.results import Results
from sandbox.timeline import ClientBeat, LoadFinished, LoadStarted, Request

FAILING = Shape(breach=True, lost=20)


def _parsed(path: Path) -> ET.Element:
    return ET.parse(path).getroot()  # noqa: S314 - written by the code under test


def _empty(verdict: str = "invalid") -> Results:
    update = {"checks": [], "summaries": [], "verdict": verdict, "headline": "Nothing was checked."}
    return judge(events()).model_copy(update=update)


@pytest.mark.parametrize("results", [judge(events()), judge(events(FAILING)), hostile_results(), _empty()])
def test_results_read_back_are_the_results_written(results: Results, tmp_path: Path) -> None:
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path) == results
    assert json.loads((tmp_path / "results.json").read_text())["apiVersion"] == "sandbox/v1"


def test_a_results_file_with_mistakes_names_each_of_them(tmp_path: Path) -> None:
    path = write_results(judge(events()), tmp_path / "results.json")
    broken = json.loads(path.read_text()) | {"verdict": "maybe", "extra": 1}
    path.write_text(json.dumps(broken))
    with pytest.raises(UsageError) as caught:
        read_results(path)
    assert {line.split(":")[0] for line in caught.value.details} == {"verdict", "extra"}
    assert str(path) in str(caught.value)
    assert "sandbox judge" in caught.value.fix


def test_results_that_are_not_there_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_results(tmp_path / "results.json")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a", "old")
    with pytest.raises(TypeError):
        write_atomic(path, 7)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


def test_junit_has_one_case_per_check_with_failures_and_errors_apart(tmp_path: Path) -> None:
    results = judge(events(FAILING))
    suite = _parsed(write_junit(results, tmp_path / "junit.xml")).find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [check.id for check in results.checks]
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    assert failed == [check.id for check in results.checks if check.status == "fail"]
    assert suite.get("failures") == str(len(failed)) == "3"
    assert suite.get("timestamp") == "2026-04-12T09:15:00"
    properties = {found.get("name"): found.get("value") for found in suite.iter("property")}
    assert properties["run_id"] == results.run_id
    assert properties["all.requests"] == "1200"
    assert float(properties["fault.ttft_intended_p99_seconds"] or 0) > 0


def test_what_could_not_be_proven_is_an_error_not_a_failure(tmp_path: Path) -> None:
    suite = _parsed(write_junit(judge(events(Shape(proven=False))), tmp_path / "junit.xml"))[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")
    error = suite.find("testcase/error")
    assert error is not None
    assert "matched nothing" in (error.text or "")


@pytest.mark.parametrize("verdict", ["invalid", "fail"])
def test_a_run_without_checks_does_not_look_green(verdict: str, tmp_path: Path) -> None:
    suite = _parsed(write_junit(_empty(verdict), tmp_path / "junit.xml"))[0]
    assert suite.get("tests") == "1"
    assert int(suite.get("failures", "0")) + int(suite.get("errors", "0")) == 1


def test_junit_of_hostile_text_is_xml_and_carries_it_as_text(tmp_path: Path) -> None:
    suite = _parsed(write_junit(hostile_results(), tmp_path / "junit.xml"))[0]
    assert len(list(suite)) == 1 + 3
    assert suite.find(".//script") is None
    assert "<script>" in (suite.findtext("testcase/failure") or "")


def test_step_summary_and_annotations_appear_only_in_a_workflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [judge(events(FAILING))]
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    quiet = io.StringIO()
    assert announce(runs, quiet) is None
    assert quiet.getvalue() == ""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    told = io.StringIO()
    assert announce(runs, told) == summary
    assert summary.read_text().startswith("before\n## ✗ FAIL")
    assert [line.split(" ")[0] for line in told.getvalue().splitlines()] == ["::error"] * 3


def test_hostile_text_stays_inside_its_annotation_and_its_table_cell() -> None:
    results = hostile_results()
    for line in annotation_lines([results]):
        assert "\n" not in line
        assert "\r" not in line
        assert line.startswith(("::error title=", "::warning title="))
        head = line.split("::")[1]
        assert head.count("=") == 1 + head.count("src=") + head.count("onerror=")
    text = markdown(results)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "script" in line]
    assert len(rows) == 2
    assert all(row.count("|") == 6 for row in rows)
    assert "<script" not in text
    assert "<img" not in text
    assert "[link]" not in text
    assert "@all" not in text


def test_the_step_summary_says_what_was_emulated_and_on_which_machine() -> None:
    results = judge(events())
    facts = results.facts | {"host": {"cores": 2, "memory_gib": 15.6, "system": "Linux", "engine": "<x>"}}
    text = markdown(results.model_copy(update={"facts": facts}))
    assert "> **Emulated: stack vllm-sim.** The figures say" in text
    assert "<sub>On 2 cores, 15.6 GiB, Linux, &#60;x&#62;</sub>" in text
    assert "Emulated" not in markdown(results.model_copy(update={"facts": {}}))


def test_the_stack_without_a_model_says_that_it_is_emulated_and_the_real_one_does_not() -> None:
    all_ = [stacks.load(name) for name in stacks.names()]
    serving = {stack.metadata.name: stack.emulated for stack in all_ if stack.serves_model}
    assert serving == {"llama-cpp": False, "vllm-sim": True}


def test_the_step_summary_dashes_out_percentiles_of_too_few_samples() -> None:
    row = {
        line.split("|")[1].strip(): line.split("|") for line in markdown(judge(events())).splitlines() if "|" in line
    }
    assert row["all"][7].strip() == "668 ms"
    assert row["fault"][6].strip() == "426 ms"
    assert row["fault"][7].strip() == row["fault"][8].strip() == "\N{EN DASH}", "227 requests are too few for a p99"


def test_the_step_summary_says_it_where_no_request_went_wrong() -> None:
    assert "Recovered in 1.91 s." in markdown(judge(events()))
    assert "No bad request." in markdown(judge(events(Shape(lost=0))))


def test_annotations_stay_within_what_github_shows() -> None:
    results = judge(events(FAILING))
    bad = next(check for check in results.checks if check.status == "fail")
    many = results.model_copy(update={"checks": [bad] * 40})
    lines = annotation_lines([many])
    assert len(lines) == 10
    assert "and 31 more" in lines[-1]


ALL = {"results.json", "junit.xml", "report.html", "metrics.om", "load.json"}


def test_all_files_are_there_when_nothing_goes_wrong(tmp_path: Path) -> None:
    written = write_all(judge(events()), events(), tmp_path)
    assert {name: path.name for name, path in written.files.items()} == {name: name for name in ALL}
    assert (written.missing, written.missed(tmp_path)) == ([], None)


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_file_can_fail_alone_and_is_said_with_the_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "x").touch()
    written = write_all(judge(events()), events(), tmp_path)
    assert ALL - set(written.files) == {name}
    assert all(path.stat().st_size > 1000 for path in written.files.values())
    assert written.missing == [f"{tmp_path / name}: Is a directory"]
    assert "sandbox judge" in str(written.missed(tmp_path))
    assert not list(tmp_path.glob(".*"))


def test_an_old_file_that_could_not_be_replaced_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(judge(events()), events(), tmp_path)
    monkeypatch.setattr(write, "write_html", lambda *_: 1 / 0)
    (line,) = write_all(judge(events(FAILING)), events(FAILING), tmp_path).missing
    assert line == f"{tmp_path / 'report.html'}: ZeroDivisionError: division by zero; what lies there is older"


def test_a_run_without_a_load_has_no_figures_of_one_but_its_verdict_as_a_metric(tmp_path: Path) -> None:
    timeline = [event for event in events() if not isinstance(event, LoadStarted | LoadFinished | Request | ClientBeat)]
    written = write_all(judge(timeline), timeline, tmp_path)
    assert set(written.files) == ALL - {"load.json"}
    assert not (tmp_path / "load.json").exists()


def test_junit_carries_tokens_and_how_many_samples_each_figure_is_of(tmp_path: Path) -> None:
    results = judge(events(FAILING))
    suite = _parsed(write_junit(results, tmp_path / "junit.xml"))[0]
    found = {
        each.get("name"): float(each.get("value") or 0)
        for each in suite.iter("property")
        if "." in each.get("name", "")
    }
    summaries = {summary.phase: summary for summary in results.summaries}
    fault = summaries["fault"]
    assert found["fault.token_rate"] == pytest.approx(fault.token_rate, rel=1e-4)
    assert found["fault.tpot_p50_seconds"] == pytest.approx(fault.percentiles["tpot"]["p50"], rel=1e-4)
    assert found["fault.icl_samples"] == fault.percentiles["icl"]["count"]
    assert found["all.outcome_truncated"] == summaries["all"].outcomes["truncated"]
    assert found["all.icl_max_seconds"] == pytest.approx(summaries["all"].percentiles["icl"]["max"], rel=1e-4)


def test_a_suite_links_to_each_report_and_has_a_junit_suite_per_run(tmp_path: Path) -> None:
    runs = [
        judge(events(shape)).model_copy(update={"run_id": f"run {number} #é"})
        for number, shape in enumerate((Shape(), FAILING))
    ]
    (tmp_path / runs[0].run_id).mkdir()
    (tmp_path / runs[0].run_id / "report.html").touch()
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "report.html").touch()
    written = write_suite(runs, tmp_path, {runs[1].run_id: elsewhere}).files
    page = written["index.html"].read_text()
    assert 'href="run%200%20%23%C3%A9/report.html"' in page
    assert 'href="other/report.html"' in page
    assert page.index("other/report.html") < page.index("run%200"), "the worst comes first"
    assert "FAIL · 2 scenarios: 1 passed, 1 failed" in page
    root = _parsed(written["junit.xml"])
    assert [suite.get("failures") for suite in root] == ["0", "3"]
    assert root.get("failures") == "3"


def test_a_suite_does_not_link_to_a_report_that_is_not_there(tmp_path: Path) -> None:
    page = write_suite([judge(events())], tmp_path).files["index.html"].read_text()
    assert 'href="20' not in page
    assert "no report was written" in page
    assert '<span class="stamp">emulated</span>' in page


def test_a_suite_of_nothing_is_invalid(tmp_path: Path) -> None:
    assert "INVALID" in write_suite([], tmp_path).files["index.html"].read_text()
