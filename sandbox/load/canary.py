"""What the client itself adds, measured while it loads: streams of known send times beside those under test.

A golden server on the loopback address writes into each token when it wrote it. A few streams of it go through the
same client, in the same process and event loop as the load: what arrives late there was made late by the client or
by its machine, at the very rate and width of this load. Imported only inside the load process.
"""

from __future__ import annotations

import json

from gevent.event import Event
from gevent.pool import Group

from sandbox.load.client import Client, resolve
from sandbox.load.golden import MODEL
from sandbox.load.green import GreenTransport
from sandbox.load.record import Known
from sandbox.load.reply import UNKNOWN, Reply
from sandbox.load.transport import Limits

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
        self._client = Client(resolve(url), _LIMITS, transport=GreenTransport())
        self._known = Known()
        self._streams = Group()

    def fly(self, done: Event) -> None:
        """Keep streams going until `done`; those under way then are cut."""
        for _ in range(_STREAMS):
            self._streams.spawn(self._one_after_another, done)
        done.wait()
        self._streams.kill()

    def take(self) -> Known:
        """What became of the tokens since the last call."""
        known, self._known = self._known, Known()
        return known

    def _one_after_another(self, done: Event) -> None:
        while not done.is_set():
            reply = self._client.exchange(_BODY, keep=True).reply
            compare(reply, self._known)
            if reply.outcome != "ok":
                done.wait(_PAUSE)


def compare(reply: Reply, known: Known) -> None:
    """Hold a kept reply of a golden server against what its tokens say: when each was written.

    A token came between the server's clock before and after it wrote it. One that was read later than its own bound
    says after it surely had come proves that bounds are wrong. The last of a reply has nobody to say when it was
    written, and one that the server could not hand over at once came nobody knows when.
    """
    stamps = [tuple(map(int, text.split("/"))) for text in reply.text.split()]
    if len(stamps) != len(reply.arrivals):
        return
    known.late += [(seen - before) / 1e9 for seen, (before, _) in zip(reply.arrivals, stamps, strict=True)]
    written = [after for _, after in stamps[1:]]
    for seen, unsure, after in zip(reply.arrivals, reply.uncertainty, written, strict=False):
        if after and unsure != UNKNOWN:
            known.checked += 1
            if seen - unsure > after:
                known.uncovered.append((seen - unsure - after) / 1e9)
