"""The steady state of a run: looked at until it holds so many times in a row, and every look written down."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from sandbox import probes
from sandbox.kube.wait import hold
from sandbox.timeline import Probed

if TYPE_CHECKING:
    from sandbox.run import Run


def look(run: Run, when: Literal["before", "after"], within: float) -> list[str]:
    """Make all probes together until each held in as many looks in a row as the scenario asks for, or time is out.

    Args:
        run: its scenario has the probes; each look goes into its timeline.
        when: before the load or after it.
        within: seconds until the first of the looks in a row, at the latest.

    Returns:
        What did not hold in the last look; empty where the state is steady.
    """
    uses, steady = run.plan.scenario.steady_state, run.plan.scenario.steady
    if not uses:
        return []
    _, kube = run.ground
    url, model = (run.deployed.url, run.deployed.model) if run.deployed else ("", "")
    context = probes.Context(kube, run.namespace, url, model, run.urls)
    deadline = time.monotonic() + within
    in_a_row = 0
    while True:
        begun = time.monotonic()
        lacking = []
        for index, use in enumerate(uses):
            seen = probes.look(use.name, context, use.params)
            lacking += [] if seen.ok else [f"{use.name}: {seen.detail}"]
            run.timeline.append(
                Probed(
                    t=run.timeline.now(),
                    probe=use.name,
                    index=index,
                    when=when,
                    ok=seen.ok,
                    detail=seen.detail,
                    evidence=seen.evidence,
                )
            )
        in_a_row = 0 if lacking else in_a_row + 1
        if in_a_row >= steady.looks or (lacking and time.monotonic() >= deadline):
            return lacking
        hold(steady.every - (time.monotonic() - begun))
