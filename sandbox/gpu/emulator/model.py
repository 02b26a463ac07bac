"""What a GPU's sensors say of the work on it: pure functions. docs/explanation/gpu-model.md says where each comes from.

Shares are 0..1, memory in MiB, power in W, energy in mJ, clocks in MHz, temperatures in degrees Celsius.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sandbox.gpu.emulator.config import Profile
from sandbox.gpu.emulator.devices import Fault, Gpu, Reading

CAPACITY = 256.0  # requests at once that fill a server which does not say (vLLM's --max-num-seqs)
WEIGHTS = 0.25  # of a device's memory, where nobody says how big the model is
BUDGET = 0.9  # of a device's memory that weights and KV cache may fill together

_ONE_REQUEST = 0.38  # busy share of a GPU that answers a single request: the rest of the time it waits for the CPU
_HALF = 1 / 8  # of the capacity: where half of what a single request leaves idle is used
_DRAM = 0.8  # of a busy GPU's time, memory is being read or written
_TENSOR = 0.6  # of its cycles, at most, the tensor cores of a GPU in the middle of a full batch work
_MEMORY_BOUND, _COMPUTE_BOUND = 0.35, 0.65  # how being busy, and computing densely, add up to the power limit
_POWER_SECONDS, _HEAT_SECONDS = 0.4, 20.0
_HBM_WARMER = 8.0  # busy HBM than the chip beside it
_SLICES = 7
_LINK_BYTES = {"blackwell": 100e9}  # per second and NVLink, both directions together
_OLDER_LINK_BYTES = 50e9
_LINK_SHARE = 0.2  # of NVLink's bandwidth, at most, that a model cut into parts takes


@dataclass(frozen=True)
class Load:
    """The work of one container that holds devices, and what its pod declares of it.

    Attributes:
        running: requests being worked on, now; a part of one for work that was over between two looks.
        waiting: requests that wait for their turn.
        capacity: requests at once that fill the device; None where nobody says.
        kv: share of the KV cache in use.
        serving: it is a server that is up, so its model lies in the device's memory.
        preallocated: share of the device's memory that it takes as it starts; none when it follows its KV cache.
        weights: MiB of its model on each of its devices, when declared.
        utilization: declared, for work that has no metrics.
        memory: MiB on each of its devices, when declared.
        devices: how many whole GPUs it works on together.
    """

    running: float = 0.0
    waiting: float = 0.0
    capacity: float | None = None
    kv: float = 0.0
    serving: bool = False
    preallocated: float | None = None
    weights: float | None = None
    utilization: float | None = None
    memory: float | None = None
    devices: int = 1


@dataclass(frozen=True)
class Work:
    """What all its holders together do on a device: `busy` and `dense` (how full its arithmetic is) are shares."""

    busy: float = 0.0
    dense: float = 0.0
    memory: float = 0.0
    links: float = 0.0


def busy(load: Load) -> float:
    """The share of time in which a kernel of this holder runs: 0 without work, rising with requests, never above 1."""
    if load.utilization is not None:
        return _share(load.utilization)
    requests = max(load.running, 0.0) + max(load.waiting, 0.0)
    full = _full(load)
    batching = full * (1 + _HALF) / (full + _HALF)
    return _ONE_REQUEST * min(requests, 1.0) + (1 - _ONE_REQUEST) * batching


def memory(load: Load, total: float) -> float:
    """MiB of a device with `total` MiB that this holder has taken."""
    if load.memory is not None:
        return min(max(load.memory, 0.0), total)
    if not load.serving and not load.utilization:
        return 0.0
    weights = min(WEIGHTS * total if load.weights is None else load.weights, total)
    if load.preallocated:
        return max(weights, _share(load.preallocated) * total)
    return weights + _share(load.kv) * max(BUDGET * total - weights, 0.0)


def work(loads: Sequence[Load], total: float) -> Work:
    """The sum of what the holders of one device do, as far as the device can."""
    each = [(busy(load), load) for load in loads]
    together = min(sum(share for share, _ in each), 1.0)
    dense = min(sum(share * _density(load) for share, load in each), together)
    spread = [share * _density(load) for share, load in each if load.devices > 1]
    return Work(together, dense, min(sum(memory(load, total) for load in loads), total), min(sum(spread), 1.0))


def read(
    profile: Profile,
    gpu: Gpu,
    loads: Mapping[str, Sequence[Load]],
    *,
    before: Reading | None,
    seconds: float,
    faults: Sequence[Fault] = (),
) -> dict[str, Reading]:
    """The readings of a GPU and of each of its instances, by UUID, `seconds` after the GPU's reading `before`."""
    if not gpu.mig:
        done = work(loads.get(gpu.uuid, ()), profile.memory_mib)
        return {gpu.uuid: _sense(profile, done, before, seconds, faults)}
    parts = {each.uuid: work(loads.get(each.uuid, ()), each.shape.memory_mib) for each in gpu.mig}
    slices = {each.uuid: each.shape.slices / _SLICES for each in gpu.mig}
    whole = Work(
        busy=min(sum(slices[uuid] * part.busy for uuid, part in parts.items()), 1.0),
        dense=min(sum(slices[uuid] * part.dense for uuid, part in parts.items()), 1.0),
        memory=min(sum(part.memory for part in parts.values()), profile.memory_mib),
    )
    sensed = _sense(profile, whole, before, seconds, faults)
    # power, heat and clocks have one sensor each, which every instance shows; engines and memory are its own
    own = {uuid: replace(sensed, **_activity(part), memory_used=part.memory) for uuid, part in parts.items()}
    return {gpu.uuid: sensed, **own}


