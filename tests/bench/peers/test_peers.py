from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from sandbox.load.golden import Served
from tests.bench import load
from tests.bench.peers import bare, locusts, once, venvs
from tests.bench.peers.kinds import Client, Reported, Task, Width
from tests.bench.peers.truth import truth

SMALL = Width(streams=4, tokens=3, seconds=1)


def served(at_ms: int, *sent_ms: int) -> Served:
    return Served(number="", kind="ok", received=at_ms * 1_000_000, sent=[each * 1_000_000 for each in sent_ms])


def test_a_probe_before_the_load_is_left_out_and_a_cut_stream_is_not_whole() -> None:
    log = [served(0, 100, 150, 200), served(5000, 5101, 5151, 5201), served(5010, 5112), served(5020, 5123, 5170, 5220)]
    told = truth(log, SMALL)
    assert told is not None
    assert (told.requests, told.whole, told.tokens, told.begin) == (3, 2, 7, 5_000_000_000)
    assert told.ttft_p50 == pytest.approx(102)


def test_no_stream_is_no_truth() -> None:
    assert truth([], SMALL) is None


def test_the_reference_client_counts_what_the_server_sent() -> None:
    result = once.once(bare.CLIENT, SMALL, nice=0)
    assert result["happened"] == "ended well"
    assert result["reported"]["ok"] == result["server"]["whole"] == SMALL.requests
    assert result["server"]["tokens"] == SMALL.tokens * SMALL.requests


def test_a_client_that_hangs_is_ended_and_its_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "_WITHIN", 0)
    result = once.once(dataclasses.replace(bare.CLIENT, command=_sleep, read=_nothing), SMALL, nice=0)
    assert "did not end in time" in result["happened"]
    assert "last words: so long" in result["happened"]
    assert "did not end in time" in load.row([{"run": 1, **result}])[-1]


def test_a_client_that_cannot_be_installed_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Client) -> Path:
        raise venvs.NotInstalled("needs Python 9.9, which is not at hand")

    monkeypatch.setattr(venvs, "home", refuse)
    row = load.row([once.once(locusts.CLIENT, SMALL, nice=0)])
    assert row[0] == "Locust 2.47.0"
    assert row[-1] == "1 of 1 runs: needs Python 9.9, which is not at hand"


def test_a_python_that_no_one_has_is_not_found() -> None:
    with pytest.raises(venvs.NotInstalled, match=r"needs Python 9\.9"):
        venvs.python((9, 9))


def _sleep(_: Task) -> list[str]:
    return [
        sys.executable,
        "-c",
        "import sys, time; sys.stderr.write('so long\\n'); sys.stderr.flush(); time.sleep(60)",
    ]


def _nothing(_: Task, said: str) -> Reported:
    raise ValueError(said)
