"""What the load client itself adds: measured against a server whose send times are known."""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sandbox.errors import Unproven
from sandbox.load.golden import MODEL, GoldenSettings, Served, golden
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.load.runner import start
from sandbox.spec.base import Metadata
from sandbox.spec.lengths import Fixed
from sandbox.spec.loadtest import Arrivals
from sandbox.spec.profile import Profile
from sandbox.timeline import ClientBeat, Request, Timeline, read

_GAP = 0.05
_FIRST = 0.1
_DRAIN = 30.0


@dataclass(frozen=True)
class Calibration:
    """What one load of this rate and width did to its own figures. Times in seconds.

    Attributes:
        requests: answered whole.
        lost: every other outcome and how often, drops included.
        streams: most at once, as seen by the client's pulse.
        added_ttft_p50, added_ttft_p99: first content as the client saw it, minus when the server wrote it.
        added_chunk_p99: the same over every chunk.
        sched_lag_p99: how late requests were begun.
        client_lag_p99: how late the pulse was; the worst 20 beats of each second are known, and the rest is no worse.
        tokens: content chunks received.
        cpu: seconds of CPU the client used from first to last arrival.
    """

    requests: int
    lost: dict[str, int]
    streams: int
    added_ttft_p50: float
    added_ttft_p99: float
    added_chunk_p99: float
    sched_lag_p99: float
    client_lag_p99: float
    tokens: int
    cpu: float

    @property
    def tokens_per_cpu_second(self) -> float:
        """Tokens handled per second of CPU."""
        return self.tokens / self.cpu if self.cpu else float("nan")


def calibrate(rate: float, streams: int, seconds: float) -> Calibration:
    """Load a golden server with `rate` requests per second, about `streams` of them at once, for `seconds`.

    Each answer is as long as it must be for that width: 20 tokens per second after a first one at 100 ms.

    Raises:
        Unproven: the client did not end well, or not one answer came.
    """
    tokens = max(1, round((streams / rate - _FIRST) / _GAP))
    with tempfile.TemporaryDirectory(prefix="sandbox-calibrate-") as name:
        folder = Path(name)
        settings = GoldenSettings(first=_FIRST, gap=_GAP, tokens=tokens, log=folder / "golden.jsonl")
        with golden(settings) as server, Timeline(folder / "timeline.jsonl") as timeline:
            plan = _plan(server.url, timeline, Arrivals(process="constant", rate=rate), seconds, tokens)
            load = start(plan, timeline)
            code = load.wait(seconds + tokens * _GAP + _DRAIN)
            if code:
                raise Unproven(f"the load process ended with exit code {code}", where=str(load.log))
            return _figures(server.served(), timeline, timeline.epoch_ns)


def _plan(url: str, timeline: Timeline, arrivals: Arrivals, seconds: float, tokens: int) -> LoadPlan:
    profile = Profile(
        kind="Profile",
        metadata=Metadata(name="calibration", description="A fixed prompt at the golden server."),
        prompts=["How late are you?"],
        max_tokens=Fixed(kind="fixed", tokens=tokens),
    )
    return LoadPlan(
        url=url,
        model=MODEL,
        shares=[PlannedShare(profile=profile, model=MODEL)],
        arrivals=arrivals,
        duration=seconds,
        timeout=tokens * _GAP + _DRAIN / 2,
        number_requests=True,
        epoch_ns=timeline.epoch_ns,
        timeline=timeline.path,
    )


def _figures(served: list[Served], timeline: Timeline, epoch_ns: int) -> Calibration:
    events = list(read(timeline.path))
    requests = [event for event in events if isinstance(event, Request)]
    beats = [event for event in events if isinstance(event, ClientBeat)]
    truth = {line.number.rpartition("-")[2]: line.sent for line in served}
    first: list[float] = []
    every: list[float] = []
    whole = [request for request in requests if request.outcome == "ok" and request.first is not None]
    for request in whole:
        sent = [(clock - epoch_ns) / 1e9 for clock in truth[request.tags["number"]]]
        seen = _arrivals(request)
        if len(seen) != len(sent):
            raise Unproven(f"the client saw {len(seen)} chunks where the server wrote {len(sent)}")
        late = [there - here for there, here in zip(seen, sent, strict=True)]
        first.append(late[0])
        every += late
    if not whole:
        raise Unproven("not one whole answer came from the golden server: nothing was measured")
    lags = sorted(lag for beat in beats for lag in beat.lag)
    spans = [beat.t - before.t for before, beat in pairwise(beats)]
    return Calibration(
        requests=len(whole),
        lost=dict(Counter(request.outcome for request in requests if request.outcome != "ok")),
        streams=max((beat.in_flight for beat in beats), default=0),
        added_ttft_p50=statistics.median(first),
        added_ttft_p99=_p99(first, len(first)),
        added_chunk_p99=_p99(every, len(every)),
        sched_lag_p99=_p99([request.sent - request.scheduled for request in whole if request.sent], len(whole)),
        client_lag_p99=_p99(lags, sum(beat.beats for beat in beats)),
        tokens=sum(request.chunks for request in requests),
        cpu=sum(beat.cpu * span for beat, span in zip(beats[1:], spans, strict=False)) + (beats[0].cpu if beats else 0),
    )


def _arrivals(request: Request) -> list[float]:
    times = [request.first or 0.0]
    for gap in request.gaps:
        times.append(times[-1] + gap)
    return times


def _p99(values: list[float], count: int) -> float:
    """Nearest-rank p99 of `count` values of which the greatest are given."""
    if not values:
        return float("nan")
    above = count - (99 * count + 99) // 100
    return sorted(values)[max(0, len(values) - 1 - above)]
