"""While a load runs: thresholds with `abortOnFail`, held against what has come so far."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from sandbox import metrics
from sandbox.judge.thresholds import check_threshold
from sandbox.progress import say
from sandbox.spec.scenario import Scenario
from sandbox.spec.slo import Threshold
from sandbox.timeline import Event, FaultEvent, Follower, LoadAborted, LoadStarted, Request, Timeline

_EVERY = 1.0


class Watch:
    """Looks every second, by the same rules as the judge: too few samples never abort, a proven breach does.

    Attributes:
        aborted: a threshold was broken, and the load is being ended.
    """

    def __init__(self, scenario: Scenario, timeline: Timeline, stop: Callable[[], object]) -> None:
        """Make ready; `stop` ends the load, and is called once."""
        limits = {str(name): limit for name, limit in scenario.load.good.items()} if scenario.load else {}
        self._wanted = [(text, each) for text, all_ in scenario.slo.items() for each in all_ if each.abort_on_fail]
        self.aborted = False
        self._timeline = timeline
        self._stop = stop
        self._follower = Follower(timeline.path)
        self._limits = limits
        self._requests: list[Request] = []
        self._others: list[Event] = []

    @property
    def idle(self) -> bool:
        """There is nothing to look at."""
        return not self._wanted

    def run(self, over: threading.Event) -> None:
        """Look until `over`, or until a threshold is broken."""
        while not self.idle and not over.wait(_EVERY):
            if self.look():
                return

    def look(self) -> bool:
        """Read on and hold what came against each threshold that is due; whether the load was ended."""
        for event in self._follower.read():
            if isinstance(event, Request):
                self._requests.append(event)
            elif isinstance(event, LoadStarted | FaultEvent):  # what phases are made of
                self._others.append(event)
        so_far = replace(metrics.record(self._others, self._limits), requests=self._requests)
        began = so_far.load_started
        if began is None or not self._requests:
            return False
        so_far = replace(so_far, end=max(so_far.end, self._requests[-1].t))
        lasted = self._timeline.now() - began
        due = [(text, each) for text, each in self._wanted if lasted >= each.delay_abort_eval]
        return any(self._broken(so_far, text, threshold) for text, threshold in due)

    def _broken(self, so_far: metrics.Record, text: str, threshold: Threshold) -> bool:
        check = check_threshold(so_far, text, threshold)
        if check.status != "fail":
            return False
        say(f"{check.title}: {check.reason}; the load is ended (abortOnFail)")
        self._timeline.append(LoadAborted(t=self._timeline.now(), threshold=check.id, observed=check.observed))
        self.aborted = True
        self._stop()
        return True
