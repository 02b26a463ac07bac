"""An HTTP/1.1 reply, read as it comes: bytes in at any boundaries, body bytes out. Source: RFC 9112."""

from __future__ import annotations

from enum import Enum

_MOST_HEAD = 65536
_HEX = b"0123456789abcdefABCDEF"


class ProtocolError(Exception):
    """The peer does not speak HTTP/1.1."""


class _At(Enum):
    HEAD = 0
    SIZE = 1
    DATA = 2
    AFTER_DATA = 3
    TRAILER = 4
    LENGTH = 5
    UNTIL_CLOSE = 6
    END = 7


class HttpReply:
    """Parser of one reply.

    Attributes:
        status: the status code; None until the head is complete.
        headers: lower-case names; repeated ones joined by a comma.
        complete: the body's announced end was seen.
        reusable: complete, and the connection may carry another request.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.complete = False
        self.reusable = False
        self._at = _At.HEAD
        self._rest = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Take what was received, return the body bytes in it. ProtocolError: not HTTP/1.1."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._at is _At.HEAD:
            data = self._head(data)
        if self._at is _At.LENGTH:
            return self._by_length(data)
        if self._at is _At.UNTIL_CLOSE:
            return data
        return self._chunks(data) if self._at not in (_At.HEAD, _At.END) else b""

    @property
    def between(self) -> bool:
        """Exactly before a chunk: what comes next is its size."""
        return self._at is _At.SIZE and not self._rest

    def eof(self) -> None:
        """The peer closed: for a body without an announced end, that is its end."""
        if self._at is _At.UNTIL_CLOSE:
            self._finish(reusable=False)

    def _finish(self, *, reusable: bool) -> None:
        self._at = _At.END
        self.complete = True
        self.reusable = reusable and "close" not in self.headers.get("connection", "").lower()

    def _head(self, data: bytes) -> bytes:
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if not data.startswith(b"HTTP/1."[: len(data)]):
                    raise ProtocolError(f"not an HTTP/1.1 reply: {data[:40]!r}")
                if len(data) > _MOST_HEAD:
                    raise ProtocolError(f"a head of more than {_MOST_HEAD} bytes")
                self._rest = data
                return b""
            status, headers = _parse_head(data[:end])
            data = data[end + 4 :]
            if status >= 200:  # noqa: PLR2004 - RFC 9110: 1xx replies announce, they do not answer
                break
        self.status, self.headers = status, headers
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._at = _At.SIZE
        elif status in (204, 304):
            self._finish(reusable=True)
        elif "content-length" in headers:
            self._left = _decimal(headers["content-length"])
            self._at = _At.LENGTH
        else:
            self._at = _At.UNTIL_CLOSE
        return data

    def _by_length(self, data: bytes) -> bytes:
        body = data[: self._left]
        self._left -= len(body)
        if not self._left:
            self._finish(reusable=len(data) == len(body))
        return body

    def _chunks(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        place = 0
        while self._at is not _At.END:
            if self._at is _At.DATA:
                piece = data[place : place + self._left]
                pieces.append(piece)
                place += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._at = _At.AFTER_DATA
            end = data.find(b"\r\n", place)
            if end < 0:
                self._rest = data[place:]
                if len(self._rest) > _MOST_HEAD:
                    raise ProtocolError("a chunk size line without end")
                break
            self._line(data[place:end])
            place = end + 2
        return b"".join(pieces)

    def _line(self, line: bytes) -> None:
        if self._at is _At.AFTER_DATA:
            if line:
                raise ProtocolError(f"{line[:40]!r} after a chunk, where its end should be")
            self._at = _At.SIZE
        elif self._at is _At.TRAILER:
            if not line:
                self._finish(reusable=True)
        else:
            self._left = _size(line.split(b";", 1)[0].strip())
            self._at = _At.DATA if self._left else _At.TRAILER


def _size(digits: bytes) -> int:
    if not digits or digits.strip(_HEX):  # int() would also take signs and underscores
        raise ProtocolError(f"{digits[:40]!r} is not a chunk size")
    return int(digits, 16)


def _decimal(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise ProtocolError(f"{digits[:40]!r} is not a content length")
    return int(digits)


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not (parts[1].isascii() and parts[1].isdigit()):  # noqa: PLR2004 - version and code
        raise ProtocolError(f"not an HTTP/1.1 reply: {first[:40]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ProtocolError(f"not a header: {line[:40]!r}")
        key = name.strip().lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return int(parts[1]), headers
