"""What live tests may cost, from tests/budget.yaml, and what they did cost, printed at the end of the tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).parents[1]
FILE = TESTS / "budget.yaml"
SCENARIOS = "test_scenarios.py"


def planned() -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds that all live tests may take together, and those of each: cluster -> scenario or file -> seconds."""
    read = yaml.safe_load(FILE.read_text())
    return float(read["most"]), read["clusters"]


def what(nodeid: str) -> str:
    """The entry of the budget that a test belongs to: its scenario, or else its file."""
    file, _, test = nodeid.partition("::")
    name = Path(file).name
    return test.partition("[")[2].partition("]")[0] if name == SCENARIOS else name


class Clock:
    """Adds up how long tests take, setup and teardown included."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()  # entry -> seconds

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[what(report.nodeid)] += report.duration  # type: ignore[assignment]  # a Counter of floats

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = told(self.seconds, planned()[1])
        if lines:
            terminalreporter.section("where the time of live tests went (seconds, and what the budget says)")
            for line in lines:
                terminalreporter.line(line)


def told(seconds: Mapping[str, float], clusters: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Each cluster's time, and under it that of its scenarios and files, the longest first; those that ran alone."""
    lines = []
    for cluster, entries in clusters.items():
        ran = {name: seconds[name] for name in entries if seconds.get(name)}
        if ran:
            lines.append(f"{cluster:<44}{sum(ran.values()):>6.0f} {sum(entries[name] for name in ran):>6.0f}")
        for name in sorted(ran, key=lambda name: -ran[name]):
            more = "  more than planned" if ran[name] > 1.5 * entries[name] + 5 else ""
            lines.append(f"  {name:<42}{ran[name]:>6.0f} {entries[name]:>6.0f}{more}")
    return lines
