"""The node's GPUs as documents: devices.json, which nvidia-smi reads, and /state, which the harness reads."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.gpu.emulator import model
from sandbox.gpu.emulator.devices import Board, Gpu, Holder, Reading

Object = dict[str, Any]
_MOST_SECONDS = 5.0  # without a look, after which the telemetry is dead


@dataclass
class Pulse:
    """What the telemetry loop has to say beside the readings."""

    ticked: float = -math.inf  # on the monotonic clock
    slowed: tuple[tuple[str, str], ...] = ()  # namespace and pod
    not_slowed: tuple[tuple[str, str, str], ...] = ()  # and why
    unread: tuple[tuple[str, str, str], ...] = ()  # and why: their GPUs look idle

    @property
    def alive(self) -> bool:
        """Whether the readings are of now."""
        return time.monotonic() - self.ticked < _MOST_SECONDS


PULSE = Pulse()  # there is one telemetry loop in a process, and one exporter that tells of it


def devices(board: Board) -> Object:
    """What nvidia-smi can know."""
    profile = board.config.profile
    return {
        "emulated": True,
        "node": board.config.node,
        "driverVersion": profile.driver_version,
        "cudaVersion": profile.cuda_version,
        "devices": [_device(board, gpu) for gpu in board.gpus],
    }


def state(board: Board, pulse: Pulse = PULSE) -> Object:
    """What the harness wants to know: who holds what, and what is wrong with it."""
    return {
        "node": board.config.node,
        "emulated": True,
        "mode": board.config.mode,
        "devices": [_device(board, gpu) | _use(board, gpu) for gpu in board.gpus],
        "pluginDown": board.plugin_down(),
        "slowed": [{"namespace": namespace, "pod": pod} for namespace, pod in pulse.slowed],
        "notSlowed": [{"namespace": namespace, "pod": pod, "why": why} for namespace, pod, why in pulse.not_slowed],
        "unread": [{"namespace": namespace, "pod": pod, "why": why} for namespace, pod, why in pulse.unread],
    }


def write(path: Path, document: Object) -> None:
    """Replace a document in one go: whoever reads it gets the old one or the new one. Everybody may read it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document), encoding="utf-8")
    fresh.chmod(0o644)
    fresh.replace(path)


def holding(board: Board, *uuids: str) -> Iterator[Holder]:
    """The containers that hold one of these."""
    return (holder for holder in board.holders if not set(uuids).isdisjoint(holder.uuids))


def xid(board: Board, gpu: Gpu) -> int:
    """The last XID of a GPU; 0 when nothing is wrong with it."""
    return next((fault.xid for fault in reversed(board.active(gpu.index)) if fault.xid), 0)


def _device(board: Board, gpu: Gpu) -> Object:
    profile = board.config.profile
    lost = board.lost(gpu.index)
    reading = Reading() if lost else board.readings.get(gpu.uuid, model.idle(profile))
    faults = board.active(gpu.index)
    used = round(reading.memory_used)
    return {
        "index": gpu.index,
        "minor": gpu.minor,
        "uuid": gpu.uuid,
        "name": profile.product,
        "brand": profile.brand,
        "architecture": profile.architecture,
        "serial": gpu.serial,
        "pciBusId": gpu.pci_bus_id,
        "pciDeviceId": profile.pci_device_id,
        "computeCap": profile.compute_capability,
        "temperatureGpu": round(reading.temperature),
        "temperatureMemory": round(reading.memory_temperature) if profile.hbm else None,
        "powerDraw": round(reading.power, 2),
        "powerLimit": profile.power_limit,
        "powerDefaultLimit": profile.power_limit,
        "energyMj": round(reading.energy),
        "utilizationGpu": round(100 * reading.utilization),
        "utilizationMemory": round(100 * reading.memory_utilization),
        "memoryTotal": profile.memory_mib,
        "memoryUsed": used,
        "memoryFree": profile.memory_mib - used,
        "clocksSm": round(reading.sm_clock),
        "clocksMem": profile.memory_clock,
        "clocksMaxSm": profile.max_sm_clock,
        "clocksMaxMem": profile.memory_clock,
        # GPUs with HBM know no other state; the others save power when they have nothing to do
        "pstate": "P0" if profile.hbm or reading.utilization else "P8",
        "eccCorrected": sum(fault.sbe for fault in faults),
        "eccUncorrected": sum(fault.dbe for fault in faults),
        "xid": xid(board, gpu),
        "throttle": next((fault.throttle for fault in faults if fault.throttle), ""),
        "migMode": "Enabled" if gpu.mig else "Disabled",
        "lost": lost,
        "migDevices": [
            {
                "index": each.position,
                "gi": each.gi,
                "ci": each.ci,
                "profile": each.profile,
                "uuid": each.uuid,
                "memoryTotal": each.shape.memory_mib,
                "memoryUsed": round(board.readings.get(each.uuid, Reading()).memory_used),
                "multiprocessors": each.shape.multiprocessors,
            }
            for each in gpu.mig
        ],
    }


def _use(board: Board, gpu: Gpu) -> Object:
    ours = set(gpu.uuids)
    return {
        "health": board.unhealthy(gpu.index) or "Healthy",
        "offeredBy": "device-plugin" if gpu.index in board.config.plugin_indices else "dra",
        "holders": [
            {
                "namespace": holder.namespace,
                "pod": holder.pod,
                "container": holder.container,
                "uuids": [uuid for uuid in holder.uuids if uuid in ours],
            }
            for holder in holding(board, *gpu.uuids)
        ],
        "faults": [fault.id for fault in board.active(gpu.index)],
    }
