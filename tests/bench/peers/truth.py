"""What happened on the wire, as the golden server logged it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sandbox.load.golden import Served
from tests.bench.peers.kinds import FIRST, GAP, Width

_PAUSE_NS = 200_000_000


@dataclass(frozen=True)
class Truth:
    """A load as the server saw it. Times in milliseconds unless said.

    Attributes:
        begin, end: first request and last token, in nanoseconds of CLOCK_MONOTONIC.
        requests, whole: that came, and that were answered to their last token.
        tokens: written, those of cut streams included.
        ttft_p50, ttft_p90, ttft_p99: from reading a request to writing its first token, over whole answers.
        late_p99: how much later than due the server wrote its tokens: it too has its limits.
        streams: at once, on the mean, between the first answer's end and the last request.
    """

    begin: int
    end: int
    requests: int
    whole: int
    tokens: int
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    late_p99: float
    streams: float


def truth(served: list[Served], width: Width) -> Truth | None:
    """What the log says; None: no stream ever began. A client's probes before the load are left out."""
    load = during(served)
    if not load:
        return None
    whole = [line for line in load if len(line.sent) == width.tokens]
    first = np.array([line.sent[0] - line.received for line in whole or load]) / 1e6
    due = (FIRST + GAP * np.arange(width.tokens)) * 1e3
    late = [(np.array(line.sent) - line.received) / 1e6 - due[: len(line.sent)] for line in load]
    begin, end = load[0].received, max(line.sent[-1] for line in load)
    return Truth(
        begin=begin,
        end=end,
        requests=len(load),
        whole=len(whole),
        tokens=sum(len(line.sent) for line in load),
        ttft_p50=float(np.percentile(first, 50)),
        ttft_p90=float(np.percentile(first, 90)),
        ttft_p99=float(np.percentile(first, 99)),
        late_p99=float(np.percentile(np.concatenate(late), 99)),
        streams=_at_once(load, begin + int(width.answer * 1e9), load[-1].received),
    )


def during(served: list[Served]) -> list[Served]:
    """The requests of the load, in the order in which they came: a client's probes before it are left out."""
    return _longest([line for line in served if line.sent])


def _at_once(load: list[Served], low: int, high: int) -> float:
    if high <= low:
        return float("nan")
    return sum(max(0, min(line.sent[-1], high) - max(line.received, low)) for line in load) / (high - low)


def _longest(served: list[Served]) -> list[Served]:
    """The stretch with the most requests, of those that a fifth of a second without any stream keeps apart."""
    stretches: list[list[Served]] = [[]]
    open_until = 0
    for line in sorted(served, key=lambda each: each.received):
        if stretches[-1] and line.received > open_until + _PAUSE_NS:
            stretches.append([])
        stretches[-1].append(line)
        open_until = max(open_until, line.sent[-1])
    return max(stretches, key=len)
