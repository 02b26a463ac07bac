"""The command line itself: every command explains itself, and a bug does not look like a broken promise."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from sandbox import cli, plan
from sandbox.errors import EXIT_INVALID, EXIT_USAGE

COMMANDS = [
    *((command.name or command.callback.__name__,) for command in cli.app.registered_commands if command.callback),
    *(("images", str(command.name)) for command in cli.images_app.registered_commands),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    said = CliRunner().invoke(cli.app, [*words, "--help"])
    assert said.exit_code == 0, said.exception
    assert "Usage" in said.output


def test_a_bug_of_ours_does_not_look_like_a_promise_that_did_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("whatever")

    monkeypatch.setattr(plan, "load_all", broken)
    monkeypatch.setattr(sys, "argv", ["sandbox", "lint", "x.yaml"])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == EXIT_INVALID
    assert "a bug in the sandbox" in capsys.readouterr().err


def test_what_clusters_say_is_shown_as_it_is() -> None:
    console = cli.Console(width=60)
    with console.capture() as shown:
        console.print(cli._table(("name", "problems"), [("solo", "[/red] said [errno 111]")]))
    assert "[/red] said [errno 111]" in shown.get()


def test_a_refusal_says_what_to_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sandbox", "schema", "nonsense"])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == EXIT_USAGE
    assert "fix: use one of: scenario" in capsys.readouterr().err
