"""A load of users: did they come, and did they ask the server that the load names?

Timelines of a client that told neither are judged without.
"""

from __future__ import annotations

from collections.abc import Sequence

from sandbox.spec.results import Check
from sandbox.spec.scenario import Scenario
from sandbox.timeline import Event, LoadFinished, LoadStarted

_MOST_CAME = 95  # per cent, as of requests that were due


def user_checks(scenario: Scenario, timeline: Sequence[Event]) -> list[Check]:
    """Of a load of users whether they came, and of a locustfile whom they asked; as far as the timeline tells."""
    begun = next((event for event in timeline if isinstance(event, LoadStarted)), None)
    finished = next((event for event in timeline if isinstance(event, LoadFinished)), None)
    if scenario.load is None or begun is None or finished is None:
        return []
    checks = []
    if finished.users is not None and finished.users_asked is not None and not finished.aborted:
        checks.append(_came(finished, finished.users, finished.users_asked))
    if scenario.load.locustfile is not None and finished.targets:
        checks.append(_asked(begun, finished))
    return checks


def _came(finished: LoadFinished, came: int, asked: int) -> Check:
    few = came * 100 < asked * _MOST_CAME
    return Check(
        id="validity/users",
        group="validity",
        title="the users that were asked for came",
        status="invalid" if few else "pass",
        observed=f"{came} of {asked} users began what they were to do",
        expected=f"at least {_MOST_CAME}% of them",
        samples=asked,
        reason=f"only {came} of {asked} users ever began, so it was no load of {asked}; give them time to come "
        "(a higher `spawnRate`, a longer `duration`), and see load.log for what kept them"
        if few
        else "",
        evidence=[f"t={finished.t:.2f}s load.finished, {came} of {asked} users"],
    )


def _asked(begun: LoadStarted, finished: LoadFinished) -> Check:
    """Most of the requests went to the named server: what others answer says little of it."""
    total, named = sum(finished.targets.values()), finished.targets.get(begun.url, 0)
    elsewhere = sorted((item for item in finished.targets.items() if item[0] != begun.url), key=lambda item: -item[1])
    said = ", ".join(f"{count} to {server or 'nobody knows where'}" for server, count in elsewhere)
    few = named * 2 < total
    return Check(
        id="validity/target",
        group="validity",
        title=f"the locustfile asked {begun.url}",
        status="invalid" if few else "pass",
        observed=f"{named} of {total} requests went there{f', {said}' if said else ''}",
        expected="at least half of the requests",
        samples=total,
        reason=f"{named or 'none'} of {total} requests went to the server that was to be loaded, but {said}; "
        "leave `host` out of its classes, or name the server that they ask as the load's"
        if few
        else "",
        evidence=[f"t={finished.t:.2f}s load.finished, {count} requests to {server}" for server, count in elsewhere],
    )
