"""An answer that is whole and says nothing: an outcome of its own, and not good, unless a profile allows it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_load_locust import plan, played, requests, settings, written
from test_load_reply import DONE, chunk, read, wire
from test_load_runner import PROFILE
from test_load_runner import plan as planned

from sandbox.load.golden import golden
from sandbox.load.reply import Reply
from sandbox.spec.base import Mistakes
from sandbox.spec.loadtest import Arrivals
from sandbox.spec.profile import Profile
from sandbox.timeline import EMPTY, EMPTY_ALLOWED, Timeline

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
CALL = {"index": 0, "id": "c", "function": {"name": "look", "arguments": "{}"}}


@pytest.fixture
def timeline(tmp_path: Path) -> Iterator[Timeline]:
    with Timeline(tmp_path / "timeline.jsonl") as opened:
        yield opened


def answered(message: dict[str, Any], *, stream: bool, **how: bool) -> Reply:
    reply = Reply(stream=stream, **how)
    if stream:
        said = {"choices": [{"index": 0, "delta": message, "finish_reason": None}]}
        data = wire([said, chunk(None, "stop"), DONE])
    else:
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        data = WHOLE % (len(body), body)
    assert reply.feed(data, 1)
    return reply


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ({"role": "assistant", "content": ""}, "empty"),
        ({"role": "assistant", "content": None}, "empty"),
        ({"content": "a"}, "ok"),
        ({"content": None, "reasoning_content": "a"}, "ok"),
        ({"content": None, "tool_calls": [CALL]}, "ok"),
    ],
)
def test_only_an_answer_without_any_text_and_call_is_empty(message: dict[str, Any], outcome: str, stream: bool) -> None:
    assert answered(message, stream=stream).outcome == outcome
    allowed = answered(message, stream=stream, allow_empty=True)
    assert (allowed.outcome, allowed.detail) == ("ok", EMPTY_ALLOWED if outcome == "empty" else "")


def test_what_ended_otherwise_is_not_made_empty_nor_allowed() -> None:
    for events, outcome in (([DONE], "truncated"), ([chunk(None, "content_filter"), DONE], "guardrail_blocked")):
        assert read(wire(events)).outcome == outcome


def test_a_connection_is_kept_after_an_empty_answer() -> None:
    assert answered({"content": ""}, stream=False).reusable


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.realtime
def test_a_planned_load_tells_empty_answers_apart(tmp_path: Path, timeline: Timeline, allowed: bool) -> None:
    profile = Profile.model_validate({**PROFILE.model_dump(by_alias=True), "allowEmpty": allowed})
    with golden(settings(tmp_path, tokens=0)) as server:
        arrivals = Arrivals(process="constant", rate=20)
        done = requests(played(planned(server, timeline, arrivals, 1.0, {"profile": profile}), timeline))
    wanted = ("ok", EMPTY_ALLOWED) if allowed else ("empty", EMPTY)
    assert Counter((request.outcome, request.detail) for request in done) == {wanted: 20}


ASKING = """
from locust import constant, events, task
from sandbox.load.user import StreamingUser

@events.request.add_listener
def told(exception, **_):
    print("failed" if exception else "fine")

class Visitor(StreamingUser):
    wait_time = constant(0.05)
    allow_empty = {allowed}
    @task
    def ask(self):
        answer = self.client.chat("hi", max_tokens=5, name="ask")
        assert answer.ok == {allowed}
"""


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.realtime
def test_a_streaming_user_and_what_locust_is_told_tell_them_apart(
    tmp_path: Path, timeline: Timeline, allowed: bool
) -> None:
    own = written(tmp_path, ASKING.format(allowed=allowed))
    with golden(settings(tmp_path, tokens=0)) as server:
        done = requests(played(plan(server, timeline, own, 1, 1.0), timeline))
    assert {request.outcome for request in done} == {"ok" if allowed else "empty"}
    log = Counter((tmp_path / "load.log").read_text().split())
    assert (log["fine"], log["failed"]) == ((len(done), 0) if allowed else (0, len(done)))


def test_embeddings_have_no_such_key() -> None:
    given = {
        "apiVersion": "sandbox/v1",
        "kind": "Profile",
        "metadata": {"name": "vectors", "description": "x"},
        "path": "embeddings",
        "prompts": ["a"],
    }
    assert Profile.model_validate(given).allow_empty is False
    with pytest.raises((ValueError, Mistakes), match="leave `allowEmpty` out"):
        Profile.model_validate({**given, "allowEmpty": True})
