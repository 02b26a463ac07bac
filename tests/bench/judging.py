"""What judging by intervals costs, beside judging the same requests by what was measured alone."""

from __future__ import annotations

import statistics
import time
from typing import Any

from sandbox.judge import judge
from sandbox.timeline import ClientBeat, Event, FaultEvent, LoadFinished, LoadStarted, Request, RunStarted
from tests.bench.gpus import Row

_MANY, _CHUNKS, _BEGIN = 100_000, 51, 10.0
_SCENARIO: dict[str, Any] = {
    "apiVersion": "sandbox/v1",
    "kind": "Scenario",
    "metadata": {"name": "many", "description": "A hundred thousand requests."},
    "cluster": "solo",
    "stack": {"name": "vllm-sim"},
    "steadyState": ["openai.chat"],
    "load": {
        "profile": "chat-short",
        "arrivals": {"process": "constant", "rate": 3000},
        "duration": "30s",
        "good": {"ttft": "1s"},
    },
    "faults": [{"pod.kill": {"count": 1}, "at": "10s"}],
    "slo": {
        "ttft{phase:fault}": ["p(50)<=1s"],
        "icl": ["p(99)<=1s"],
        "tpot": ["p(90)<=1s"],
        "e2e": ["p(99)<=5s"],
        "good_request_fraction": ["rate>=0.9"],
        "time_to_recover": ["value<=5s"],
    },
}


def _request(number: int, *, bounds: bool) -> Request:
    at = _BEGIN + number * 30 / _MANY
    told: dict[str, Any] = {"connect_uncertainty": 2e-4, "uncertainty": [0.003] * _CHUNKS, "end_uncertainty": 0.003}
    return Request(
        t=at + 1.12 + number % 97 / 1000,
        scheduled=at,
        sent=at + 0.0005,
        first=at + 0.1 + number % 97 / 1000,
        last=at + 1.1 + number % 97 / 1000,
        chunks=_CHUNKS,
        tokens=_CHUNKS,
        gaps=[0.02] * (_CHUNKS - 1),
        content_bytes=5 * _CHUNKS,
        first_bytes=5,
        outcome="ok",
        **(told if bounds else {}),
    )


def _history(*, bounds: bool) -> list[Event]:
    states = ("started", "injected", "proven", "healed")
    return [
        RunStarted(t=0, run_id="r", wall="2026-01-01T00:00:00.000Z", scenario=_SCENARIO, source="many.yaml"),
        LoadStarted(t=_BEGIN, url="http://127.0.0.1:1", model="m", profile="chat-short", asked={"duration": 30.0}),
        *(_request(number, bounds=bounds) for number in range(_MANY)),
        *(ClientBeat(t=_BEGIN + n, lag=[0.001] * 20, beats=100, cpu=0.2, in_flight=3) for n in range(1, 31)),
        *(FaultEvent(t=20 + n / 2, fault="pod.kill", index=0, state=state) for n, state in enumerate(states)),  # type: ignore[arg-type]
        LoadFinished(t=_BEGIN + 31.5, attempted=_MANY),
    ]


def row(runs: int) -> Row:
    """A row: seconds of processor time, turn and turn about."""
    histories = {bounds: _history(bounds=bounds) for bounds in (True, False)}
    taken: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(max(3, runs)):
        for bounds, events in histories.items():
            begun = time.process_time()
            judge(events)
            taken[bounds].append(time.process_time() - begun)
    with_bounds, without = (statistics.median(taken[bounds]) for bounds in (True, False))
    what = f"{_MANY:,} requests of {_CHUNKS} chunks judged, s; without bounds {without:.1f}"
    return what, f"{with_bounds:.1f}", "", f"{with_bounds / without:.2f}x", "at most 1.5x"
