"""Runs whose true times are known, and what a client that read and sent late would have written of them."""

from __future__ import annotations

import bisect
import itertools
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

from sandbox.metrics import Record, Rules, record
from sandbox.timeline import Event, FaultEvent, LoadFinished, LoadStarted

BEGIN, SECONDS, TIMEOUT, IDLE = 10.0, 6.0, 2.0, 0.5
LIMITS = {"ttft": 0.15, "tpot": 0.06, "e2e": 1.2}


@dataclass(frozen=True)
class Asked:
    """What the server does with one request, in seconds after it got it. `end` None: it never ends."""

    due: float
    chunks: list[float]
    end: float | None
    outcome: str
    size: int = 1


@dataclass
class Client:
    """A process that stands still now and then, and is at once where it is not. Without stalls it is the ideal one."""

    dice: random.Random | None = None
    stalls: list[tuple[float, float]] = field(default_factory=list)

    def reads(self, moment: float) -> tuple[float, float]:
        """When it notices what comes at a moment, and by how much it may have come sooner for all that it knows."""
        place = bisect.bisect_right(self.stalls, (moment, float("inf"))) - 1
        if place >= 0 and moment < self.stalls[place][1]:
            begin, end = self.stalls[place]
            return end, end - begin
        return moment, self.dice.uniform(0.0, 0.004) if self.dice else 0.0

    def sends(self, asked: Asked) -> SimpleNamespace:
        """One request from its due time to its end, as sandbox/load does it: one more look before it gives up."""
        sent = self.reads(asked.due)[0]
        opening = self.dice.choice([0.0, 0.0, 0.001, 0.015]) if self.dice else 0.0
        coming = [(sent + opening + each, "chunk") for each in asked.chunks]
        coming += [] if asked.end is None else [(sent + opening + asked.end, asked.outcome)]
        times: list[float] = []
        late: list[float] = []
        outcome, now, unsure = "", sent, 0.0
        while not outcome:
            limit = min(sent + TIMEOUT, now + IDLE) if times else sent + TIMEOUT
            moment = coming[0][0] if coming else float("inf")
            seen, unsure = self.reads(max(now, min(moment, limit)))
            if moment > seen:  # nothing in the last look
                now, outcome, unsure = seen, "timeout", seen - limit
                break
            now = seen
            unsure = max(unsure, now - moment)
            while coming and coming[0][0] <= now and not outcome:
                what = coming.pop(0)[1]
                if what == "chunk":
                    times.append(now)
                    late.append(unsure)
                else:
                    outcome = what
        many = len(times)
        return SimpleNamespace(
            t=now, scheduled=asked.due, sent=sent, first=times[0] if times else None, last=times[-1] if times else None,
            chunks=many, tokens=many * asked.size, gaps=[b - a for a, b in itertools.pairwise(times)],
            connect_uncertainty=opening, uncertainty=late, end_uncertainty=unsure, content_bytes=many * asked.size * 3,
            first_bytes=asked.size * 3, outcome=outcome, detail="", tags={}, prompt_tokens=None,
        )  # fmt: skip


def world(seed: int) -> tuple[Record, Record]:
    """One run, as an ideal client would have written it and as a hindered one did."""
    dice = random.Random(seed)  # noqa: S311 - reproducible
    pace, outage = dice.uniform(0.005, 0.08), dice.choice([0.0, 0.2, 1.0])
    struck, healed = BEGIN + 2.0, BEGIN + 3.5
    asked = [
        _asked(dice, BEGIN + n / 5, pace, struck <= BEGIN + n / 5 < struck + outage) for n in range(int(SECONDS * 5))
    ]
    begins = sorted(BEGIN + dice.uniform(0, SECONDS) for _ in range(dice.choice([0, 1, 3, 6])))
    ends = [min([begin + dice.choice([0.005, 0.03, 0.1, 0.2]), *begins[n + 1 :]]) for n, begin in enumerate(begins)]
    hindered = Client(dice, list(zip(begins, ends, strict=True)))
    seen_late = dice.choice([0.0, 0.05, 0.4])
    return _record(Client(), asked, struck, healed, 0.0), _record(hindered, asked, struck, healed, seen_late)


def _asked(dice: random.Random, due: float, pace: float, broken: bool) -> Asked:
    common = [1, 1, 1, 1] if broken else [90, 1, 1, 1]
    outcome = dice.choices(["ok", "truncated", "hangs", "http_error"], common)[0]
    at = dice.uniform(0.02, 0.1) * dice.choice([1, 1, 1, 4])
    size, chunks = dice.choice([1, 1, 1, 4]), []
    for _ in range(dice.choice([1, 4, 9])):
        chunks.append(at)
        at += dice.expovariate(1 / pace) if dice.random() < 0.99 else dice.uniform(0.42, 0.58)
    if TIMEOUT - 0.05 < at <= TIMEOUT:  # within 1% of the limit the judge holds the client's word
        at += 0.1
    if outcome == "ok":
        return Asked(due, chunks, at, outcome, size)
    if outcome == "hangs":
        return Asked(due, chunks[: dice.choice([0, 1])], None, outcome, size)
    return Asked(due, [] if outcome == "http_error" else chunks[:1], at, outcome, size)


def _record(client: Client, asked: list[Asked], struck: float, healed: float, late: float) -> Record:
    requests = [client.sends(each) for each in asked]
    events: list[Event] = [
        LoadStarted(t=BEGIN, url="", model="m", profile="p", asked={"duration": SECONDS}),
        FaultEvent(t=struck, fault="pod.kill", index=0, state="started"),
        FaultEvent(t=struck, fault="pod.kill", index=0, state="injected"),
        FaultEvent(t=healed + late, fault="pod.kill", index=0, state="healed", uncertainty=late),
        LoadFinished(t=max(BEGIN + SECONDS, *(each.t for each in requests)), attempted=len(requests)),
    ]
    found = record(events, LIMITS, rules=Rules(TIMEOUT, IDLE, 10_000))
    for each in sorted(requests, key=lambda each: each.t):
        found.table.append(each)  # type: ignore[arg-type]  # has what it asks for, at a tenth of the cost
    return found
