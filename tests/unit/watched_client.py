"""A client on gevent's event loop that is held up on purpose, and tells all its clock readings. Run by tests.

`python watched_client.py ORDER-AS-JSON` prints one JSON object a request: number, began, opening, outcome, arrivals,
uncertainty, end, end_uncertainty, all in nanoseconds.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 - after the patch, like all that follows
import random  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from sandbox.load.client import Client, resolve  # noqa: E402
from sandbox.load.golden import MODEL  # noqa: E402
from sandbox.load.green import GreenTransport  # noqa: E402
from sandbox.load.transport import Limits  # noqa: E402

BODY = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()


def spin(seconds: float) -> None:
    """Keep the event loop from everything else."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def beat() -> None:
    """The load process's pulse: its loop never rests longer than that."""
    while True:
        gevent.sleep(0.01)


def hold_up(stalls: list[float], seed: int) -> None:
    """Block the loop again and again, at random."""
    dice = random.Random(seed)  # noqa: S311 - reproducible, nothing secret
    while True:
        gevent.sleep(dice.expovariate(8))
        spin(dice.choice(stalls))


def main(order: dict[str, Any]) -> None:
    """Send requests as ordered: `url`, `streams` at once, `each` so many, and what else is read below."""
    ca_file = Path(order["ca_file"]) if order.get("ca_file") else None
    limits = Limits(*order.get("limits", (60.0, 30.0)))
    client = Client(
        resolve(order["url"], ca_file), limits, transport=GreenTransport(), keep_alive=order.get("keep_alive", False)
    )
    gevent.spawn(beat)
    if order.get("stalls"):
        gevent.spawn(hold_up, order["stalls"], order.get("seed", 1))
    if order.get("once"):  # one stall, so long after the start
        gevent.spawn_later(order["once"][0], spin, order["once"][1])

    def ask(stream: int) -> None:
        gevent.sleep(stream * order.get("apart", 0.0))
        for turn in range(order.get("each", 1)):
            number = f"{stream}.{turn}"
            exchange = client.exchange(BODY, number)
            reply = exchange.reply
            told = {"number": number, "began": exchange.began, "opening": exchange.opening, "outcome": reply.outcome}
            told |= {"arrivals": list(reply.arrivals), "uncertainty": list(reply.uncertainty), "detail": reply.detail}
            told |= {"end": reply.end, "end_uncertainty": reply.end_uncertainty, "bytes": reply.content_bytes}
            print(json.dumps(told), flush=True)  # noqa: T201 - the test reads it

    if order.get("ready"):
        Path(order["ready"]).touch()
    gevent.joinall([gevent.spawn(ask, stream) for stream in range(order.get("streams", 1))], raise_error=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
