"""Server-sent events, read as they come: bytes in at any boundaries, whole payloads out. Source: WHATWG HTML, 9.2."""

from __future__ import annotations

import json

from sandbox.load.wire import ProtocolError

_MOST_HELD = 4_000_000
_SILENT = frozenset({b"id", b"retry"})
_BOM = b"\xef\xbb\xbf"


class EventStream:
    """Splits an event stream into the payloads of its events.

    A line that is no field of an event stream is given out as a payload too: whoever parses payloads
    will find it malformed, where the standard would drop it in silence.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._name = b""
        self._after_cr = False
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take body bytes, return the payloads of the events that are complete with them.

        Raises:
            ProtocolError: a line that does not end.
        """
        return self._lines(data)

    @property
    def between(self) -> bool:
        """Exactly before an event: nothing of one was read yet, nor of a line."""
        return self._begun and not (self._tail or self._data or self._name or self._after_cr)

    def finish(self) -> list[bytes]:
        """The stream ended as announced: return the payload a missing last blank line has held back."""
        payloads = self._lines(b"\n") if self._tail else []
        return payloads + self._dispatch()

    def _lines(self, data: bytes) -> list[bytes]:
        if not data:
            return []
        text = self._tail + data
        if self._after_cr:
            text = text.removeprefix(b"\n")
            self._after_cr = False
        if not self._begun:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._tail = text
                return []
            text = text.removeprefix(_BOM)
            self._begun = True
        lines = text.splitlines(keepends=True)
        self._tail = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        if len(self._tail) > _MOST_HELD:
            raise ProtocolError(f"an event of more than {_MOST_HELD} bytes")
        self._after_cr = text.endswith(b"\r")
        payloads: list[bytes] = []
        for line in lines:
            payloads += self._line(line.rstrip(b"\r\n"))
        return payloads

    def _line(self, line: bytes) -> list[bytes]:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._name = value.strip()
        elif name == b"error":  # llama.cpp's servers up to 2025 wrote `error: {…}`
            return [_as_error(value.strip())]
        elif name and name not in _SILENT:
            return [line]
        return []

    def _dispatch(self) -> list[bytes]:
        named, self._name = self._name, b""
        if not self._data:
            return []
        payload = b"\n".join(self._data)
        self._data.clear()
        return [_as_error(payload) if named == b"error" else payload]


def _as_error(payload: bytes) -> bytes:
    """What an event or a line called `error` holds, as the object that OpenAI's own errors are."""
    try:
        value = json.loads(payload)
    except ValueError:
        value = payload.decode(errors="replace") or "error"
    return (
        payload if isinstance(value, dict) and value.get("error") else json.dumps({"error": value or "error"}).encode()
    )
