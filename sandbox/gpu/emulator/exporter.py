"""The node's metrics on port 9400, as dcgm-exporter 4 has them; every scrape says that they are emulated."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from sandbox.gpu.emulator import model, snapshot
from sandbox.gpu.emulator.devices import Board, Gpu, MigInstance, Reading
from sandbox.gpu.emulator.snapshot import PULSE, Pulse

_LOG = logging.getLogger(__name__)
VERSION = "0.1.0"  # of the sandbox that this emulator belongs to
PLAIN, JSON = "text/plain; version=0.0.4; charset=utf-8", "application/json"
# The library thinks in OpenMetrics, where counters end in _total; DCGM's end as they like.
_DCGM_COUNTER = re.compile(rb"^(# (?:HELP|TYPE) DCGM_\w+)_total ", re.MULTILINE)
_REQUEST_SECONDS = 5.0
_POLL_SECONDS = 0.5  # until `shutdown` is noticed


@dataclass(frozen=True)
class Entity:
    """What DCGM watches: a whole GPU, or an instance of one that is cut up."""

    board: Board
    gpu: Gpu
    instance: MigInstance | None
    reading: Reading

    @property
    def uuid(self) -> str:
        """What a container holds of it."""
        return self.instance.uuid if self.instance else self.gpu.uuid

    @property
    def total(self) -> int:
        """Its memory in MiB."""
        return self.instance.shape.memory_mib if self.instance else self.board.config.profile.memory_mib

    @property
    def used(self) -> int:
        """MiB of it."""
        return round(self.reading.memory_used)

    def errors(self, kind: str) -> int:
        """ECC errors: `sbe` or `dbe`."""
        return sum(getattr(fault, kind) for fault in self.board.active(self.gpu.index))

    def labels(self) -> dict[str, str]:
        """As dcgm-exporter puts them on every series; the instance's are absent on a whole GPU."""
        found = {
            "gpu": str(self.gpu.index),
            "UUID": self.gpu.uuid,
            "pci_bus_id": self.gpu.pci_bus_id,
            "device": f"nvidia{self.gpu.minor}",
            "modelName": self.board.config.profile.product,
            "Hostname": self.board.config.node,
        }
        if self.instance:
            found |= {"GPU_I_PROFILE": self.instance.profile, "GPU_I_ID": str(self.instance.gi)}
        return found


@dataclass(frozen=True)
class Field:
    """One field of DCGM, with the type and the help that dcgm-exporter's lists of counters give it.

    `whole` is one that DCGM does not have for instances; `always` one that a GPU has which has fallen off the bus.
    """

    name: str
    kind: str
    help: str
    value: Callable[[Entity], float]
    whole: bool = False
    always: bool = False


_G, _C = "gauge", "counter"
_DEV, _PROF = "DCGM_FI_DEV_", "DCGM_FI_PROF_"
FIELDS = (
    Field(f"{_DEV}SM_CLOCK", _G, "SM clock frequency (in MHz).", lambda e: round(e.reading.sm_clock)),
    Field(f"{_DEV}MEM_CLOCK", _G, "Memory clock frequency (in MHz).", lambda e: e.board.config.profile.memory_clock),
    Field(f"{_DEV}MEMORY_TEMP", _G, "Memory temperature (in C).", lambda e: round(e.reading.memory_temperature)),
    Field(f"{_DEV}GPU_TEMP", _G, "GPU temperature (in C).", lambda e: round(e.reading.temperature)),
    Field(f"{_DEV}POWER_USAGE", _G, "Power draw (in W).", lambda e: round(e.reading.power, 3)),
    Field(
        f"{_DEV}TOTAL_ENERGY_CONSUMPTION",
        _C,
        "Total energy consumption since boot (in mJ).",
        lambda e: round(e.reading.energy),
    ),
    Field(f"{_DEV}PCIE_REPLAY_COUNTER", _C, "Total number of PCIe retries.", lambda _: 0),
    Field(f"{_DEV}GPU_UTIL", _G, "GPU utilization (in %).", lambda e: _percent(e.reading.utilization), whole=True),
    Field(
        f"{_DEV}MEM_COPY_UTIL",
        _G,
        "Memory utilization (in %).",
        lambda e: _percent(e.reading.memory_utilization),
        whole=True,
    ),
    Field(
        f"{_DEV}XID_ERRORS",
        _G,
        "Value of the last XID error encountered.",
        lambda e: snapshot.xid(e.board, e.gpu),
        always=True,
    ),
    Field(f"{_DEV}FB_TOTAL", _G, "Total framebuffer memory (in MiB).", lambda e: e.total),
    Field(f"{_DEV}FB_FREE", _G, "Framebuffer memory free (in MiB).", lambda e: e.total - e.used),
    Field(f"{_DEV}FB_USED", _G, "Framebuffer memory used (in MiB).", lambda e: e.used),
    Field(f"{_DEV}ECC_SBE_VOL_TOTAL", _C, "Total number of single-bit volatile ECC errors.", lambda e: e.errors("sbe")),
    Field(f"{_DEV}ECC_DBE_VOL_TOTAL", _C, "Total number of double-bit volatile ECC errors.", lambda e: e.errors("dbe")),
    Field(
        f"{_DEV}NVLINK_BANDWIDTH_TOTAL",
        _C,  # so dcgm-exporter says; it is a rate, in MB/s
        "Total number of NVLink bandwidth counters for all lanes.",
        lambda e: round(e.reading.nvlink_bandwidth / 1e6),
        whole=True,
    ),
    Field(
        f"{_PROF}GR_ENGINE_ACTIVE",
        _G,
        "Ratio of time the graphics engine is active.",
        lambda e: round(e.reading.utilization, 6),
    ),
    Field(
        f"{_PROF}PIPE_TENSOR_ACTIVE",
        _G,
        "Ratio of cycles the tensor (HMMA) pipe is active.",
        lambda e: round(e.reading.tensor_active, 6),
    ),
    Field(
        f"{_PROF}DRAM_ACTIVE",
        _G,
        "Ratio of cycles the device memory interface is active sending or receiving data.",
        lambda e: round(e.reading.memory_utilization, 6),
    ),
)


