"""What the client adds is measured while it loads, and a client that is busy with something else is found out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sandbox.load.golden import MODEL, GoldenSettings, beside, golden
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.spec.base import Metadata
from sandbox.spec.lengths import Fixed
from sandbox.spec.loadtest import Arrivals
from sandbox.spec.profile import Profile
from sandbox.timeline import ClientBeat, LoadFinished, Request, Timeline, read

pytestmark = pytest.mark.realtime  # clocks are compared

PROFILE = Profile(
    kind="Profile",
    metadata=Metadata(name="test", description="One prompt."),
    prompts=["hi"],
    max_tokens=Fixed(kind="fixed", tokens=5),
)
RUN = (
    "import sys\n"
    "from gevent import monkey; monkey.patch_all()\n"
    "import gevent, time\n"
    "from sandbox.load import worker\n"
    "def hog():\n"
    "    while True:\n"
    "        begun = time.monotonic()\n"
    "        while time.monotonic() - begun < 0.03: pass\n"
    "        gevent.sleep(0.07)\n"
    "if sys.argv.pop(1) == 'busy': gevent.spawn(hog)\n"
    "sys.exit(worker.main())\n"
)


def added(tmp_path: Path, how: str) -> tuple[list[float], int, list[float]]:
    """Load for three seconds; what the client's own record says it added, of how many, and what was really added."""
    settings = GoldenSettings(first=0.03, gap=0.01, tokens=5, log=tmp_path / "served.jsonl")
    with golden(settings) as server, golden(beside(tmp_path / "golden.jsonl")) as known:
        with Timeline(tmp_path / "timeline.jsonl") as timeline:
            plan = LoadPlan(
                url=server.url,
                model=MODEL,
                shares=[PlannedShare(profile=PROFILE, model=MODEL)],
                arrivals=Arrivals(process="constant", rate=30),
                duration=3.0,
                golden=known.url,
                number_requests=True,
                epoch_ns=timeline.epoch_ns,
                timeline=timeline.path,
            )
            (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
            command = [sys.executable, "-c", RUN, how, str(tmp_path / "plan.json")]
            subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
            events = list(read(timeline.path))
            truth = {line.number.rpartition("-")[2]: line.sent[0] for line in server.served()}
            requests = [event for event in events if isinstance(event, Request)]
            really = [(r.first or 0) - (truth[r.tags["number"]] - timeline.epoch_ns) / 1e9 for r in requests]
        assert isinstance(events[-1], LoadFinished)
        assert events[-1].attempted == len(requests) == 90, "streams of the canary are no requests of the load"
        assert len(known.served()) >= 8
    beats = [event for event in events if isinstance(event, ClientBeat)]
    return [late for beat in beats for late in beat.added], sum(beat.calibrated for beat in beats), really


def test_a_client_with_nothing_else_to_do_adds_little(tmp_path: Path) -> None:
    shown, count, really = added(tmp_path, "calm")
    assert count >= 400
    assert min(shown) > 0, "seen before it was sent"
    assert np.median(shown) < 0.02
    assert np.median(really) < 0.02


def test_a_client_that_is_busy_is_found_out_by_its_own_record(tmp_path: Path) -> None:
    shown, count, really = added(tmp_path, "busy")
    assert count >= 300
    worst = sorted(shown)[-max(1, count // 100)]  # p99: all but the worst of each second are hidden, and better
    assert worst > 0.01, "30 ms of every 100 ms nothing was read"
    assert np.quantile(really, 0.95) > 0.005, "the same is true of what was measured"
