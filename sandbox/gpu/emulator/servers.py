"""What the servers that hold devices are doing: their metrics, read all at once and within one deadline."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from sandbox.gpu.emulator.devices import Holder
from sandbox.gpu.emulator.model import Load
from sandbox.gpu.emulator.pods import Pods, Server

_LOG = logging.getLogger(__name__)
Object = dict[str, Any]
Key = tuple[str, str, str]  # namespace, pod, container

SECONDS = 0.6  # for all servers together to answer
_STALE_SECONDS = 5.0  # a server that is late is taken to do what it did
_AGAIN_SECONDS = 5.0  # until a server that hangs is asked again
_HANGS = 3  # times in a row it did not answer
_MOST_BYTES = 4 << 20
_VLLM_PREALLOCATES = 0.92
_BETWEEN_LOOKS = 0.5  # requests that ran and ended between two looks, when only tokens tell of them
OK = 200
# every name there is for one thing: sums of all series, but the fullest KV cache
NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv",
    "vllm:gpu_cache_usage_perc": "kv",  # of older versions
    "vllm:generation_tokens_total": "tokens",
    "vllm:prompt_tokens_total": "tokens",
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "waiting",
    "llamacpp:kv_cache_usage_ratio": "kv",  # of older versions
    "llamacpp:tokens_predicted_total": "tokens",
    "llamacpp:prompt_tokens_total": "tokens",
}
# where a server itself says how many requests it takes at once, by what its metrics begin with
_CAPACITY_AT = {"vllm": ("/admin/config", "max-num-seqs"), "llamacpp": ("/props", "total_slots")}


@dataclass(frozen=True)
class Sample:
    """What one answer says; `running` is None where it has nothing we know, `kind` is what its metrics begin with."""

    running: float | None = None
    waiting: float = 0.0
    kv: float = 0.0
    capacity: float = 0.0
    tokens: float = 0.0
    kind: str = ""


def parse(body: bytes, names: Mapping[str, str] = NAMES) -> Sample:
    """Read the few lines of a server's metrics that matter. Raises ValueError where one of them is no metric."""
    starts = tuple(name.encode() for name in names)
    lines = [line.rstrip() for line in body.split(b"\n") if line.startswith(starts)]
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(b"\n".join(lines).decode(errors="replace")):
        for sample in family.samples:
            role = names.get(sample.name)
            if role and math.isfinite(sample.value):
                so_far = found.get(role, 0.0)
                found[role] = max(so_far, sample.value) if role == "kv" else so_far + sample.value
    kinds = {line.partition(b":")[0].decode() for line in lines}
    return Sample(**found, kind=next((kind for kind in _CAPACITY_AT if kind in kinds), ""))


async def fetch(host: str, port: int, path: str, *, body: Object | None = None) -> tuple[int, bytes]:
    """GET, or POST `body` as JSON. Raises OSError or HTTPException; the time it may take is the caller's business."""
    sent = b"" if body is None else json.dumps(body).encode()
    name = f"[{host}]" if ":" in host else host
    head = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        f"Host: {name}:{port}",
        "Connection: close",
        "User-Agent: ai-k8s-sandbox-gpu-emulator",
        *([] if body is None else ["Content-Type: application/json", f"Content-Length: {len(sent)}"]),
    ]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write("\r\n".join([*head, "", ""]).encode() + sent)
        raw = bytearray()
        while chunk := await reader.read(1 << 16):
            raw += chunk
            if len(raw) > _MOST_BYTES:
                raise HTTPException(f"more than {_MOST_BYTES} bytes")
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)  # the socket is closed in the loop's next round, and there may be none
    answer = HTTPResponse(_Received(bytes(raw)))  # type: ignore[arg-type]  # of a socket it wants nothing but this
    answer.begin()
    return answer.status, answer.read()


@dataclass
class _Seen:
    """What is remembered of a server from one look to the next."""

    instance: str
    load: Load
    answered: float = -math.inf
    ask_at: float = -math.inf
    hangs: int = 0
    why: str = ""  # nothing is known of its work
    tokens: float = 0.0
    capacity: float | None = None


