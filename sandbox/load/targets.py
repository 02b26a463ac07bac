"""Which servers a load asked, and how often: a locustfile may have a host of its own."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


class Targets:
    """A count of requests by server.

    Attributes:
        counts: requests by `scheme://host:port`; those to the server that the load names, by the URL it has there,
            under whichever name they asked for it; those of which nobody told, under an empty text.
    """

    def __init__(self, named: str) -> None:
        """Begin to count; `named`: the URL of the load."""
        self.counts: Counter[str] = Counter()
        self._named = named
        self._known: dict[str, str] = {"": ""}

    def ask(self, url: Any) -> None:
        """Count a request to `url`, a text or what has one; nothing, if it is not known."""
        origin = _origin(str(url)) if url else ""
        if origin not in self._known:
            self._known[origin] = self._named if _same(origin, _origin(self._named)) else origin
        self.counts[self._known[origin]] += 1


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # no port, no address
        return url
    return f"{parts.scheme}://{parts.hostname or ''}:{port}" if parts.hostname else url


def _same(one: str, other: str) -> bool:
    """Whether two names stand for one server: `localhost` and 127.0.0.1 do."""
    if one == other:
        return True
    first, second = urlsplit(one), urlsplit(other)
    if first.netloc.rpartition(":")[2] != second.netloc.rpartition(":")[2]:
        return False
    return bool(_addresses(first.hostname) & _addresses(second.hostname))


def _addresses(host: str | None) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()
