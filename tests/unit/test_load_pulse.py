"""What the load client writes of itself and of a request: every figure is of the clock that it is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.load import record
from sandbox.load.client import Exchange
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.load.record import BEAT_NS, Known, Pulse, Recorder
from sandbox.load.reply import Reply
from sandbox.spec.base import Metadata
from sandbox.spec.lengths import Fixed
from sandbox.spec.loadtest import Arrivals
from sandbox.spec.profile import Profile
from sandbox.timeline import ClientBeat, Request, Timeline, read

SECOND = 1_000_000_000


class Clocks:
    """The wall's and the processor's, in nanoseconds, as the client reads them."""

    wall = cpu = 0

    def monotonic_ns(self) -> int:
        return self.wall

    def process_time_ns(self) -> int:
        return self.cpu


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    profile = Profile(
        kind="Profile",
        metadata=Metadata(name="test", description="One prompt."),
        prompts=["hi"],
        max_tokens=Fixed(kind="fixed", tokens=5),
    )
    with Timeline(tmp_path / "timeline.jsonl") as timeline:
        plan = LoadPlan(
            url="http://127.0.0.1:1",
            model="m",
            shares=[PlannedShare(profile=profile, model="m")],
            arrivals=Arrivals(rate=1),
            duration=1,
            epoch_ns=0,
            timeline=timeline.path,
        )
    return Recorder(plan)


def beats(recorder: Recorder, tmp_path: Path) -> list[ClientBeat]:
    del recorder
    return [event for event in read(tmp_path / "timeline.jsonl") if isinstance(event, ClientBeat)]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.96, 1.0])
def test_the_share_of_the_processor_is_its_time_in_the_walls(
    share: float, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(record, "time", clocks)
    pulse = Pulse(recorder, lambda: 3)
    for second in (1, 2):
        clocks.wall, clocks.cpu = second * SECOND, int(second * share * SECOND)
        pulse.beat(clocks.wall)
    assert [beat.cpu for beat in beats(recorder, tmp_path)] == pytest.approx([share, share])


def test_of_a_second_the_worst_beats_are_told_and_all_are_counted(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(record, "time", clocks)
    pulse = Pulse(recorder, lambda: 0, lambda: Known([0.001 * number for number in range(30)], 25, [0.002, 0.007]))
    for number in range(1, 101):
        clocks.wall = number * BEAT_NS
        pulse.beat(clocks.wall + (5_000_000 if number == 50 else 1_000_000))
    (beat,) = beats(recorder, tmp_path)
    assert (beat.beats, len(beat.lag)) == (100, 20)
    assert beat.lag[:2] == pytest.approx([0.005, 0.001])
    assert (beat.calibrated, len(beat.added)) == (30, 20)
    assert beat.added[0] == pytest.approx(0.029)
    assert beat.added[-1] == pytest.approx(0.010)
    assert (beat.checked, beat.uncovered, beat.uncovered_by, beat.stalls) == (25, 2, 0.007, [])


def test_a_stall_is_told_with_its_moment_once(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(record, "time", clocks)
    pulse = Pulse(recorder, lambda: 0)
    for late in (15, 50, 70, 99, 101):  # beats were due at 10, 20 … ms; nobody came until these
        pulse.beat(late * BEAT_NS // 10)
    assert [beat.stalls for beat in beats(recorder, tmp_path)] == []
    clocks.wall = SECOND
    pulse.beat(SECOND)
    (beat,) = beats(recorder, tmp_path)
    assert beat.stalls == [pytest.approx((0.02, 0.03)), pytest.approx((0.11, 0.89))]


@pytest.mark.parametrize("told", [(0.5, 0.5, 0.0), (2.0, 0.5, 0.75), (1.2, 0.2, 0.5), (0.0, 0.0, 0.0)])
def test_what_others_used_of_the_machine_is_all_that_was_used_but_our_own(
    told: tuple[float, float, float], recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cores, one second: two seconds of all cores, `used` of them by anybody and `own` by this process."""
    used, own, share = told
    clocks, seen = Clocks(), [(100.0, 40.0), (102.0, 40.0 + used)]
    monkeypatch.setattr(record, "time", clocks)
    monkeypatch.setattr(record, "_machine", lambda: seen.pop(0))
    pulse = Pulse(recorder, lambda: 0)
    clocks.wall, clocks.cpu = SECOND, int(own * SECOND)
    pulse.beat(clocks.wall)
    (beat,) = beats(recorder, tmp_path)
    assert beat.machine == pytest.approx(share)