class Servers:
    """The loads of all holders, read again and again."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods
        self._seen: dict[Key, _Seen] = {}

    @property
    def unread(self) -> dict[tuple[str, str], str]:
        """Why nothing is known of what a pod does, by its namespace and name: no work there may be no work at all."""
        return {(namespace, pod): seen.why for (namespace, pod, _), seen in self._seen.items() if seen.why}

    async def read(self, holders: Collection[Holder]) -> dict[Key, Load]:
        """What each holder does now. One that is not known yet, does not run or has no metrics does nothing."""
        found: dict[Key, Load] = {}
        asked = []
        for holder in holders:
            key = (holder.namespace, holder.pod, holder.container)
            server = (self._pods.get(holder.namespace, holder.pod) or {}).get(holder.container)
            if server is None:
                continue
            if not server.instance:
                if not server.ended:
                    self._pods.again(holder.namespace, holder.pod)
                continue
            found[key] = server.load
            seen = self._seen.get(key)
            if seen is None or seen.instance != server.instance:
                seen = self._seen[key] = _Seen(server.instance, server.load)
            if server.load.utilization is not None:
                seen.why = ""
            elif server.reachable:
                asked.append(self._look(key, server, seen))
            else:
                seen.why = "it has no port, and no utilization is declared"
        self._seen = {key: seen for key, seen in self._seen.items() if key in found}
        found |= dict(await asyncio.gather(*asked))
        together = {(each.namespace, each.pod, each.container): _whole_gpus(each) for each in holders}
        return {key: replace(load, devices=together[key]) for key, load in found.items()}

    async def _look(self, key: Key, server: Server, seen: _Seen) -> tuple[Key, Load]:
        now = time.monotonic()
        if now >= seen.ask_at:
            try:
                async with asyncio.timeout(SECONDS):
                    seen.load = await self._ask(server, seen)
                seen.answered, seen.hangs = now, 0
                seen.why = "" if seen.load.serving else "it has no metrics that are known"
            except (ConnectionError, HTTPException, ValueError) as error:  # nobody is there, or it has no metrics
                _LOG.debug("%s/%s: %r", server.namespace, server.pod, error)
                seen.load, seen.why = server.load, "nobody listens, or what it says are no metrics"
                self._pods.again(server.namespace, server.pod)
            except OSError:  # no way there, or no answer in time
                seen.hangs += 1
                if seen.hangs >= _HANGS:
                    seen.ask_at = now + _AGAIN_SECONDS
                self._pods.again(server.namespace, server.pod)
        if now - seen.answered > _STALE_SECONDS:  # it hangs: it starts no kernels any more, and keeps its memory
            seen.load = replace(seen.load, running=0.0, waiting=0.0)
            seen.why = seen.why or "it does not answer"
        return key, seen.load

    async def _ask(self, server: Server, seen: _Seen) -> Load:
        status, body = await fetch(server.host, server.port, server.path)
        said = parse(body, NAMES | dict(server.names)) if status == OK else Sample()
        if said.running is None:
            return server.load
        if said.tokens < seen.tokens:  # it counts anew: another process, and maybe another container
            self._pods.again(server.namespace, server.pod)
        worked = math.isfinite(seen.answered) and said.tokens > seen.tokens
        seen.tokens = said.tokens
        declared = server.load
        if declared.capacity is None and not said.capacity and seen.capacity is None and said.kind:
            seen.capacity = 0.0  # asked once: were that to hang, nothing else would be heard of this server
            seen.capacity = await _capacity(server, said.kind)
        preallocates = _VLLM_PREALLOCATES if said.kind == "vllm" else 0.0
        return replace(
            declared,
            running=max(said.running, _BETWEEN_LOOKS if worked else 0.0),
            waiting=said.waiting,
            kv=said.kv,
            capacity=said.capacity or declared.capacity or seen.capacity or None,
            serving=True,
            preallocated=preallocates if declared.preallocated is None else declared.preallocated,
        )


async def _capacity(server: Server, kind: str) -> float:
    """What the server says it can do at once; 0 when it does not say."""
    path, key = _CAPACITY_AT[kind]
    status, body = await fetch(server.host, server.port, path)
    try:
        return max(float(json.loads(body)[key]), 0.0) if status == OK else 0.0
    except (ValueError, KeyError, TypeError):
        return 0.0


class _Received:
    """An answer that has come in whole, as `http.client` wants to read it."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _whole_gpus(holder: Holder) -> int:
    return sum(uuid.startswith("GPU-") for uuid in holder.uuids)
