"""The client against a server whose truth is known, over real loopback sockets."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.errors import EnvironmentMissing, UsageError
from sandbox.load.check import Access, check_endpoint
from sandbox.load.client import Client, base_url, resolve
from sandbox.load.golden import MODEL, Golden, GoldenSettings, Kind, Served, golden
from sandbox.load.reply import Reply
from sandbox.load.transport import Limits

pytestmark = pytest.mark.realtime  # their clocks are compared

# Far above what a busy machine stalls for: nothing that should be `ok` comes near them.
LIMITS = Limits(total=3.0, idle=2.0)
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
# what the golden server does -> what the client must say, and how many content chunks it must have seen
EXPECTED: dict[Kind, tuple[str, int]] = {
    "ok": ("ok", 5),
    "dribble": ("ok", 5),
    "slow_head": ("ok", 5),
    "no_done": ("ok", 5),
    "cut": ("truncated", 2),
    "reset": ("truncated", 2),
    "hang": ("timeout", 2),
    "vanish": ("truncated", 0),
    "mute": ("timeout", 0),
    "no_finish": ("truncated", 5),
    "malformed": ("inband_error", 2),
    "inband_error": ("inband_error", 2),
    "http_error": ("http_error", 0),
    "rejected": ("guardrail_blocked", 0),
    "filtered": ("guardrail_blocked", 5),
    "not_a_stream": ("inband_error", 0),
    "not_http": ("http_error", 0),
}


@contextmanager
def serving(tmp_path: Path, *kinds: Kind, first: float = 0.05, gap: float = 0.02, key: str = "") -> Iterator[Golden]:
    log = tmp_path / "golden.jsonl"
    settings = GoldenSettings(first=first, gap=gap, tokens=5, after=2, kinds=list(kinds) or ["ok"], key=key, log=log)
    with golden(settings) as server:
        yield server


def ask(
    server: Golden,
    body: bytes = BODY,
    *,
    path: str = "chat",
    stream: bool = True,
    key: str = "",
    limits: Limits = LIMITS,
) -> Reply:
    client = Client(resolve(server.url), limits, path=path, stream=stream, api_key=key)
    return client.exchange(body, "n-1").reply


def test_a_header_of_ones_own_takes_the_place_of_ours_whatever_its_case(tmp_path: Path) -> None:
    with serving(tmp_path, key="secret") as server:
        headers = {"authorization": "Bearer secret", "accept": "*/*"}
        client = Client(resolve(server.url), LIMITS, api_key="wrong", headers=headers)
        assert client.exchange(BODY).reply.outcome == "ok"
        check_endpoint(server.url, MODEL, Access(api_key="wrong", headers=headers))


def test_the_list_of_models_is_asked_for_with_the_same_headers(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with other.accept()[0] as connection:
                heard.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        access = Access(api_key="wrong", headers={"authorization": "Bearer secret"})
        with pytest.raises(UsageError, match="refuses the API key"):
            check_endpoint(f"http://127.0.0.1:{other.getsockname()[1]}", MODEL, access, within=5)
        thread.join()
    assert heard[0].lower().count(b"authorization:") == 1
    assert b"Bearer secret" in heard[0]


@pytest.mark.parametrize("path", ["chat", "completions"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_each_outcome_is_told_apart_over_a_real_connection(tmp_path: Path, kind: Kind, path: str) -> None:
    with serving(tmp_path, kind) as server:
        reply = ask(server, path=path)
        assert (reply.outcome, len(reply.arrivals)) == EXPECTED[kind], reply.detail
        assert bool(reply.detail) == (reply.outcome != "ok")
        assert reply.end is not None
        if reply.outcome == "ok":
            assert reply.tokens == 5
        assert [(line.number, line.kind) for line in logged(server)] == [("n-1", kind)], "asked once, and once only"


def logged(server: Golden) -> list[Served]:
    """What the server logged, at least one line: it notices a client that has left a moment later."""
    deadline = time.monotonic() + 20
    while not server.served():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return server.served()


def test_every_golden_behaviour_has_an_expectation() -> None:
    assert set(EXPECTED) == set(Kind.__args__)


def test_nothing_is_sent_again_after_a_reset(tmp_path: Path) -> None:
    with serving(tmp_path, "vanish", "reset", "ok") as server:
        client = Client(resolve(server.url), LIMITS, keep_alive=True)
        outcomes = [client.exchange(BODY, str(number)).reply.outcome for number in range(3)]
        client.close()
        assert outcomes == ["truncated", "truncated", "ok"]
        assert [line.number for line in server.served()] == ["0", "1", "2"]


def test_the_idle_limit_is_not_held_against_a_queue(tmp_path: Path) -> None:
    with serving(tmp_path, "ok", first=LIMITS.idle * 1.25) as server:
        assert ask(server, limits=replace(LIMITS, total=20.0)).outcome == "ok"


def test_an_idle_timeout_names_the_silence_and_a_total_one_the_time(tmp_path: Path) -> None:
    with serving(tmp_path, "hang", "mute") as server:
        assert "silent for 2 s" in ask(server).detail
        assert "not done in 3 s" in ask(server).detail


def test_a_refused_connection_is_a_connect_error_and_was_never_sent() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        exchange = Client(resolve(url), LIMITS).exchange(BODY)
    assert exchange.reply.outcome == "connect_error"
    assert not exchange.sent


def test_a_whole_answer_needs_no_stream(tmp_path: Path) -> None:
    body = json.dumps({"model": MODEL, "prompt": "hi"}).encode()
    with serving(tmp_path, "ok", "filtered") as server:
        first, second = (ask(server, body, path="completions", stream=False) for _ in range(2))
    assert (first.outcome, first.tokens, len(first.arrivals)) == ("ok", 1, 0)
    assert second.outcome == "guardrail_blocked"


def test_a_kept_connection_carries_the_next_request(tmp_path: Path) -> None:
    seen = Counter[tuple[str, int]]()
    with serving(tmp_path) as server, _counting_relay(server.url, seen) as url:
        for keep_alive in (True, False):
            client = Client(resolve(url), LIMITS, keep_alive=keep_alive)
            assert [client.exchange(BODY).reply.outcome for _ in range(3)] == ["ok"] * 3
            client.close()
            assert len(seen) == (1 if keep_alive else 4)


def test_a_kept_connection_that_the_server_has_closed_is_not_used_again() -> None:
    answer = b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}'
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)  # a client that does not come back fails the test instead of hanging it

        def serve() -> None:
            for _ in range(2):
                with listening.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
                gone.set()

        gone = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        client = Client(
            resolve(f"http://127.0.0.1:{listening.getsockname()[1]}"), LIMITS, stream=False, keep_alive=True
        )
        assert client.exchange(BODY).reply.outcome == "ok"
        assert gone.wait(10)
        assert client.exchange(BODY).reply.outcome == "ok"
        client.close()
        thread.join()


@contextmanager
def _counting_relay(url: str, seen: Counter[tuple[str, int]]) -> Iterator[str]:
    """Forward connections to `url` and count them by the port they came from."""
    port = int(url.rpartition(":")[2])
    listening = socket.create_server(("127.0.0.1", 0))

    def forward(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def serve(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            back = threading.Thread(target=forward, args=(far, near))
            back.start()
            forward(near, far)
            back.join()

    def accept() -> None:
        while True:
            try:
                near, place = listening.accept()
            except OSError:
                return
            seen[place] += 1
            threading.Thread(target=serve, args=(near,)).start()

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def test_times_agree_with_the_servers_own_log(tmp_path: Path) -> None:
    with serving(tmp_path, first=0.05, gap=0.02) as server:
        client = Client(resolve(server.url), LIMITS)
        exchanges = [client.exchange(BODY, str(number)) for number in range(20)]
        served = {line.number: line for line in server.served()}
    late = []
    for number, exchange in enumerate(exchanges):
        truth = served[str(number)]
        assert exchange.began <= truth.received
        assert len(exchange.reply.arrivals) == len(truth.sent) == 5
        late += [seen - sent for seen, sent in zip(exchange.reply.arrivals, truth.sent, strict=True)]
    assert min(late) > 0, "seen before it was sent"
    assert statistics.median(late) < 5e6, "a read that waits for more bytes would be a gap (20 ms) or more behind"


def test_the_check_before_the_load_passes_a_good_endpoint(tmp_path: Path) -> None:
    with serving(tmp_path, key="secret") as server:
        check_endpoint(server.url, MODEL, Access(api_key="secret"))
        check_endpoint(f"{server.url}/v1/", MODEL, Access("completions", api_key="secret"))
        check_endpoint(server.url, MODEL, Access("embeddings", stream=False, api_key="secret"))
        check_endpoint(server.url, MODEL, Access(stream=False, api_key="secret"))


@pytest.mark.parametrize(
    ("kind", "asked", "error", "said"),
    [
        ("ok", ("gpt-17", "secret"), UsageError, MODEL),
        ("ok", (MODEL, ""), UsageError, "wants an API key"),
        ("ok", (MODEL, "wrong"), UsageError, "refuses the API key"),
        ("cut", (MODEL, "secret"), UsageError, "truncated"),
        ("not_a_stream", (MODEL, "secret"), UsageError, "asked for a stream"),
        ("http_error", (MODEL, "secret"), EnvironmentMissing, "503"),
        ("mute", (MODEL, "secret"), EnvironmentMissing, "not done in"),
    ],
)
def test_the_check_before_the_load_says_what_is_wrong(
    tmp_path: Path, kind: Kind, asked: tuple[str, str], error: type[Exception], said: str
) -> None:
    model, key = asked
    with serving(tmp_path, kind, key="secret") as server, pytest.raises(error) as caught:
        check_endpoint(server.url, model, Access(api_key=key), within=1.0)
    assert said in str(caught.value)


def test_the_check_tells_a_closed_port_from_another_protocol(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"

        def greet() -> None:
            with other.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(UsageError, match="HTTP"):
            check_endpoint(url, MODEL, within=5)
        thread.join()
    with pytest.raises(EnvironmentMissing, match="nothing answers"):
        check_endpoint(url, MODEL, within=5)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x/v1?a=b", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        base_url(url)


def test_a_url_may_come_with_and_without_its_version() -> None:
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"):
        assert base_url(url) == "http://h:1/v1"
    assert base_url("https://[::1]:8443/serve") == "https://[::1]:8443/serve/v1"


def test_of_several_addresses_the_one_where_somebody_listens_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        kind = socket.SOCK_STREAM
        both = [(socket.AF_INET, kind, 6, "", (place, port)) for place in ("127.0.0.9", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        assert resolve(f"http://two:{port}").address == (socket.AF_INET, ("127.0.0.1", port))
    assert resolve(f"http://two:{port}").address == (socket.AF_INET, ("127.0.0.9", port))


def test_the_main_process_never_imports_locust_or_gevent() -> None:
    code = (
        "import sys, sandbox.load.runner, sandbox.load.check, sandbox.load.calibrate, sandbox.load.plan\n"
        "print(sorted({'locust', 'gevent'} & set(sys.modules)))\n"
        "import sandbox.load.session\n"
        "print(sorted({'locust', 'gevent'} & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "['gevent', 'locust']"]