def answered() -> Reply:
    reply = Reply(stream=True)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    reply.feed(head, 3 * SECOND)
    for second, text in ((4, "a"), (5, "b"), (7, "c")):
        reply.feed(b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text.encode(), second * SECOND)
    reply.feed(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n', 8 * SECOND)
    reply.closed(9 * SECOND, "closed")
    return reply


def test_each_time_of_a_request_is_that_of_what_it_is_called_after(recorder: Recorder, tmp_path: Path) -> None:
    reply = answered()
    recorder.request(1 * SECOND, Exchange(2 * SECOND, True, reply), "1", 0)
    (request,) = [event for event in read(tmp_path / "timeline.jsonl") if isinstance(event, Request)]
    assert (request.scheduled, request.sent, request.first, request.last, request.t) == (1, 2, 4, 7, 8)
    assert (request.gaps, request.chunks, request.outcome) == ([1, 2], 3, "ok")
    assert recorder.attempted == 1


def test_every_bound_is_written_and_never_less_than_it_was(recorder: Recorder, tmp_path: Path) -> None:
    reply = Reply(stream=True)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    event = b'data: {"choices": [{"delta": {"content": "ab"}, "finish_reason": "stop"}]}\n\n'
    reply.feed(head + event, 4 * SECOND, 1)
    reply.feed(event, 5 * SECOND, 7_120_000)
    reply.feed(event + b"data: [DONE]\n\n", 6 * SECOND, 7_120_001)
    reply.closed(9 * SECOND, "closed", 3 * SECOND)
    recorder.request(SECOND, Exchange(2 * SECOND, True, reply, 345_678), "1", 0)
    recorder.request(SECOND, Exchange(2 * SECOND, True, answered()), "2", 0)
    known, unknown = [event for event in read(tmp_path / "timeline.jsonl") if isinstance(event, Request)]
    assert known.uncertainty == [0.00001, 0.00712, 0.00713]
    assert (known.end_uncertainty, known.connect_uncertainty, known.content_bytes) == (0.00713, 0.00035, 6)
    assert (unknown.uncertainty, unknown.end_uncertainty, unknown.connect_uncertainty) == (None, None, None)
    assert unknown.content_bytes == 3


def test_what_was_never_sent_has_no_time_of_sending(recorder: Recorder, tmp_path: Path) -> None:
    reply = Reply(stream=True)
    reply.failed("connect_error", 3 * SECOND, "refused")
    recorder.request(1 * SECOND, Exchange(2 * SECOND, False, reply), "1", 0)
    recorder.dropped(4 * SECOND, "2", 0, 7)
    refused, dropped = [event for event in read(tmp_path / "timeline.jsonl") if isinstance(event, Request)]
    assert (refused.outcome, refused.scheduled, refused.sent, refused.t) == ("connect_error", 1, None, 3)
    assert (dropped.outcome, dropped.scheduled, dropped.sent, dropped.first) == ("dropped", 4, None, None)
    assert recorder.attempted == 2


@pytest.mark.parametrize("opening", [None, 4_000_000])
def test_by_how_much_each_time_may_be_too_late_is_written_beside_it(
    recorder: Recorder, tmp_path: Path, opening: int | None
) -> None:
    reply = Reply(stream=True)
    reply.feed(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n", 3 * SECOND, 0)
    for second, text in ((4, b"a"), (5, b"b")):
        reply.feed(b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text, second * SECOND, second * 1_000_000)
    reply.feed(
        b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n', 8 * SECOND, 7_000_000
    )
    reply.closed(9 * SECOND, "closed", 0)
    recorder.request(1 * SECOND, Exchange(2 * SECOND, True, reply, opening), "1", 0)
    (request,) = [event for event in read(tmp_path / "timeline.jsonl") if isinstance(event, Request)]
    if opening is None:  # of a client that cannot tell
        assert (request.connect_uncertainty, request.uncertainty) == (None, None)
    else:
        assert request.connect_uncertainty == pytest.approx(0.004)
        assert request.uncertainty == pytest.approx([0.004, 0.005])
    assert request.end_uncertainty == pytest.approx(0.007)
