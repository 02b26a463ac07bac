"""`junit.xml`: one test case per check, as Jenkins, GitLab, GitHub actions and Azure read it.

A check that failed is a `<failure>`; one that could not be proven is an `<error>`: both turn the
build red, and the consumers tell them apart as we do.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from sandbox.report.files import write_atomic
from sandbox.report.text import moment, one_line, plain
from sandbox.spec.results import Check, Results, Summary, worst

_HEADLINE_LIMIT = 300


def write_junit(results: Results, path: Path) -> Path:
    """Write one run as one suite."""
    return write_suites([results], path)


def write_suites(runs: list[Results], path: Path) -> Path:
    """Write several runs, each a suite of its own."""
    suites = [_suite(results) for results in runs]
    root = ET.Element("testsuites", name="sandbox")
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    root.set("time", f"{sum(results.duration for results in runs):.3f}")
    root.extend(suites)
    ET.indent(root)
    return write_atomic(path, '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n")


def _suite(results: Results) -> ET.Element:
    checks = [*results.checks, *_verdict(results)]
    suite = ET.Element(
        "testsuite",
        name=plain(results.scenario),
        tests=str(len(checks)),
        failures=str(sum(check.status == "fail" for check in checks)),
        errors=str(sum(check.status == "invalid" for check in checks)),
        skipped="0",
        time=f"{results.duration:.3f}",
    )
    started = moment(results.started)
    if started:  # the common schema has no time zone: UTC
        suite.set("timestamp", started.strftime("%Y-%m-%dT%H:%M:%S"))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(results).items():
        ET.SubElement(properties, "property", name=plain(name), value=plain(value))
    for check in checks:
        suite.append(_case(check, results.scenario))
    return suite


def _verdict(results: Results) -> list[Check]:
    """A case for the verdict itself where the checks alone would show a better one, or nothing at all."""
    if worst(check.status for check in results.checks) == results.verdict and results.checks:
        return []
    return [
        Check(
            id="verdict",
            group="validity",
            title="the run as a whole",
            status=results.verdict,
            observed=results.verdict,
            expected="pass",
            reason=results.headline,
        )
    ]


def _case(check: Check, scenario: str) -> ET.Element:
    case = ET.Element("testcase", classname=plain(f"{scenario}.{check.group}"), name=plain(check.id), time="0")
    if check.status != "pass":
        message = f"{check.title}: {check.observed}, expected {check.expected}"
        verdict = ET.SubElement(
            case,
            "failure" if check.status == "fail" else "error",
            message=one_line(message, _HEADLINE_LIMIT),
            type=check.status,
        )
        verdict.text = plain("\n".join(filter(None, [message, check.reason])))
    told = [check.title, f"observed: {check.observed}", f"expected: {check.expected}"]
    if check.samples is not None:
        told.append(f"samples: {check.samples}")
    ET.SubElement(case, "system-out").text = plain("\n".join(told + check.evidence))
    return case


def _properties(results: Results) -> dict[str, str]:
    found = {"run_id": results.run_id, "verdict": results.verdict, "headline": results.headline}
    if results.time_to_recover is not None:
        found["time_to_recover_seconds"] = f"{results.time_to_recover:.3f}"
    for summary in results.summaries:
        found.update(_figures(summary))
    for workload in results.workloads:
        figures = workload.model_dump(exclude={"workload", "said", "scheduling_seconds"})
        figures |= {f"scheduling_{name}_seconds": value for name, value in workload.scheduling_seconds.items()}
        found |= {f"{workload.workload}.{key}": f"{value:.6g}" for key, value in figures.items() if value is not None}
    return found


def _figures(summary: Summary) -> dict[str, str]:
    """Every figure of a group, named as a selector names it: `fault.token_rate`, `all{tenant:red}.tpot_p99_seconds`."""
    known = summary.model_dump(exclude={"phase", "tags", "outcomes", "percentiles", "good_fraction"})
    figures: dict[str, float | None] = {key: value for key, value in known.items() if isinstance(value, int | float)}
    figures |= {"good_request_fraction": summary.good_fraction}
    figures |= {f"outcome_{name}": count for name, count in summary.outcomes.items()}
    for metric, values in summary.percentiles.items():
        figures |= {
            f"{metric}_samples" if name == "count" else f"{metric}_{name}_seconds": value
            for name, value in values.items()
        }
    tags = ",".join(f"{key}:{value}" for key, value in summary.tags.items())
    group = f"{summary.phase}{{{tags}}}" if tags else summary.phase
    return {f"{group}.{key}": f"{value:.6g}" for key, value in figures.items() if value is not None}
