"""The least that reads these streams: sockets and an event loop, nothing kept but the first token's time."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

TOKEN = re.compile(rb'"content": ?"[^"]')


class Stream(asyncio.Protocol):
    def __init__(self, request: bytes, ended: list[float | None]) -> None:
        self.request, self.ended = request, ended
        self.begun = time.perf_counter()
        self.first: float | None = None
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self.first is None and TOKEN.search(data):
            self.first = (time.perf_counter() - self.begun) * 1000
        self.tail = self.tail[-8:] + data[-8:]

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.append(self.first if self.tail.endswith(b"0\r\n\r\n") else None)


async def main(host: str, port: int, rate: float, requests: int, body: str) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}"
    request = f"{head}\r\nContent-Type: application/json\r\n\r\n{body}".encode()
    loop, tasks = asyncio.get_running_loop(), []
    ended: list[float | None] = []
    begun = loop.time()
    for number in range(requests):
        await asyncio.sleep(max(0.0, begun + number / rate - loop.time()))
        stream = Stream(request, ended)
        tasks.append(loop.create_task(loop.create_connection(lambda each=stream: each, host, port)))
    await asyncio.wait(tasks)
    deadline = loop.time() + 30
    while len(ended) < requests and loop.time() < deadline:  # noqa: ASYNC110 - an event per stream would cost more
        await asyncio.sleep(0.1)
    whole = sorted(first for first in ended if first is not None)
    json.dump({"ttft": whole, "failed": requests - len(whole)}, sys.stdout)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
