"""What the client itself adds, measured while it loads: streams of known send times beside those under test.

A golden server on the loopback address writes into each token when it wrote it. A few streams of it go through the
same client, in the same process and event loop as the load: what arrives late there was made late by the client or
by its machine, at the very rate and width of this load. Imported only inside the load process.
"""

from __future__ import annotations

import json

from gevent.event import Event
from gevent.pool import Group

from sandbox.load.client import Client, Limits, resolve
from sandbox.load.golden import MODEL
from sandbox.load.green import read_green
from sandbox.load.reply import Reply

_STREAMS = 4  # times the golden server's 50 tokens a second: enough for a p99 after three seconds
_LIMITS = Limits(30.0, 10.0)
_PAUSE = 0.2
_BODY = json.dumps(
    {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "How late are you?"}]}
).encode()


class Canary:
    """Streams that fly along until the load is done."""

    def __init__(self, url: str) -> None:
        """Make ready; `url` is a golden server's."""
        self._client = Client(resolve(url), _LIMITS, reader=read_green)
        self._late: list[float] = []
        self._streams = Group()

    def fly(self, done: Event) -> None:
        """Keep streams going until `done`; those under way then are cut."""
        for _ in range(_STREAMS):
            self._streams.spawn(self._one_after_another, done)
        done.wait()
        self._streams.kill()

    def take(self) -> list[float]:
        """How late each token was since the last call, in seconds."""
        late, self._late = self._late, []
        return late

    def _one_after_another(self, done: Event) -> None:
        while not done.is_set():
            reply = self._client.exchange(_BODY, keep=True).reply
            self._late += lateness(reply)
            if reply.outcome != "ok":
                done.wait(_PAUSE)


def lateness(reply: Reply) -> list[float]:
    """Seconds between a token's writing, which is its text, and its arrival; of a kept reply of a golden server."""
    written = [int(text) for text in reply.text.split()]
    if len(written) != len(reply.arrivals):
        return []
    return [(seen - sent) / 1e9 for seen, sent in zip(reply.arrivals, written, strict=True)]
