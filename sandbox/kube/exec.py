"""Run a command in a container through the API server, over WebSocket."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import websocket

from sandbox.errors import DeadlineExceeded
from sandbox.kube.failures import Unreachable, parse
from sandbox.kube.transport import Transport

_STDOUT, _STDERR, _ERROR = 1, 2, 3
_V5, _V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"


@dataclass(frozen=True)
class ExecResult:
    """How a command in a container ended. `code` is its exit status; -1 when it never started, with why in `stderr`."""

    code: int
    stdout: str
    stderr: str


def run(
    transport: Transport,
    path: str,
    command: Sequence[str],
    *,
    container: str | None,
    within: float,
) -> ExecResult:
    """Run `command` in the pod at `path` and wait for its end.

    Raises:
        DeadlineExceeded: it did not end within `within` seconds; the process may run on in the container.
        ApiError: the server refused (no such pod, not allowed).
        Unreachable: the connection could not be made or was cut.
    """
    query = [("command", part) for part in command] + [("stdout", "true"), ("stderr", "true")]
    query += [("container", container)] if container else []
    deadline = time.monotonic() + within
    got: dict[int, bytearray] = {_STDOUT: bytearray(), _STDERR: bytearray(), _ERROR: bytearray()}
    with transport.socket(path, query, [_V5, _V4], within) as link:
        try:
            _drain(link, got, deadline)
        except websocket.WebSocketTimeoutException as error:
            raise DeadlineExceeded(
                f"`{' '.join(command)}` did not end within {within:g} s",
                where=path,
                details=[line for line in got[_STDOUT].decode("utf-8", "replace").splitlines()[-5:] if line],
            ) from error
        except (websocket.WebSocketException, OSError) as error:
            if not got[_ERROR]:
                raise Unreachable(transport.server, error) from error
    return _result(got)


def _drain(link: websocket.WebSocket, got: dict[int, bytearray], deadline: float) -> None:
    while True:
        link.settimeout(max(0.01, deadline - time.monotonic()))
        opcode, frame = link.recv_data(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return
        if opcode in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) and frame and frame[0] in got:
            got[frame[0]] += frame[1:]


def _result(got: dict[int, bytearray]) -> ExecResult:
    stdout, stderr, verdict = (got[channel].decode("utf-8", "replace") for channel in (_STDOUT, _STDERR, _ERROR))
    status = parse(verdict)
    if not isinstance(status, dict):
        return ExecResult(-1, stdout, stderr + (verdict or "the server closed the stream without an exit status"))
    if status.get("status") == "Success":
        return ExecResult(0, stdout, stderr)
    causes = status.get("details", {}).get("causes", [])
    codes = [cause["message"] for cause in causes if cause.get("reason") == "ExitCode"]
    if codes:
        return ExecResult(int(codes[0]), stdout, stderr)
    return ExecResult(-1, stdout, stderr + str(status.get("message", "")))
