"""The bound of every reading covers its lateness, whatever held the client up, and is small where nothing did.

What really happened the server tells: a chunk came to the client's kernel between the server's clock before and after
it wrote it.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.load.client import Client, resolve
from sandbox.load.golden import MODEL, Golden, GoldenSettings, Served, beside, golden
from sandbox.load.plan import LoadPlan, PlannedShare
from sandbox.load.reply import UNKNOWN
from sandbox.load.transport import HELD_BACK, Limits
from sandbox.spec.base import Metadata
from sandbox.spec.lengths import Fixed
from sandbox.spec.loadtest import Arrivals
from sandbox.spec.profile import Profile
from sandbox.timeline import ClientBeat, Request, Timeline, read

pytestmark = pytest.mark.realtime  # clocks are compared

PROGRAM = Path(__file__).with_name("watched_client.py")
STALLS = [0.002, 0.01, 0.05, 0.12]
MS = 1_000_000


@dataclass(frozen=True)
class Told:
    """What the client says of one request."""

    number: str
    began: int
    opening: int
    outcome: str
    arrivals: list[int]
    uncertainty: list[int]
    end: int
    end_uncertainty: int
    bytes: int
    detail: str


@contextmanager
def running(url: str, **order: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(PROGRAM), json.dumps({"url": url, **order})]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def told(process: subprocess.Popen[bytes]) -> list[Told]:
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return [Told(**json.loads(line)) for line in out.splitlines()]


def asked(url: str, **order: Any) -> list[Told]:
    with running(url, **order) as process:
        return told(process)


def settings(tmp_path: Path, **more: Any) -> GoldenSettings:
    return GoldenSettings(**{"first": 0.02, "gap": 0.01, "tokens": 40, "log": tmp_path / "golden.jsonl", **more})


def covered(answers: list[Told], served: list[Served]) -> list[int]:
    """Check that each chunk came within its bound, and return the bounds."""
    truth = {line.number: line for line in served}
    bounds: list[int] = []
    checked = 0
    for answer in answers:
        assert answer.outcome == "ok", answer.detail
        line = truth[answer.number]
        assert len(answer.arrivals) == len(answer.uncertainty) == len(line.sent) == len(line.written)
        assert min(answer.uncertainty) >= 0
        for seen, unsure, before, after in zip(
            answer.arrivals, answer.uncertainty, line.sent, line.written, strict=True
        ):
            assert seen > before, "seen before it was sent"
            if after:
                checked += 1
                assert seen - unsure <= after, f"{answer.number}: {(seen - unsure - after) / MS} ms too late"
        assert answer.arrivals[-1] <= answer.end
        # The last bytes were sent after the last token; whoever writes them has not stopped the clock for them.
        assert answer.end - answer.end_uncertainty <= answer.end
        assert 0 <= answer.opening <= answer.arrivals[0] - answer.began
        bounds += answer.uncertainty
    assert checked
    return bounds


def late(answers: list[Told], served: list[Served]) -> list[int]:
    truth = {line.number: line.sent for line in served}
    return [seen - sent for answer in answers for seen, sent in zip(answer.arrivals, truth[answer.number], strict=True)]


@pytest.mark.parametrize("keep_alive", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_chunk_came_within_its_bound_however_the_loop_was_held_up(
    tmp_path: Path, seed: int, keep_alive: bool
) -> None:
    with golden(settings(tmp_path)) as server:
        answers = asked(server.url, streams=4, each=4, stalls=STALLS, seed=seed, keep_alive=keep_alive)
        served = server.served()
    bounds = covered(answers, served)
    assert max(late(answers, served)) > 30 * MS, "nothing was held up, so nothing was tested"
    assert max(bounds) > 30 * MS


def test_the_bound_is_small_where_nothing_is_held_up(tmp_path: Path) -> None:
    with golden(settings(tmp_path, gap=0.02)) as server:
        bounds = covered(asked(server.url, streams=2, each=3), server.served())
    assert statistics.median(bounds) < 15 * MS, "the pulse has the loop look every 10 ms"


MANY = """
from gevent import monkey; monkey.patch_all()
import gevent, socket, time
from sandbox.load.green import polls
loop, seen = gevent.get_hub().loop, polls()
pairs = [socket.socketpair() for _ in range(300)]
known = []
def watch(far):
    watcher = loop.io(far.fileno(), 1)
    def ready():
        far._sock.recv(100)
        seen.seen += 1
        known.append(seen.known)
    watcher.start(ready)
    return watcher
watchers = [watch(far) for _, far in pairs]
for turn in range(3):
    gevent.sleep(0.05)
    known.clear()
    for near, _ in pairs:
        near._sock.send(b"x")
    sent = time.monotonic_ns()
    gevent.sleep(0.05)
    assert len(known) == 300
    print(sum(each > sent for each in known), seen.known > sent)