class Dcgm(Collector):
    """The board, as series."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """One family for each field, then what says that none of it is real."""
        # one state of things for all families of a scrape
        watched = [
            (entity, self._board.lost(entity.gpu.index), [entity.labels() | held for held in self._held(entity)])
            for entity in self._entities()
        ]
        for field in FIELDS:
            metric = Metric(field.name, field.help, field.kind)
            for entity, lost, labels in watched:
                if (lost and not field.always) or (field.whole and entity.instance):
                    continue
                value = float(field.value(entity))
                for each in labels:
                    metric.add_sample(field.name, each, value)
            yield metric
        config = self._board.config
        about = {"emulated": "true", "node": config.node, "profile": config.profile.name, "mode": config.mode}
        yield InfoMetricFamily("gpu_emulator", "These GPUs do not exist.", about | {"version": VERSION})

    def _entities(self) -> Iterator[Entity]:
        readings, fresh = self._board.readings, model.idle(self._board.config.profile)
        for gpu in self._board.gpus:
            for instance in gpu.mig or (None,):
                uuid = instance.uuid if instance else gpu.uuid
                yield Entity(self._board, gpu, instance, readings.get(uuid, fresh))

    def _held(self, entity: Entity) -> list[dict[str, str]]:
        """The labels of those who hold it, each in series of its own; none at all where nobody does."""
        holders = snapshot.holding(self._board, entity.uuid)
        held = [{"container": each.container, "namespace": each.namespace, "pod": each.pod} for each in holders]
        return held or [{}]


def metrics(registry: CollectorRegistry) -> bytes:
    """In Prometheus's text format, whatever is asked for: so does dcgm-exporter."""
    return _DCGM_COUNTER.sub(rb"\1 ", generate_latest(registry))


def serve(board: Board, port: int = 9400, *, pulse: Pulse = PULSE) -> ThreadingHTTPServer:
    """Answer /metrics, /state and /healthz, in threads of its own, until `shutdown` of what is returned."""
    registry = CollectorRegistry()
    registry.register(Dcgm(board))
    ProcessCollector(registry=registry)

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(HTTPStatus.OK, PLAIN, metrics(registry))
            elif path == "/state":
                self._answer(HTTPStatus.OK, JSON, json.dumps(snapshot.state(board, pulse)).encode())
            elif path == "/healthz":
                status = HTTPStatus.OK if pulse.alive else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, PLAIN, b"ok\n" if pulse.alive else b"the telemetry stands still\n")
            else:
                self._answer(HTTPStatus.NOT_FOUND, PLAIN, b"/metrics, /state, /healthz\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - so the library calls it
            _LOG.debug(format, *args)

    server = _Server(("", port), Handler)
    threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name="exporter", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    """On every address of both families, where there are both."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    daemon_threads = True
    request_queue_size = 32

    def server_bind(self) -> None:
        """Without asking a DNS server for this machine's name, as the library's own does."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", self.socket.getsockname()[1]

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the library's signature
        """Of one request: whoever asked has hung up."""
        _LOG.debug("%s: a scrape failed", client_address, exc_info=True)


def _percent(share: float) -> int:
    return round(100 * share)
