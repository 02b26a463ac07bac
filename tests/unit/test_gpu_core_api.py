"""The emulator's connections: the API server over real sockets with and without TLS, and gRPC over unix sockets."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from sandbox.gpu.emulator import rpc
from sandbox.gpu.emulator.api import deviceplugin_pb2 as api
from sandbox.gpu.emulator.apiserver import GONE, NOT_FOUND, ApiError, ApiServer, follow

MAPS = "/api/v1/namespaces/x/configmaps"
NOW = None  # in a watch: send what there is and hang up


@dataclass
class Served:
    """What the server was asked, and what it is to say."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    clients: set[tuple[str, int]] = field(default_factory=set)
    objects: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    slow: float = 0.0
    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    hang_up: bool = False
    watches: queue.Queue[str | None] = field(default_factory=queue.Queue)


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {key.lower(): value for key, value in self.headers.items()}
            served.asked.append((self.command, self.path, headers, json.loads(raw) if raw else None))
            served.clients.add(self.client_address[:2])
            time.sleep(served.slow)
            served.together.wait(5)
            if "watch=true" in self.path and served.status == 200:
                self._watch()
                return
            default = {"kind": "Status", "reason": "Odd", "message": "no such thing"}
            payload = json.dumps(served.objects.get(self.path.partition("?")[0], default)).encode()
            self.send_response(served.status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
            self.close_connection = served.hang_up

        def _watch(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has left
                while (line := served.watches.get()) is not NOW:
                    self.wfile.write(f"{len(line):x}\r\n{line}\r\n".encode())
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _do  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serving(certificate: Path | None = None) -> Iterator[Served]:
    served = Served()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    http.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"{'https' if certificate else 'http'}://127.0.0.1:{http.server_address[1]}"
    try:
        yield served
    finally:
        served.watches.put(NOW)
        http.shutdown()
        thread.join()
        http.server_close()


@contextlib.contextmanager
def connected(served: Served, **more: Any) -> Iterator[ApiServer]:
    client = ApiServer(served.url, **{"timeout": 5.0, **more})
    try:
        yield client
    finally:
        client.close()


def event(kind: str, name: str, version: int, **data: str) -> str:
    thing = {"metadata": {"name": name, "resourceVersion": str(version)}, "data": data}
    return json.dumps({"type": kind, "object": thing}) + "\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    made = ["-keyout", str(path), "-out", f"{path}.crt", "-days", "2", "-subj", "/CN=test"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *curve, *made, "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_each_call_is_sent_as_the_api_server_wants_it() -> None:
    with serving() as served, connected(served) as client:
        served.objects["/api/v1/nodes/n"] = {"metadata": {"name": "n"}}
        assert client.get("/api/v1/nodes/n", {"fieldSelector": "a=b,c=d"})["metadata"]["name"] == "n"
        client.create("/api/v1/nodes", {"a": 1})
        client.update("/api/v1/nodes/n", {"a": 2})
        client.patch("/api/v1/nodes/n", {"a": None})
        client.patch("/api/v1/nodes/n", [{"op": "remove"}], "application/json-patch+json")
        client.delete("/api/v1/nodes/n")
        said = [(method, path, headers.get("content-type"), body) for method, path, headers, body in served.asked]
        assert said == [
            ("GET", "/api/v1/nodes/n?fieldSelector=a%3Db%2Cc%3Dd", None, None),
            ("POST", "/api/v1/nodes", "application/json", {"a": 1}),
            ("PUT", "/api/v1/nodes/n", "application/json", {"a": 2}),
            ("PATCH", "/api/v1/nodes/n", "application/merge-patch+json", {"a": None}),
            ("PATCH", "/api/v1/nodes/n", "application/json-patch+json", [{"op": "remove"}]),
            ("DELETE", "/api/v1/nodes/n", None, None),
        ]
        assert len(served.clients) == 1, "one connection for all"


def test_the_token_is_read_anew_and_the_certificate_checked(certificate: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    with serving(certificate) as served, connected(served, token=token, ca=certificate) as client:
        for text in ("first\n", "second\n"):
            token.write_text(text)
            client.get("/x")
        assert [headers["authorization"] for _, _, headers, _ in served.asked] == ["Bearer first", "Bearer second"]
        assert len(served.clients) == 1
        served.watches.put(event("ADDED", "a", 1))
        assert next(iter(client.watch(MAPS)))["object"]["metadata"]["name"] == "a"
        with connected(served) as stranger, pytest.raises(ApiError, match="CERTIFICATE_VERIFY_FAILED"):
            stranger.get("/x")


def test_in_a_pod_everything_is_found_where_kubernetes_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(FileNotFoundError):  # the certificate of a cluster this is not in
        ApiServer.in_cluster()


def test_a_refusal_says_what_and_why_and_leaves_the_connection_usable() -> None:
    with serving() as served, connected(served) as client:
        served.status = NOT_FOUND
        for _ in range(2):
            with pytest.raises(ApiError, match="GET /x: 404 Odd no such thing") as error:
                client.get("/x")
            assert (error.value.status, error.value.reason) == (NOT_FOUND, "Odd")
        with pytest.raises(ApiError, match="watch /x: 404"):
            next(client.watch("/x"))
        assert len(served.clients) == 2, "a watch has a connection of its own"


def test_no_answer_in_time_and_nobody_there_are_errors_without_a_status() -> None:
    with serving() as served, connected(served, timeout=0.1) as client:
        served.slow = 0.3
        with pytest.raises(ApiError, match="no answer TimeoutError") as error:
            client.get("/x")
        assert error.value.status == 0
        served.slow = 0.0
        client.get("/x")
    with connected(served) as client, pytest.raises(ApiError, match="no answer ConnectionRefusedError"):
        client.get("/x")


def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    with serving() as served, connected(served) as client:
        served.hang_up = True
        for _ in range(3):
            client.create("/x", {})
            time.sleep(0.02)
        assert len(served.asked) == 3


def test_calls_of_several_threads_do_not_wait_for_each_other() -> None:
    with serving() as served, connected(served) as client:
        served.together = threading.Barrier(5)
        threads = [threading.Thread(target=client.get, args=("/x",)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not served.together.broken, "all five were under way at once"
        assert len(served.clients) == 5


def test_a_watch_gives_events_as_they_come_and_errors_with_their_code() -> None:
    with serving() as served, connected(served) as client:
        events = client.watch(MAPS, {"resourceVersion": "7"}, seconds=9)
        for number in range(3):
            served.watches.put(event("MODIFIED", "a", number))
            assert next(events)["object"]["metadata"]["resourceVersion"] == str(number)
        path = f"{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=9&resourceVersion=7"
        assert served.asked[-1][1] == path
        gone = {"kind": "Status", "code": GONE, "reason": "Expired", "message": "too old"}
        served.watches.put(json.dumps({"type": "ERROR", "object": gone}) + "\n")
        with pytest.raises(ApiError, match="410 Expired too old"):
            next(events)
        served.watches.put(NOW)
        served.watches.put('{"type": "MOD')
        served.watches.put(NOW)
        with pytest.raises(ApiError, match="no answer JSONDecodeError"):
            next(client.watch(MAPS))


def test_closing_ends_a_wait_in_another_thread_at_once(certificate: Path) -> None:
    for tls in (None, certificate):
        with serving(tls) as served, connected(served, ca=tls) as client:
            ended: list[Exception | None] = []

            def wait(client: ApiServer = client, ended: list[Exception | None] = ended) -> None:
                try:
                    ended.extend([None for _ in client.watch(MAPS)])
                except ApiError as error:
                    ended.append(error)

            thread = threading.Thread(target=wait)
            thread.start()
            while not served.asked:
                time.sleep(0.01)
            client.close()
            thread.join(3)
            assert not thread.is_alive()
            with pytest.raises(ApiError, match="closed"):
                client.get("/x")


def test_following_goes_from_the_list_through_each_change_and_over_every_break(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed = {"metadata": {"resourceVersion": "5"}, "items": [json.loads(event("", "a", 4, x="1"))["object"]]}
    stop = threading.Event()
    with serving() as served, connected(served) as client, caplog.at_level(logging.WARNING):
        served.objects[MAPS] = listed
        found = follow(client, MAPS, {"fieldSelector": "metadata.name=a"}, stop)

        def seen() -> dict[str, str]:
            return {name: each["data"].get("x", "") for name, each in next(found).items()}

        assert seen() == {"a": "1"}
        served.watches.put(event("ADDED", "b", 6, x="2"))
        assert seen() == {"a": "1", "b": "2"}
        served.watches.put(event("BOOKMARK", "", 9))
        served.watches.put(NOW)  # the server ends a watch now and then
        served.watches.put(event("DELETED", "a", 10))
        assert seen() == {"b": "2"}
        assert "resourceVersion=9" in served.asked[-1][1]
        gone = {"kind": "Status", "code": GONE, "reason": "Expired"}
        served.watches.put(json.dumps({"type": "ERROR", "object": gone}) + "\n")
        assert seen() == {"a": "1"}, "listed anew"
        assert "410 Expired; again in 0.5 s" in caplog.text
        stop.set()
        assert list(found) == []


@pytest.fixture
def socket() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder) / "it.sock"


def test_a_server_is_made_of_functions_and_called_by_name(socket: Path) -> None:
    def prefer(request: api.PreStartContainerRequest, _: grpc.ServicerContext) -> api.CDIDevice:
        return api.CDIDevice(name=",".join(request.devices_ids))

    def count(request: api.PreStartContainerRequest, _: grpc.ServicerContext) -> Iterator[api.CDIDevice]:
        yield from (api.CDIDevice(name=each) for each in request.devices_ids)

    request, reply = api.PreStartContainerRequest, api.CDIDevice
    methods = {"Prefer": rpc.unary(prefer, request), "Count": rpc.stream(count, request)}
    socket.touch()  # somebody was killed
    server = rpc.serve(socket, [rpc.service("x.Service", methods)])
    try:
        with rpc.connect(socket) as channel:
            asked = request(devices_ids=["a", "b"])
            assert rpc.stub(channel, "/x.Service/Prefer", request, reply)(asked, timeout=5).name == "a,b"
            stream = rpc.stream_stub(channel, "/x.Service/Count", request, reply)(asked, timeout=5)
            assert [each.name for each in stream] == ["a", "b"]
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                rpc.stub(channel, "/x.Service/Other", request, reply)(asked, timeout=5)
    finally:
        rpc.end(server, socket)
    assert not socket.exists()
    with rpc.connect(socket) as channel, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        rpc.stub(channel, "/x.Service/Prefer", request, reply)(asked, timeout=5)


def test_a_stream_that_waits_for_news_hears_that_nobody_listens(socket: Path) -> None:
    news, waiting, ended = threading.Condition(), threading.Event(), threading.Event()

    def wait(_: api.Empty, context: grpc.ServicerContext) -> Iterator[api.Empty]:
        rpc.wake_at_end(context, news)
        try:
            yield api.Empty()
            with news:
                waiting.set()
                while context.is_active():
                    news.wait(30)
        finally:
            ended.set()

    server = rpc.serve(socket, [rpc.service("x.Service", {"Wait": rpc.stream(wait, api.Empty)})])
    try:
        with rpc.connect(socket) as channel:
            stream = rpc.stream_stub(channel, "/x.Service/Wait", api.Empty, api.Empty)(api.Empty())
            next(stream)
            assert waiting.wait(5)
            stream.cancel()  # type: ignore[attr-defined]
            assert ended.wait(5)
    finally:
        rpc.end(server, socket)