"""


def test_more_sockets_than_a_poll_names_at_once_are_no_proof_for_those_it_left_out() -> None:
    """epoll gives out 64 events at first: the others were ready as well, and no poll had said so."""
    done = subprocess.run([sys.executable, "-c", MANY], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["0 True"] * 3


def test_chunks_that_were_merged_into_one_reading_each_have_its_bound(tmp_path: Path) -> None:
    with golden(settings(tmp_path, gap=0.001, tokens=300)) as server:
        answers = asked(server.url, once=(0.1, 0.15))
        served = server.served()
    covered(answers, served)
    merged = [
        (one.arrivals[place], one.uncertainty[place])
        for one in answers
        for place in range(1, len(one.arrivals))
        if one.arrivals[place] == one.arrivals[place - 1]
    ]
    assert len(merged) > 20
    assert max(unsure for _, unsure in merged) > 100 * MS


def test_a_stopped_client_knows_how_late_it_was(tmp_path: Path) -> None:
    dice = random.Random(5)  # noqa: S311 - reproducible, nothing secret
    ready = tmp_path / "ready"
    with (
        golden(settings(tmp_path, tokens=150)) as server,
        running(server.url, streams=3, each=2, ready=str(ready)) as process,
    ):
        while not ready.exists():
            time.sleep(0.01)
        for _ in range(6):
            time.sleep(dice.uniform(0.05, 0.3))
            process.send_signal(signal.SIGSTOP)
            time.sleep(dice.uniform(0.01, 0.2))
            process.send_signal(signal.SIGCONT)
        answers = told(process)
        served = server.served()
    covered(answers, served)
    assert max(late(answers, served)) > 50 * MS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    own, key = folder / "own.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(own)]
    command += ["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return own, key


@pytest.mark.parametrize("stalls", [[], STALLS])
def test_over_tls_the_same_holds(tmp_path: Path, certificate: tuple[Path, Path], stalls: list[float]) -> None:
    own, key = certificate
    with golden(settings(tmp_path, certificate=own, key_file=key)) as server:
        answers = asked(server.url, streams=3, each=3, stalls=stalls, ca_file=str(own))
        served = server.served()
    bounds = covered(answers, served)
    if not stalls:
        assert statistics.median(bounds) < 20 * MS
    else:
        assert max(bounds) > 30 * MS


def event(text: str | None, reason: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    return b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode()


@contextmanager
def saying(*said: float | bytes) -> Iterator[tuple[str, list[int]]]:
    """Serve one answer of these pieces, with pauses in seconds between; yields the URL, and when each was written."""
    written: list[int] = []

    def serve() -> None:
        with listening.accept()[0] as connection:
            connection.recv(65536)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for piece in said:
                if isinstance(piece, bytes):
                    connection.sendall(piece)
                    written.append(time.monotonic_ns())
                else:
                    time.sleep(piece)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", written
        thread.join()


END = event(None, "stop") + b"data: [DONE]\n\n"
TEXT = "x" * 1000


def test_what_took_more_than_one_reading_may_all_have_come_when_the_first_did() -> None:
    with saying(0.4, event(TEXT) * 200, END) as (url, written):  # the client's loop is held up from 0.3 to 0.7
        (answer,) = asked(url, once=(0.3, 0.4))
    assert (answer.outcome, len(answer.arrivals), answer.bytes) == ("ok", 200, 200 * len(TEXT))
    assert len(set(answer.arrivals)) > 1, "all came in one reading"
    for seen, unsure in zip(answer.arrivals, answer.uncertainty, strict=True):
        assert seen - unsure <= written[0]


def test_after_so_much_that_the_peer_may_have_been_kept_back_one_more_reading_is_open() -> None:
    big = event("x" * HELD_BACK)
    with saying(0.1, big, 0.3, event("a"), 0.3, event("b"), END) as (url, _):
        (answer,) = asked(url)
    *_, one, two = answer.uncertainty
    assert one > 250 * MS, "the window was full, and this may have waited for it to open"
    assert two < 100 * MS


def test_a_connection_that_stood_before_the_client_noticed_counts_as_its_own_time(tmp_path: Path) -> None:
    with golden(settings(tmp_path)) as server:
        held_up = asked(server.url, streams=30, stalls=[0.1], each=16)  # stalls come at random
        calm = asked(server.url, streams=1, each=10)
    assert max(answer.opening for answer in held_up) > 50 * MS
    assert statistics.median(answer.opening for answer in calm) < 20 * MS


def test_a_peer_that_takes_long_to_connect_is_not_the_clients_lateness(tmp_path: Path) -> None:
    """A full backlog drops the first SYN; the kernel tries again after a second."""
    ready = tmp_path / "ready"
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
            fillers.append(filler)

        def serve() -> None:
            while not ready.exists():
                time.sleep(0.01)
            time.sleep(0.3)
            listening.settimeout(0.2)
            until = time.monotonic() + 5
            while time.monotonic() < until:
                try:
                    with listening.accept()[0] as connection:
                        connection.settimeout(0.2)
                        if connection.recv(65536):
                            return
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        (answer,) = asked(url, ready=str(ready))
        thread.join()
        for filler in fillers:
            filler.close()
    assert answer.outcome == "truncated"
    took = answer.end - answer.began
    assert took > 800 * MS, "the connection was there at once: nothing was tested"
    assert answer.opening < took - 500 * MS


def test_what_came_in_time_and_was_read_late_is_no_time_out() -> None:
    """The limits are over when the client gets to look, and all is there, in more than one reading."""
    with saying(0.3, event(TEXT) * 150, END) as (url, written):
        (answer,) = asked(url, once=(0.1, 1.2), limits=(0.8, 0.5))
    assert (answer.outcome, len(answer.arrivals)) == ("ok", 150), answer.detail
    assert answer.end - answer.began > 1000 * MS, "it was not held up"
    assert answer.end - answer.end_uncertainty <= written[-1]


def test_the_same_over_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    own, key = certificate
    with golden(settings(tmp_path, tokens=30, certificate=own, key_file=key)) as server:  # done after 0.35 s
        (answer,) = asked(server.url, once=(0.1, 1.2), limits=(0.8, 0.5), ca_file=str(own))
        served = server.served()
    covered([answer], served)
    assert answer.end - answer.began > 1000 * MS, "it was not held up"


def test_a_time_out_says_how_late_it_was_noticed(tmp_path: Path) -> None:
    with golden(settings(tmp_path, kinds=["mute"])) as server:
        (answer,) = asked(server.url, once=(0.1, 0.8), limits=(0.5, 0.5))
    assert answer.outcome == "timeout"
    assert answer.end - answer.began > 800 * MS
    assert abs(answer.end - answer.end_uncertainty - answer.began - 500 * MS) < MS


def test_a_stream_that_falls_silent_is_given_up_long_before_its_whole_time(tmp_path: Path) -> None:
    with golden(settings(tmp_path, kinds=["hang"], after=2)) as server:
        (answer,) = asked(server.url, limits=(20.0, 0.4))
    assert answer.outcome == "timeout"
    assert len(answer.arrivals) == 2
    assert 400 * MS <= answer.end - answer.arrivals[-1] < 5000 * MS


def test_a_blocking_client_says_that_it_does_not_know(tmp_path: Path) -> None:
    body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    with golden(settings(tmp_path, tokens=3)) as server:
        exchange = Client(resolve(server.url), Limits(5, 5)).exchange(body)
    assert exchange.opening is None
    assert list(exchange.reply.uncertainty) == [UNKNOWN] * 3
    assert exchange.reply.end_uncertainty == UNKNOWN


PROFILE = Profile(
    kind="Profile",
    metadata=Metadata(name="test", description="One prompt."),
    prompts=["hi"],
    max_tokens=Fixed(kind="fixed", tokens=5),
)
HELD_UP = (
    "import sys\n"
    "from gevent import monkey; monkey.patch_all()\n"
    "import gevent, time\n"
    "from sandbox.load import green, worker\n"
    "def hog():\n"
    "    while True:\n"
    "        gevent.sleep(0.07)\n"
    "        until = time.monotonic() + 0.03\n"
    "        while time.monotonic() < until: pass\n"
    "gevent.spawn(hog)\n"
    "if sys.argv.pop(1) == 'wrong':\n"  # the poll that named a socket is taken for one that did not
    "    def ended(self): self.known, self._whole = time.monotonic_ns(), False\n"
    "    green.Polls._ended = ended\n"
    "sys.exit(worker.main())\n"
)


def loaded(tmp_path: Path, how: str, server: Golden, known: Golden) -> tuple[list[ClientBeat], list[Request]]:
    with Timeline(tmp_path / "timeline.jsonl") as timeline:
        plan = LoadPlan(
            url=server.url,
            model=MODEL,
            shares=[PlannedShare(profile=PROFILE, model=MODEL)],
            arrivals=Arrivals(process="constant", rate=30),
            duration=2.0,
            golden=known.url,
            processes=1,
            epoch_ns=timeline.epoch_ns,
            timeline=timeline.path,
        )
        (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
        command = [sys.executable, "-c", HELD_UP, how, str(tmp_path / "plan.json")]
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
        events = list(read(timeline.path))
    beats = [event for event in events if isinstance(event, ClientBeat)]
    return beats, [event for event in events if isinstance(event, Request)]


@pytest.mark.parametrize("how", ["right", "wrong"])
def test_tokens_of_known_send_time_show_whether_bounds_hold(tmp_path: Path, how: str) -> None:
    with (
        golden(settings(tmp_path, tokens=5)) as server,
        golden(beside(tmp_path / "known.jsonl")) as known,
    ):
        beats, requests = loaded(tmp_path, how, server, known)
    assert sum(beat.checked for beat in beats) > 50
    assert bool(sum(beat.uncovered for beat in beats)) == (how == "wrong")
    assert (max(beat.uncovered_by for beat in beats) > 0.005) == (how == "wrong")
    stalls = [stall for beat in beats for stall in beat.stalls]
    assert stalls, "30 ms of every 100 ms"
    assert all(how_late >= 0.02 for _, how_late in stalls)
    assert [when for when, _ in stalls] == sorted(when for when, _ in stalls)
    for request in requests:
        assert request.connect_uncertainty is not None
        assert request.uncertainty is not None
        assert request.end_uncertainty is not None
        assert len(request.uncertainty) == request.chunks == 5
        assert request.content_bytes is not None
        assert request.content_bytes >= 5 * len("1/0")
