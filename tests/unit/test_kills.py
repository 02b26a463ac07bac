"""The program that kills commands: it sees what is left, and tells what it saw."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.kills import leaks
from tests.kills.ground import Ground, adopting
from tests.kills.page import Tally, disturbances, page, read, write
from tests.kills.victims import CYCLE, NEEDS, VICTIMS


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path, "killed")


def left_behind(ground: Ground, *command: str) -> psutil.Process:
    """Start a program and end its parent."""
    words = ["sh", "-c", '"$0" "$@" >&2 & echo $!', *command]
    started = subprocess.run(words, env=ground.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True)
    return psutil.Process(int(started.stdout))


def test_a_process_that_outlives_its_command_is_named(ground: Ground) -> None:
    with adopting():
        orphan = left_behind(ground, "sleep", "60")
        try:
            (named,) = ground.settled()
            assert named.startswith(f"process {orphan.pid}: sleep 60")
        finally:
            orphan.kill()
        assert ground.settled() == []


def test_processes_of_others_are_neither_waited_for_nor_named(ground: Ground) -> None:
    with adopting(), subprocess.Popen(["sleep", "60"]) as theirs:
        assert ground.settled() == []
        theirs.kill()


def test_files_of_a_command_that_was_killed_are_named(ground: Ground) -> None:
    home = ground.state / "clusters" / "half"
    home.mkdir(parents=True)
    for name in ("creating.json", "record.json.new"):
        (home / name).touch()
    (ground.temporary / "tmp123").touch()
    assert sorted(leaks._files(ground)) == [
        "file clusters/half/record.json.new", "folder half", "half-made half", "temporary tmp123",
    ]  # fmt: skip


def test_a_cluster_that_was_half_handed_over_is_no_handed_one(ground: Ground) -> None:
    home = ground.state / "clusters" / "killed"
    home.mkdir(parents=True)
    for owner, handed in ((None, "pool-1"), ({"pid": 1, "started": 1.0}, "")):
        (home / "record.json").write_text(json.dumps({"name": "pool-1", "owner": owner, "pooled": ""}))
        assert ground.handed == handed


def test_what_was_done_is_gone_on_with_and_told(tmp_path: Path) -> None:
    record = tmp_path / "record"
    assert read(record) == []
    write(record, "down", Tally(midway=1, seconds=60, seeds=[7]))
    write(record, "down", Tally(ended=1, seconds=60, seeds=[7], left=["volume v"]))
    whole = Tally()
    for name, tally in read(record):
        assert name == "down"
        whole.add(tally)
    text = page({"down": whole}, 104)
    assert "2 of 104 kills in 2 minutes, seed 7" in text
    assert "| down | 1 | 1 | 1 | 0 | 0 | 0 |" in text
    assert "- down: left: volume v" in text
    assert "Nothing was left" in page({"down": Tally(midway=1)}, 104)
    assert "next: it hangs" in disturbances({"clock": Tally(failed=["it hangs"], words=["`up` ended with 3"])})


def test_every_command_is_in_the_cycle_and_its_needs_are_known() -> None:
    assert {*CYCLE} == {*VICTIMS}
    assert {each for victim in VICTIMS.values() for each in (*victim.needs, *victim.again)} <= {*NEEDS}
