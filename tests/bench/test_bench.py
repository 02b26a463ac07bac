from __future__ import annotations

import subprocess

import pytest

from tests.bench import __main__ as bench


def test_a_command_that_fails_is_no_figure_and_shows_what_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        bench.timed(bench.command("lint", "no-such-scenario"))
    assert "no-such-scenario" in capsys.readouterr().err


def test_a_command_that_succeeds_is_timed() -> None:
    assert bench.timed(bench.command("list", "scenarios")) > 0
