from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpu_dra import PROFILE, fault, gpus
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.gpu.emulator import model
from sandbox.gpu.emulator.devices import Fault, Gpu, Reading
from sandbox.gpu.emulator.model import Load

WHOLE = gpus(1).gpus[0]
CUT = gpus(1, mig=[["1g.10gb", "3g.40gb"]]).gpus[0]
SHARE = st.floats(0, 1)
LOADS = st.builds(
    Load,
    running=st.floats(0, 2000),
    waiting=st.floats(0, 2000),
    capacity=st.none() | st.floats(0, 1000),
    kv=SHARE,
    serving=st.booleans(),
    preallocated=st.none() | SHARE,
    weights=st.none() | st.floats(0, 200_000),
    utilization=st.none() | st.floats(0, 3),
    memory=st.none() | st.floats(0, 200_000),
    devices=st.integers(1, 8),
)
quick = settings(deadline=None, max_examples=60)


def after(
    seconds: float, *loads: Load, gpu: Gpu = WHOLE, before: Reading | None = None, faults: Sequence[Fault] = ()
) -> Reading:
    on = {gpu.uuids[0]: loads}
    return model.read(PROFILE, gpu, on, before=before, seconds=seconds, faults=faults)[gpu.uuid]


def settled(*loads: Load, faults: Sequence[Fault] = (), gpu: Gpu = WHOLE) -> Reading:
    return after(1000, *loads, faults=faults, gpu=gpu)


@quick
@given(LOADS, st.floats(1, 500))
def test_more_requests_never_mean_less_work_power_heat_or_memory(load: Load, more: float) -> None:
    less, busier = settled(load), settled(replace(load, running=load.running + more, kv=min(1, load.kv + 0.1)))
    for name in ("utilization", "memory_utilization", "tensor_active", "power", "temperature", "memory_used"):
        assert getattr(busier, name) >= getattr(less, name) - 1e-9, name


@quick
@given(st.lists(LOADS, max_size=6), st.floats(0, 1e4), SHARE, st.sampled_from(["", "thermal", "power"]))
def test_no_sensor_leaves_its_range(loads: list[Load], seconds: float, clock: float, throttle: str) -> None:
    reading = after(seconds, *loads, faults=[fault(throttle=throttle, clock=clock)])
    assert 0 <= reading.utilization <= 1
    assert 0 <= reading.tensor_active <= 1
    assert 0 <= reading.memory_utilization <= 1
    assert 0 <= reading.memory_used <= PROFILE.memory_mib
    assert PROFILE.idle_power - 1e-9 <= reading.power <= PROFILE.power_limit + 1e-9
    assert PROFILE.idle_sm_clock <= reading.sm_clock <= PROFILE.max_sm_clock
    assert PROFILE.idle_temperature - 1e-9 <= reading.temperature <= PROFILE.slowdown_temperature
    assert 0 <= reading.nvlink_bandwidth <= PROFILE.nvlinks * 50e9


@quick
@given(st.lists(st.tuples(LOADS, st.floats(-1, 30), SHARE), max_size=20))
def test_energy_never_decreases(seconds: list[tuple[Load, float, float]]) -> None:
    reading: Reading | None = None
    energy = 0.0
    for load, elapsed, clock in seconds:
        reading = after(elapsed, load, before=reading, faults=[fault(throttle="power", clock=clock)])
        assert reading.energy >= energy
        energy = reading.energy


def test_a_pod_that_does_nothing_shows_nothing() -> None:
    for load in (Load(), Load(utilization=0.0), Load(capacity=64, weights=16000)):
        assert settled(load) == settled()
    reading = settled()
    assert (reading.utilization, reading.memory_used, reading.tensor_active, reading.nvlink_bandwidth) == (0, 0, 0, 0)
    assert reading.power == PROFILE.idle_power
    assert reading.sm_clock == PROFILE.idle_sm_clock
    assert reading.temperature == PROFILE.idle_temperature


