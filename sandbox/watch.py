"""While a load runs: thresholds with `abortOnFail`, held against what has come so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sandbox.judge.thresholds import as_validity, check_threshold
from sandbox.metrics import Record, Rules, Table
from sandbox.progress import say
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import Threshold, parse_selector
from sandbox.timeline import Event, LoadAborted, Timeline, parsed

_EVERY = 1.0
_SHARE = 0.05  # of one core, at the most: the load client may need the rest


class Watch:
    """Looks every second, by the same rules as the judge: too few samples never abort, a proven breach does.

    It looks less often where a look takes more than a twentieth of a second of processor time.

    Attributes:
        record: what came so far; figures only, no requests.
        aborted: a threshold was broken, and the load is being ended.
    """

    def __init__(self, scenario: Scenario, timeline: Timeline, stop: Callable[[], object]) -> None:
        """Make ready; `stop` ends the load, and is called once."""
        limits = {str(name): limit for name, limit in scenario.load.good.items()} if scenario.load else {}
        self._wanted: list[tuple[str, Threshold, bool]] = [
            (text, each, validity)
            for validity, slo in ((False, scenario.slo), (True, scenario.validity))
            for text, thresholds in slo.items()
            for each in thresholds
            if each.abort_on_fail
        ]
        gaps = any(parse_selector(text).metric == "icl" for text, _, _ in self._wanted)
        self.record = Record(limits, kept=False, table=Table(gaps=gaps, rules=Rules.of(scenario.load)))
        self.aborted = False
        self._timeline = timeline
        self._stop = stop
        self._follower = Follower(timeline.path)

    @property
    def idle(self) -> bool:
        """There is nothing to look at."""
        return not self._wanted

    def run(self, over: threading.Event) -> None:
        """Look until `over`, or until a threshold is broken."""
        pause = _EVERY
        while not self.idle and not over.wait(pause):
            begun = time.thread_time()
            if self.look():
                return
            pause = max(_EVERY, (time.thread_time() - begun) / _SHARE)

    def look(self) -> bool:
        """Read on and hold what came against each threshold that is due; whether the load was ended."""
        for event in self._follower.read():
            self.record.take(event)
        began = self.record.load_started
        if began is None or self.record.load_finished is not None or self.aborted:
            return self.aborted
        lasted = self._timeline.now() - began
        return any(
            self._broken(text, threshold, validity=validity)
            for text, threshold, validity in self._wanted
            if lasted >= threshold.delay_abort_eval
        )

    def _broken(self, text: str, threshold: Threshold, *, validity: bool) -> bool:
        # held as a promise first: of validity, too few samples are as `invalid` as a breach
        check = check_threshold(self.record, text, threshold)
        if check.status != "fail":
            return False
        if validity:
            check = as_validity(check, parse_selector(text).metric)
        say(f"{check.title}: {check.reason}; the load is ended (abortOnFail)")
        self._timeline.append(LoadAborted(t=self._timeline.now(), threshold=check.id, observed=check.observed))
        self.aborted = True
        self._stop()
        return True


class Follower:
    """Reads a timeline that is being written: each call gives what was appended since, never half a line."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of `path`."""
        self._path = path
        self._place = 0
        self._number = 0

    def read(self) -> Iterator[Event]:
        """Yield the events that came since the last call; a broken line raises as in `read`."""
        with self._path.open("rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                event = parsed(line, self._path, self._number + 1)
                self._place, self._number = self._place + len(line), self._number + 1
                yield event
