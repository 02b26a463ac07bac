"""Every way a reply can end has one outcome, and the short cut over known events changes nothing."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.load.reply import Reply
from sandbox.timeline import EMPTY

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"[DONE]"


unhurried = settings(deadline=None)  # a busy machine is no mistake of ours


def chunk(text: str | None, reason: str | None = None, key: str = "content") -> dict[str, Any]:
    delta = {} if text is None else {key: text}
    return {"id": "a", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


USAGE = {"id": "a", "model": "m", "choices": [], "usage": {"completion_tokens": 42}}
ROLE = {"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def wire(events: list[Any], *, end: bool = True, compact: bool = False) -> bytes:
    data = HEAD
    for item in events:
        text = (
            item if isinstance(item, bytes) else json.dumps(item, separators=(",", ":") if compact else None).encode()
        )
        body = b"data: " + text + b"\n\n"
        data += b"%x\r\n%s\r\n" % (len(body), body)
    return data + (b"0\r\n\r\n" if end else b"")


def read(data: bytes, *, stream: bool = True, step: int = 10**6, close: str = "closed") -> Reply:
    """Feed `data` in steps; the clock counts the reads from 1. Then the peer closes."""
    reply = Reply(stream=stream)
    now = 0
    for place in range(0, len(data), step):
        now += 1
        if reply.feed(data[place : place + step], now):
            return reply
    reply.closed(now + 1, close)
    return reply


@unhurried
@given(texts=st.lists(st.text(max_size=12), max_size=12), step=st.integers(1, 300), compact=st.booleans())
def test_content_chunks_are_counted_the_same_wherever_the_reads_fall(
    texts: list[str], step: int, compact: bool
) -> None:
    reply = read(wire([ROLE, *map(chunk, texts), chunk(None, "stop"), USAGE, DONE], compact=compact), step=step)
    assert (reply.outcome, reply.detail) == (("ok", "") if any(texts) else ("empty", EMPTY))
    assert len(reply.arrivals) == sum(1 for text in texts if text)
    assert list(reply.arrivals) == sorted(reply.arrivals)
    assert (reply.tokens, reply.content_bytes) == (42, len("".join(texts).encode()))
    assert reply.first_bytes == next((len(text.encode()) for text in texts if text), None)


@st.composite
def packed(draw: st.DrawFn) -> tuple[list[str], bytes, list[int], list[int]]:
    """Texts, a reply of them in arbitrary HTTP chunks, where each content event ends in it, and read boundaries."""
    texts = draw(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=12))
    raw = draw(st.booleans())  # as most servers write, or with \\u escapes for all but ASCII
    items = [ROLE, *map(chunk, texts), chunk(None, "stop"), USAGE, DONE]
    events = [
        b"data: " + (item if isinstance(item, bytes) else json.dumps(item, ensure_ascii=not raw).encode()) + b"\n\n"
        for item in items
    ]
    body, ends = b"".join(events), list(accumulate(map(len, events)))
    anywhere = draw(st.sets(st.integers(1, len(body) - 1), max_size=12))
    cuts = ends[:-1] if draw(st.booleans()) else sorted(anywhere)  # an event a chunk, as servers do, or not
    data, at, place = HEAD, {}, 0
    for cut in [*cuts, len(body)]:
        data += b"%x\r\n" % (cut - place)
        at |= {end: len(data) + end - place for end in ends if place < end <= cut}
        data += body[place:cut] + b"\r\n"
        place = cut
    data += b"0\r\n\r\n"
    contents = [at[end] for text, end in zip(texts, ends[1:], strict=False) if text]
    return texts, data, contents, sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=20)))


@unhurried
@given(packed=packed(), keep=st.booleans())
def test_each_chunk_is_dated_by_the_read_that_completed_its_event_wherever_the_boundaries_fall(
    packed: tuple[list[str], bytes, list[int], list[int]], keep: bool
) -> None:
    texts, data, contents, cuts = packed
    reply = Reply(stream=True, keep=keep)
    for place, cut in zip([0, *cuts], [*cuts, len(data)], strict=True):
        reply.feed(data[place:cut], cut, cut - place)  # the clock reads how much has been read
    expected = [next(cut for cut in [*cuts, len(data)] if cut >= end) for end in contents]
    assert list(reply.arrivals) == expected
    since = {cut: cut - place for place, cut in zip([0, *cuts], [*cuts, len(data)], strict=True)}
    assert list(reply.uncertainty) == [since[seen] for seen in expected]
    assert reply.end is not None
    assert reply.end_uncertainty == since[reply.end]
    assert reply.content_bytes == len("".join(texts).encode())
    assert (reply.outcome, reply.tokens, reply.received) == ("ok" if expected else "empty", 42, len(data))
    assert reply.text == ("".join(texts) if keep else "")


def test_events_that_come_together_are_each_counted() -> None:
    data = wire([chunk(f" {n}") for n in range(50)], end=False)
    head, body = data[: len(HEAD)], data[len(HEAD) :]
    reply = Reply(stream=True)
    reply.feed(head, 1)
    reply.feed(body, 2)
    reply.feed(body, 3)
    assert len(reply.arrivals) == 100


@pytest.mark.parametrize("size", [b"+1", b"0x", b"_"])
def test_a_known_event_in_a_chunk_whose_size_is_none_is_not_passed_over(size: bytes) -> None:
    known = wire([chunk("a")], end=False)[len(HEAD) :]
    reply = Reply(stream=True)
    for part in (HEAD, known, known, size + known):
        reply.feed(part, 1)
    assert (reply.outcome, len(reply.arrivals)) == ("inband_error", 2)


def test_bytes_that_are_no_text_in_a_known_event_are_malformed() -> None:
    known = json.dumps(chunk("MARK"), ensure_ascii=False).encode()
    for keep in (False, True):
        reply = Reply(stream=True, keep=keep)
        reply.feed(wire([chunk("a"), chunk("b"), known.replace(b"MARK", b"\xff")], end=False), 1)
        assert reply.outcome == "inband_error"


@unhurried
@given(texts=st.lists(st.text(max_size=8), max_size=10), bad=st.integers(0, 9), step=st.integers(1, 300))
def test_a_malformed_event_is_found_at_any_place_even_among_known_ones(texts: list[str], bad: int, step: int) -> None:
    events: list[Any] = [chunk(text) for text in texts]
    broken = json.dumps(chunk("x")).encode()[:-1]
    events.insert(min(bad, len(events)), broken)
    reply = read(wire([*events, chunk(None, "stop"), DONE]), step=step)
    assert reply.outcome == "inband_error"
    assert "malformed" in reply.detail


@unhurried
@given(cut=st.integers(0, 10_000), step=st.integers(1, 300), how=st.sampled_from(["closed", "broke (reset)"]))
def test_a_stream_cut_anywhere_before_its_last_event_is_truncated_never_ok(cut: int, step: int, how: str) -> None:
    data = wire([ROLE, *(chunk(f" {n}") for n in range(5)), chunk(None, "stop"), USAGE, DONE])
    last = data.index(b"data: [DONE]\n\n") + len(b"data: [DONE]\n\n")
    reply = read(data[: cut % last], step=step, close=how)
    assert reply.outcome == "truncated"
    assert read(data[:last], step=step, close=how).outcome == "ok"


@pytest.mark.parametrize("text", [b'a"b', b"a\\", b'a", "b": "c\\', b"a\\x"])
def test_an_event_that_differs_from_a_known_one_only_by_broken_text_is_malformed(text: bytes) -> None:
    known = json.dumps(chunk("MARK")).encode()
    reply = read(wire([chunk("a"), chunk("b"), known.replace(b"MARK", text), chunk(None, "stop"), DONE]))
    assert reply.outcome == "inband_error"


def test_an_event_that_hides_more_than_text_between_known_ends_is_read_in_full() -> None:
    known = b'{"choices": [{"delta": {"content": "MARK"}}]}'
    more = b'{"choices": [{"delta": {"content": ""}, "finish_reason": "stop", "last": {"content": "x"}}]}'
    assert more.startswith(known[:36])
    assert more.endswith(known[-5:])
    reply = read(wire([known, known, more]))
    assert (reply.outcome, len(reply.arrivals)) == ("ok", 2)


def test_text_that_looks_like_json_of_ours_is_only_text() -> None:
    nasty = ['","finish_reason":"stop"', '{"error":1}', "[DONE]", '"content":""', "\\", '\\"', "\n\ndata: [DONE]\n\n"]
    for key in ("content", "reasoning_content", "reasoning"):
        reply = read(wire([chunk(text, key=key) for text in ["a", *nasty, "b"]], end=False))
        assert reply.outcome == "truncated"
        assert len(reply.arrivals) == len(nasty) + 2


def test_empty_deltas_after_a_known_event_are_not_content() -> None:
    reply = read(wire([chunk("a"), chunk(""), chunk(""), chunk("b"), chunk(None, "stop"), DONE]))
    assert reply.outcome == "ok"
    assert len(reply.arrivals) == 2


def test_first_and_last_content_are_dated_by_the_read_that_brought_them() -> None:
    parts = [HEAD, *(wire([item], end=False)[len(HEAD) :] for item in (ROLE, chunk("a"), chunk("b")))]
    reply = Reply(stream=True)
    for now, part in zip((10, 20, 30, 45), parts, strict=True):
        assert not reply.feed(part, now)
    assert list(reply.arrivals) == [30, 45]
    assert reply.begun


@pytest.mark.parametrize(
    ("events", "outcome", "said"),
    [
        ([chunk("a"), chunk(None, "stop"), DONE], "ok", ""),
        ([chunk("a"), chunk(None, "length")], "ok", ""),
        ([chunk("a", "stop"), DONE], "ok", ""),
        ([chunk(None, "stop"), DONE], "empty", EMPTY),
        ([chunk(""), chunk(None, "stop"), DONE], "empty", EMPTY),
        ([chunk("a"), DONE], "truncated", "finish_reason"),
        ([chunk("a")], "truncated", "finish_reason"),
        ([], "truncated", "0 content chunks"),
        ([chunk("a"), {"error": {"message": "engine died"}}, DONE], "inband_error", "engine died"),
        ([chunk("a"), {"object": "error", "message": "old"}], "inband_error", "old"),
        ([{"error": {"code": "content_filter"}}], "guardrail_blocked", "content_filter"),
        ([chunk("a"), chunk(None, "content_filter"), DONE], "guardrail_blocked", "content_filter"),
        ([chunk("a"), chunk(None, "error"), DONE], "inband_error", "finish_reason error"),
        ([chunk("a"), chunk(None, "abort"), DONE], "inband_error", "finish_reason abort"),
        ([chunk("a"), b"not json"], "inband_error", "malformed"),
        ([chunk("a"), b"[1, 2]"], "inband_error", "malformed"),
    ],
)
def test_each_way_a_whole_stream_can_end(events: list[Any], outcome: str, said: str) -> None:
    reply = read(wire(events))
    assert reply.outcome == outcome
    assert said in reply.detail
    assert (reply.outcome == "ok") == (reply.detail == "")


def test_a_count_below_zero_is_none() -> None:
    told = {"choices": [], "usage": {"completion_tokens": -3, "prompt_tokens": -1}}
    reply = read(wire([chunk("a"), chunk(None, "stop"), told, DONE]))
    assert (reply.outcome, reply.tokens, reply.prompt_tokens) == ("ok", None, None)


def plain(status: int, body: bytes, headers: bytes = b"Content-Type: application/json\r\n") -> bytes:
    return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (plain(503, b'{"error": "busy"}'), "http_error"),
        (plain(302, b""), "http_error"),
        (plain(204, b""), "http_error"),
        (plain(400, b'{"error": {"code": "content_filter"}}'), "guardrail_blocked"),
        (plain(400, b'{"error": {"code": "bad"}}'), "http_error"),
        (plain(403, b"", b"X-Guardrail-Blocked: pii\r\n"), "guardrail_blocked"),
        (plain(200, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}'), "inband_error"),
        (b"HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\nhalf", "http_error"),
        (b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\nhalf", "truncated"),
        (b"SSH-2.0-OpenSSH\r\n", "http_error"),
        (HEAD + b"xyz\r\n", "inband_error"),
        (b"", "truncated"),
        (HEAD, "truncated"),
    ],
)
def test_each_way_a_reply_that_is_no_stream_can_end(data: bytes, outcome: str) -> None:
    assert read(data).outcome == outcome


@pytest.mark.parametrize(
    ("body", "outcome", "tokens"),
    [
        (
            {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}},
            "ok",
            3,
        ),
        ({"choices": [{"text": "x", "finish_reason": "length"}]}, "ok", None),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": None}]}, "truncated", None),
        ({"choices": []}, "truncated", None),
        ({"choices": [{"finish_reason": "content_filter"}]}, "guardrail_blocked", None),
        ({"error": {"message": "no"}}, "inband_error", None),
        ([], "inband_error", None),
    ],
)
def test_each_way_a_whole_answer_can_end(body: Any, outcome: str, tokens: int | None) -> None:
    reply = read(plain(200, json.dumps(body).encode()), stream=False)
    assert (reply.outcome, reply.tokens) == (outcome, tokens)
    assert len(reply.arrivals) == 0


def test_an_outcome_never_changes_again() -> None:
    reply = read(wire([chunk("a"), {"error": {"message": "first"}}]))
    reply.closed(99, "closed")
    reply.gave_up(99, "silent")
    reply.failed("connect_error", 99, "late")
    assert reply.outcome == "inband_error"
    assert reply.end == 1


def test_silence_after_done_is_not_held_against_the_answer() -> None:
    reply = Reply(stream=True)
    reply.feed(wire([chunk("a"), chunk(None, "stop"), DONE], end=False), 5)
    reply.gave_up(500, "silent")
    assert (reply.outcome, reply.end) == ("ok", 5)
    waiting = Reply(stream=True)
    waiting.feed(wire([chunk("a"), chunk(None, "stop")], end=False), 5)
    waiting.gave_up(500, "silent")
    assert (waiting.outcome, waiting.end) == ("timeout", 500)


def test_bytes_of_text_are_those_of_every_choice_and_key_and_of_what_surrounds_a_known_text() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get", "arguments": '{"a":1}'}}
    both = {"choices": [{"delta": {"content": "ab"}}, {"index": 1, "delta": {"content": "\u00e9"}}]}
    beside = [{"choices": [{"delta": {"reasoning": "why", "content": text}}]} for text in ("a", "bc", "def")]
    for events, size in (
        ([chunk("ab", key="reasoning_content"), chunk("cd")], 4),
        ([{"choices": [{"delta": {"role": "assistant", "tool_calls": [call]}}]}], len("get" + '{"a":1}')),
        ([both, both, both], 3 * 4),
        (beside, 3 * 3 + 6),
    ):
        reply = read(wire([ROLE, *events, chunk(None, "stop"), USAGE, DONE]))
        assert (reply.outcome, reply.content_bytes) == ("ok", size)


def test_bytes_of_a_whole_answer_are_those_of_its_message() -> None:
    body = json.dumps({"choices": [{"message": {"content": "hello", "role": "assistant"}, "finish_reason": "stop"}]})
    reply = read(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode()), stream=False)
    assert (reply.outcome, reply.content_bytes) == ("ok", 5)
