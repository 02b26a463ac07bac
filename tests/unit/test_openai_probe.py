"""The probe that asks the model, against answers that a server may give."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import probes
from sandbox.probes import PROBES, openai
from tests.unit.api_server import Answer, ApiServer, serving

PATH = "/v1/chat/completions"


def said(message: Any) -> Answer:
    return Answer(200, {"choices": [{"message": message}]})


def asked(tmp_path: Path, answer: Answer) -> tuple[probes.Seen, ApiServer]:
    with serving(tmp_path) as (server, kube):
        server.on("POST", PATH, answer)
        return probes.look("openai.chat", probes.Context(kube, "inference", kube.server, "m"), {}), server


@pytest.mark.parametrize("message", [{"content": "Hello."}, {"content": None, "reasoning_content": "Hello."}])
def test_a_completion_with_content_holds(message: Any, tmp_path: Path) -> None:
    seen, server = asked(tmp_path, said(message))
    assert seen.ok is True
    assert "'Hello.' after" in seen.detail
    assert server.seen("POST", PATH)[0].body["model"] == "m"


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (Answer(200, "<html>a gateway's page</html>"), "a gateway's page"),
        (Answer(200, {"error": {"message": "no such model"}}), "no such model"),
        (Answer(200, {"choices": []}), "choices"),
        (Answer(200, ["x"]), "x"),
        (said(None), "message"),
        (said("Hello."), "Hello."),
        (said({"content": ""}), "empty completion"),
        (Answer(503, "no healthy upstream"), "HTTP 503"),
    ],
)
def test_an_answer_that_is_no_completion_does_not_hold_and_is_shown(answer: Answer, shown: str, tmp_path: Path) -> None:
    seen, _ = asked(tmp_path, answer)
    assert seen.ok is False
    assert shown in seen.detail


def test_a_proxy_of_the_environment_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    seen, _ = asked(tmp_path, said({"content": "Hello."}))
    assert seen.ok is True, seen.detail


def test_a_server_that_is_not_there_does_not_hold() -> None:
    nothing: Any = None
    seen = probes.look("openai.chat", probes.Context(nothing, "inference", "http://127.0.0.1:9", "m"), {})
    assert seen.ok is False
    assert "no answer from http://127.0.0.1:9" in seen.detail


def test_what_the_probe_does_not_take_is_refused() -> None:
    (problem,) = PROBES.problems("openai.chat", {"stack": "vllm-sim"})
    assert problem == (("openai.chat", "stack"), "unknown parameter; known: prompt, max_tokens, within")


def test_an_answer_that_comes_too_late_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the transport is for each read: an answer that trickles in may take longer in all."""
    clock = iter([100.0, 120.1])
    monkeypatch.setattr(openai, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    seen, _ = asked(tmp_path, said({"content": "Hello."}))
    assert seen.ok is False
    assert "after 20.10 s" in seen.detail
