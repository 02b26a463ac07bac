"""Commands killed at random moments, one of each kind: nothing is left, and the next one works. About 500 s.

That was on two cores with thirty other programs at work (477 and 581 s); most of it goes into the next commands, which
are let be. The same rounds as in `nox -s kills`, which kills a hundred (docs/reference/kills.md).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kills.rounds import rounds
from tests.kills.victims import UP, VICTIMS

pytestmark = [
    pytest.mark.live,
    pytest.mark.alone,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("iptables-save") is None, reason="looks at this machine: root"
    ),
]

SEED = 19315  # its moments are early ones: the longer a command runs until it is killed, the longer this takes
SCENARIO = """\
apiVersion: sandbox/v1
kind: Scenario
metadata: {name: killed, description: One pod that runs.}
cluster: solo
workloads: [{name: one, pods: 1, resources: {cpu: 10m}, within: 30s}]
slo: {pods_running: ["value==1"]}
"""
# what one leaves is what the next one needs
ORDER = ("up-cold", "save", "down", "restore", "fill", "lease", "up-snapshot", "run")
# the first one keeps a snapshot, which the others come from
KINDS = {**VICTIMS, "up-cold": replace(VICTIMS["up-cold"], command=UP)}


def test_after_eight_kills_nothing_is_left_and_every_next_command_works(tmp_path: Path) -> None:
    assert {*ORDER} == {*VICTIMS}
    wrong: list[str] = []
    with rounds(tmp_path / "ground", f"killed-{os.getpid()}", SEED, scenario=SCENARIO) as all_:
        for name in ORDER:
            came, after = all_.kill(KINDS[name])
            wrong += [f"{name}, killed after {after:.1f} s: {each}" for each in came.wrong]
        wrong += all_.finish()
    assert wrong == [], f"seed {SEED}"
