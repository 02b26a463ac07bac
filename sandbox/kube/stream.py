"""A command in a container whose standard input stays open: for what has to end when we do."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress

import websocket

from sandbox.kube.client import Kube
from sandbox.kube.failures import Unreachable

STDOUT, STDERR = 1, 2
_STDIN = b"\x00"
_V5, _V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
_FRAME = 32_768
_CONNECT_SECONDS = 30.0


class Stream:
    """A command that runs. One thread may read while another sends."""

    def __init__(self, kube: Kube, namespace: str, pod: str, command: Sequence[str]) -> None:
        """Start it.

        Raises:
            ApiError: the server refused (no such pod, not allowed).
            Unreachable: no answer.
        """
        transport = kube._transport  # noqa: SLF001 - the same room
        query = [("command", part) for part in command]
        query += [("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec"
        self._held = ExitStack()
        self._link = self._held.enter_context(transport.socket(path, query, [_V5, _V4], _CONNECT_SECONDS))
        self._link.settimeout(None)  # the connection's keep-alive notices a dead peer
        self._server = transport.server

    def send(self, data: bytes) -> None:
        """Write to its standard input.

        Raises:
            Unreachable: the connection is gone.
        """
        try:
            for place in range(0, len(data), _FRAME):
                self._link.send_binary(_STDIN + data[place : place + _FRAME])
        except (websocket.WebSocketException, OSError) as error:
            raise Unreachable(self._server, error) from error

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Yield (STDOUT or STDERR, bytes) as they come, until it ends or the connection does."""
        try:
            while True:
                opcode, frame = self._link.recv_data(control_frame=True)
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return
                if opcode == websocket.ABNF.OPCODE_BINARY and frame and frame[0] in (STDOUT, STDERR):
                    yield frame[0], frame[1:]
        except (websocket.WebSocketException, OSError):
            return

    def close(self) -> None:
        """Cut the connection: its standard input ends, and so does `read` in whatever thread."""
        with suppress(OSError):  # it may be cut already
            if self._link.sock is not None:
                self._link.sock.shutdown(socket.SHUT_RDWR)  # closing alone would leave a reader waiting
        self._held.close()