def test_utilization_rises_with_requests_and_ends_at_one() -> None:
    shares = [model.busy(Load(running=running, capacity=64)) for running in (0, 1, 4, 16, 64, 500)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.38 < shares[1] < 0.6
    assert shares[-2:] == [1, 1]


def test_a_full_batch_draws_the_power_limit_and_a_single_request_far_less() -> None:
    full, single = settled(Load(running=256)), settled(Load(running=1))
    assert full.power > 0.99 * PROFILE.power_limit
    # decoding alone draws 137 to 300 W of an H200's 700 (arXiv 2605.11999)
    assert 137 < single.power < 300
    assert full.temperature > 0.99 * PROFILE.load_temperature


def test_power_follows_within_two_seconds_and_heat_takes_its_time() -> None:
    start, full = settled(), Load(running=256)
    soon = after(1, full, before=start)
    assert soon.power > PROFILE.idle_power + 0.9 * (PROFILE.power_limit - PROFILE.idle_power)
    assert soon.temperature < PROFILE.idle_temperature + 5
    later = after(60, full, before=soon)
    assert later.temperature > PROFILE.load_temperature - 3
    assert after(2, before=later).power < PROFILE.idle_power + 10


def test_energy_is_the_integral_of_power_in_millijoules() -> None:
    reading = settled(Load(utilization=1.0, memory=0))
    ten = after(10, Load(utilization=1.0, memory=0), before=reading)
    assert abs(ten.energy - reading.energy - 10_000 * PROFILE.power_limit) < 1


@quick
@given(st.floats(0.1, 0.95), st.sampled_from(["thermal", "power"]))
def test_a_throttled_gpu_runs_at_the_share_of_its_clock(clock: float, throttle: str) -> None:
    busy = Load(running=256)
    healthy, throttled = settled(busy), settled(busy, faults=[fault(throttle=throttle, clock=clock)])
    assert throttled.sm_clock == max(clock * PROFILE.max_sm_clock, PROFILE.idle_sm_clock) < healthy.sm_clock
    assert throttled.power < healthy.power
    assert throttled.utilization == healthy.utilization


def test_a_gpu_that_throttles_for_heat_is_that_hot_at_once_and_cools_down_afterwards() -> None:
    hot = after(1, Load(running=1), before=settled(), faults=[fault(throttle="thermal", clock=0.5)])
    assert hot.temperature == PROFILE.slowdown_temperature
    healed = after(5, before=hot)
    assert PROFILE.idle_temperature < healed.temperature < PROFILE.slowdown_temperature
    assert after(1, Load(running=1), faults=[fault(throttle="power", clock=0.5)]).temperature < 35


def test_faults_that_are_no_throttle_leave_the_sensors_alone() -> None:
    assert settled(Load(running=9), faults=[fault(xid=48, dbe=1, clock=0.1)]) == settled(Load(running=9))


def test_vllm_takes_its_memory_as_it_starts_and_others_as_their_cache_fills() -> None:
    total = PROFILE.memory_mib
    assert model.memory(Load(serving=True, preallocated=0.92, kv=0.0), total) == 0.92 * total
    assert model.memory(Load(serving=True, preallocated=0.92, kv=0.9), total) == 0.92 * total
    empty = model.memory(Load(serving=True, weights=16000), total)
    full = model.memory(Load(serving=True, weights=16000, kv=1.0), total)
    assert (empty, full) == (16000, model.BUDGET * total)
    assert model.memory(Load(serving=True), total) == model.WEIGHTS * total
    assert model.memory(Load(serving=True, preallocated=0.9, memory=30000), total) == 30000
    assert model.memory(Load(utilization=0.5), total) == model.WEIGHTS * total


def test_declared_work_needs_no_server() -> None:
    reading = settled(Load(utilization=0.8, memory=30000))
    assert reading.utilization == 0.8
    assert reading.memory_used == 30000


def test_time_sliced_holders_add_up_until_the_device_is_full() -> None:
    assert settled(Load(utilization=0.3), Load(utilization=0.4)).utilization == 0.7
    crowded = settled(*[Load(utilization=0.4, memory=30000)] * 4)
    assert crowded.utilization == 1
    assert crowded.memory_used == PROFILE.memory_mib


def test_an_instance_has_its_own_engines_and_memory_and_the_sensors_of_its_gpu() -> None:
    small, large = CUT.mig
    loads = {small.uuid: [Load(utilization=1.0, memory=5000)]}
    found = model.read(PROFILE, CUT, loads, before=None, seconds=1000)
    assert found[small.uuid].utilization == 1
    assert found[large.uuid].utilization == 0
    assert abs(found[CUT.uuid].utilization - 1 / 7) < 1e-9
    assert (found[small.uuid].memory_used, found[large.uuid].memory_used, found[CUT.uuid].memory_used) == (
        5000,
        0,
        5000,
    )
    assert found[small.uuid].power == found[large.uuid].power == found[CUT.uuid].power < PROFILE.power_limit / 2
    assert found[large.uuid].temperature == found[CUT.uuid].temperature
    filled = model.read(PROFILE, CUT, {small.uuid: [Load(memory=50000)]}, before=None, seconds=1)
    assert filled[small.uuid].memory_used == small.shape.memory_mib


def test_only_models_on_several_gpus_use_nvlink() -> None:
    assert settled(Load(running=256)).nvlink_bandwidth == 0
    assert settled(Load(running=256, devices=4)).nvlink_bandwidth == 0.2 * 18 * 50e9


def test_memory_without_a_sensor_reads_zero() -> None:
    profile = replace(PROFILE, hbm=False)
    found = model.read(profile, WHOLE, {WHOLE.uuid: [Load(running=9)]}, before=None, seconds=9)
    assert found[WHOLE.uuid].memory_temperature == 0
    assert settled(Load(running=256)).memory_temperature > settled(Load(running=256)).temperature
