"""Bytes arrive at any boundaries; what is read from them must not depend on where those lie."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.load.sse import EventStream
from sandbox.load.wire import HttpReply, ProtocolError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


unhurried = settings(deadline=None)  # a busy machine is no mistake of ours


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def chunked(parts: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts if part)
    return HEAD + body + b"0\r\n" + trailer + b"\r\n"


cuts = st.lists(st.integers(min_value=0, max_value=10_000), max_size=40)


@unhurried
@given(
    parts=st.lists(st.binary(max_size=60), max_size=8),
    cuts=cuts,
    extension=st.sampled_from([b"", b";name=value"]),
    trailer=st.sampled_from([b"", b"X-Trailer: yes\r\n"]),
)
def test_a_chunked_body_is_the_same_wherever_the_reads_fall(
    parts: list[bytes], cuts: list[int], extension: bytes, trailer: bytes
) -> None:
    reply = HttpReply()
    body = b"".join(reply.feed(piece) for piece in pieces(chunked(parts, extension, trailer), cuts))
    assert body == b"".join(parts)
    assert reply.complete
    assert reply.reusable
    assert reply.status == 200


@unhurried
@given(parts=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=8), cuts=cuts, short=st.integers(1, 5))
def test_a_chunked_body_that_lacks_its_last_bytes_is_never_complete(
    parts: list[bytes], cuts: list[int], short: int
) -> None:
    reply = HttpReply()
    for piece in pieces(chunked(parts)[:-short], cuts):
        reply.feed(piece)
    reply.eof()
    assert not reply.complete


@unhurried
@given(body=st.binary(max_size=200), cuts=cuts)
def test_a_body_of_known_length_is_the_same_wherever_the_reads_fall(body: bytes, cuts: list[int]) -> None:
    reply = HttpReply()
    data = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    assert b"".join(reply.feed(piece) for piece in pieces(data, cuts)) == body
    assert reply.complete
    assert not reply.reusable
    assert reply.status == 404


def test_a_body_without_announced_end_ends_with_the_connection() -> None:
    reply = HttpReply()
    assert reply.feed(b"HTTP/1.0 200 OK\r\n\r\nhello") == b"hello"
    assert not reply.complete
    reply.eof()
    assert reply.complete
    assert not reply.reusable


def test_an_interim_reply_is_passed_over() -> None:
    reply = HttpReply()
    assert reply.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") == b"ok"
    assert reply.status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"220 mail.example ESMTP\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        HEAD + b"zz\r\n",
        HEAD + b"+5\r\nhello\r\n",
        HEAD + b"1_0\r\nhello\r\n",
        HEAD + b"5\r\nhelloX\r\n",
        HEAD + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        HttpReply().feed(data)


def reference(data: bytes) -> list[bytes]:
    """The standard's own algorithm over the whole text, without any of our short cuts."""
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    held: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        if not line:
            events += [b"\n".join(held)] if held else []
            held = []
        elif line.startswith(b"data:"):
            held.append(line[5:].removeprefix(b" "))
    return events


payload = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=30)
event = st.tuples(
    st.lists(payload, min_size=1, max_size=3),
    st.sampled_from(["data: ", "data:"]),
    st.sampled_from(["", ": a comment", "event: message", "id: 7", "retry: 10"]),
)


@unhurried
@given(events=st.lists(event, max_size=6), newline=st.sampled_from(["\n", "\r\n", "\r"]), cuts=cuts, bom=st.booleans())
def test_events_are_the_same_wherever_the_reads_fall(
    events: list[tuple[list[str], str, str]], newline: str, cuts: list[int], bom: bool
) -> None:
    text = "".join(
        newline.join([other, *(start + line for line in lines)] if other else [start + line for line in lines])
        + newline * 2
        for lines, start, other in events
    ).encode()
    data = b"\xef\xbb\xbf" + text if bom else text
    stream = EventStream()
    found = [payload for piece in pieces(data, cuts) for payload in stream.feed(piece)]
    assert found == reference(data)
    assert len(found) == len(events)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_for_every_single_cut_and_every_pair_of_them(newline: bytes) -> None:
    # several lines in one event, and a payload that looks like a field: what a short cut could take for a whole event
    text = newline.join(
        [b": hello", b"data: one", b"data: two", b"", b"data: data: three", b"", b"data:four", b"", b""]
    )
    expected = [b"one\ntwo", b"data: three", b"four"]
    assert reference(text) == expected
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            stream = EventStream()
            parts = (text[:first], text[first:second], text[second:])
            assert [payload for part in parts for payload in stream.feed(part)] == expected, (first, second)


def test_a_payload_held_back_by_a_missing_blank_line_comes_out_at_the_announced_end() -> None:
    stream = EventStream()
    assert stream.feed(b"data: [DONE]\n") == []
    assert stream.finish() == [b"[DONE]"]
    half = EventStream()
    assert half.feed(b"data: [DO") == []
    assert half.finish() == [b"[DO"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    stream = EventStream()
    assert stream.feed(b"data: " + b"x" * 3_000_000) == []
    with pytest.raises(ProtocolError, match="more than"):
        stream.feed(b"x" * 3_000_000)


def test_a_line_that_is_no_field_comes_out_for_whoever_parses_it_to_refuse() -> None:
    assert EventStream().feed(b"<html>502</html>\n") == [b"<html>502</html>"]
    assert EventStream().feed(b'error: {"code": 500}\n\n') == [b'{"error": {"code": 500}}']


@pytest.mark.parametrize(
    ("lines", "payload"),
    [
        (b'event: error\ndata: {"message": "boom"}\n\n', b'{"error": {"message": "boom"}}'),
        (b'event: error\ndata: {"error": {"code": "x"}}\n\n', b'{"error": {"code": "x"}}'),
        (b'data: {"message": "boom"}\nevent:error\n\n', b'{"error": {"message": "boom"}}'),
        (b"event: error\ndata: boom\n\n", b'{"error": "boom"}'),
        (b"event: error\ndata: {}\n\n", b'{"error": "error"}'),
        (b'event: message\ndata: {"message": "hello"}\n\n', b'{"message": "hello"}'),
        (b'event: error\n\ndata: {"message": "after"}\n\n', b'{"message": "after"}'),
    ],
)
def test_an_event_called_error_is_one_wherever_the_reads_fall(lines: bytes, payload: bytes) -> None:
    for size in range(1, len(lines) + 1):
        stream = EventStream()
        found = [each for at in range(0, len(lines), size) for each in stream.feed(lines[at : at + size])]
        assert found == [payload]
        assert stream.between
    half = EventStream()
    assert half.feed(b"event: error\n") == []
    assert not half.between