def idle(profile: Profile) -> Reading:
    """A GPU that never did anything."""
    return Reading(
        power=profile.idle_power,
        temperature=profile.idle_temperature,
        memory_temperature=profile.idle_temperature if profile.hbm else 0.0,
        sm_clock=profile.idle_sm_clock,
    )


def _sense(profile: Profile, done: Work, before: Reading | None, seconds: float, faults: Sequence[Fault]) -> Reading:
    last = before or idle(profile)
    elapsed = max(seconds, 0.0)
    throttled = [fault for fault in faults if fault.throttle]
    clock = min((_share(fault.clock) for fault in throttled), default=1.0)
    demand = _MEMORY_BOUND * done.busy + _COMPUTE_BOUND * done.dense
    # dynamic power goes with frequency times voltage squared, and the voltage falls with the frequency, but less
    target = profile.idle_power + (profile.power_limit - profile.idle_power) * demand * clock**2
    power = _lag(last.power, target, elapsed, _POWER_SECONDS)
    warmth = (power - profile.idle_power) / max(profile.power_limit - profile.idle_power, 1.0)
    heat = profile.idle_temperature + (profile.load_temperature - profile.idle_temperature) * warmth
    temperature = _lag(last.temperature, heat, elapsed, _HEAT_SECONDS)
    if any(fault.throttle == "thermal" for fault in throttled):  # it throttles because it is that hot
        temperature = max(temperature, profile.slowdown_temperature)
    memory_heat = heat + _HBM_WARMER * done.busy
    link = _LINK_BYTES.get(profile.architecture.lower(), _OLDER_LINK_BYTES)
    return Reading(
        **_activity(done),
        memory_used=done.memory,
        power=power,
        energy=last.energy + (last.power + power) / 2 * elapsed * 1000,
        temperature=temperature,
        memory_temperature=_lag(last.memory_temperature, memory_heat, elapsed, _HEAT_SECONDS) if profile.hbm else 0.0,
        sm_clock=max(profile.max_sm_clock * clock, profile.idle_sm_clock) if done.busy else profile.idle_sm_clock,
        nvlink_bandwidth=_LINK_SHARE * done.links * profile.nvlinks * link,
    )


def _activity(done: Work) -> dict[str, float]:
    return {
        "utilization": done.busy,
        "memory_utilization": _DRAM * done.busy,
        "tensor_active": _TENSOR * done.dense,
    }


def _full(load: Load) -> float:
    requests = max(load.running, 0.0) + max(load.waiting, 0.0)
    return min(requests / max(load.capacity or CAPACITY, 1.0), 1.0)


def _density(load: Load) -> float:
    """A batch of many requests computes much for each byte of weights it reads; a single request hardly anything."""
    return _share(load.utilization) if load.utilization is not None else _full(load)


def _lag(before: float, target: float, seconds: float, constant: float) -> float:
    return target + (before - target) * math.exp(-seconds / constant)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
