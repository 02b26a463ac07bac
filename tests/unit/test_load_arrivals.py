"""When requests start: laws that the arrivals must follow, each with a check that notices when they do not."""

from __future__ import annotations

import hashlib
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, pairwise
from statistics import fmean, pstdev, pvariance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.load.arrivals import Due, schedule
from sandbox.spec.loadtest import Arrivals, Stage
from sandbox.spec.trace import Row


def times(arrivals: Arrivals, duration: float) -> list[float]:
    return [due.at for due in schedule(arrivals, duration)]


def staged(process: str, *stages: dict[str, object], **more: object) -> Arrivals:
    return Arrivals.model_validate({"process": process, "stages": list(stages), **more})


def step(rate: float, seconds: float) -> dict[str, object]:
    return {"rate": rate, "for": f"{seconds:f}s"}


def ramp(to: float, seconds: float) -> dict[str, object]:
    return {"rampTo": to, "for": f"{seconds:f}s"}


def integral(stages: Sequence[Stage], until: float, cells: int = 400) -> float:
    """Requests expected until then, by adding up thin slices of the rate: nothing in common with the closed form."""
    total = begin = last = 0.0
    for stage in stages:
        first = last if stage.rate is None else stage.rate
        last = first if stage.ramp_to is None else stage.ramp_to
        width = max(0.0, min(stage.during, until - begin)) / cells
        total += sum((first + (last - first) * (cell + 0.5) * width / stage.during) * width for cell in range(cells))
        begin += stage.during
    return total


def distance_to_exponential(gaps: Iterable[float]) -> float:
    """Kolmogorov and Smirnov's: sqrt(n) times the largest distance; above 1.63 once in a hundred by chance."""
    ordered = sorted(gaps)
    n = len(ordered)
    steps = ((position, 1 - math.exp(-gap)) for position, gap in enumerate(ordered))
    return math.sqrt(n) * max(max(p - i / n, (i + 1) / n - p) for i, p in steps)


@pytest.mark.parametrize(
    ("process", "many", "digest"),
    [
        ("constant", 2190, "aa8680def5b6be41c3130ac8eac997b8eda5220f5ce8d70bbf1421bb42881d0e"),
        ("poisson", 2180, "ff7fe516ae8bf031570e7f8dd611cc8869b5ffb69ee7e123532301c7fdc65078"),
    ],
)
def test_schedules_of_a_flat_rate_are_the_same_bytes_as_ever(process: str, many: int, digest: str) -> None:
    found = times(Arrivals.model_validate({"process": process, "rate": 7.3, "seed": 11}), 300)
    assert len(found) == many
    assert hashlib.sha256("\n".join(at.hex() for at in found).encode()).hexdigest() == digest


@pytest.mark.parametrize("shape", [0.25, 0.5, 1.0, 4.0])
def test_gamma_gaps_have_the_mean_of_the_rate_and_the_spread_of_their_shape(shape: float) -> None:
    many, rate = 40_000, 20.0
    due = schedule(Arrivals(process="gamma", rate=rate, burstiness=shape, seed=3), math.inf)
    gaps = [after.at - before.at for before, after in pairwise(islice(due, many + 1))]
    spread = 1 / math.sqrt(shape)
    assert fmean(gaps) == pytest.approx(1 / rate, rel=4 * spread / math.sqrt(many))
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(spread, rel=0.04)


def dispersion(found: Sequence[float], seconds: int, width: float = 1.0) -> float:
    """Variance over mean of the counts in windows: 1 for Poisson, 0 for an even rate, 1/shape for long gamma."""
    counted = Counter(int(at / width) for at in found)
    counts = [counted[window] for window in range(int(seconds / width))]
    return pvariance(counts) / fmean(counts)


def test_counts_disperse_as_each_process_says() -> None:
    seconds, rate = 4000, 20.0
    poisson = dispersion(times(Arrivals(rate=rate, seed=5), seconds), seconds)
    assert poisson == pytest.approx(1, abs=4 * math.sqrt(2 / seconds))
    assert dispersion(times(Arrivals(process="constant", rate=rate), seconds), seconds) < 0.01
    bursts = times(Arrivals(process="gamma", rate=rate, burstiness=0.25, seed=5), seconds)
    assert dispersion(bursts, seconds, width=20) == pytest.approx(4, rel=0.4)
    assert dispersion(times(Arrivals(process="gamma", rate=rate, burstiness=1, seed=5), seconds), seconds) < 1.1


UP_AND_DOWN = (step(5, 20), ramp(60, 40), step(0, 30), step(30, 20), ramp(0, 40))


def test_a_rate_that_changes_sends_even_arrivals_where_its_integral_passes_whole_numbers() -> None:
    arrivals = staged("constant", *UP_AND_DOWN)
    found = times(arrivals, 150)
    assert len(found) == 100 + 1300 + 600 + 600
    for number, at in list(enumerate(found))[::37]:
        assert integral(arrivals.stages, at) == pytest.approx(number, abs=1e-3)


def test_counts_of_every_second_follow_the_ramps() -> None:
    arrivals = staged("constant", *UP_AND_DOWN)
    counted = Counter(int(at) for at in times(arrivals, 150))
    for second in range(150):
        wanted = integral(arrivals.stages, second + 1) - integral(arrivals.stages, second)
        assert abs(counted[second] - wanted) <= 1, second
    assert not any(counted[second] for second in range(60, 90)), "a rate of 0 sends nothing"


WAVES = (step(0.2, 3), ramp(8, 2), step(0, 1)) * 40


def test_random_arrivals_on_ramps_are_poisson_of_the_integral_and_a_shortcut_would_not_be() -> None:
    waves = staged("poisson", *WAVES, seed=9)

    def rescaled(found: Sequence[float]) -> list[float]:
        areas = [integral(waves.stages, at, cells=50) for at in found]
        return [after - before for before, after in pairwise(areas)]

    assert distance_to_exponential(rescaled(times(waves, 240))) < 1.63

    dice, at, shortcut = random.Random(9), 0.0, []  # noqa: S311 - draws each gap at the rate of its beginning
    while at < 240:
        shortcut.append(at)
        begun = at % 6
        at += dice.expovariate(0.2 + (begun - 3) * 3.9 if 3 <= begun < 5 else 0.2)
    assert distance_to_exponential(rescaled(shortcut)) > 1.63


def test_the_number_of_random_arrivals_varies_as_poisson_says() -> None:
    counts = [len(times(staged("poisson", ramp(20, 10), seed=seed), 10)) for seed in range(400)]
    assert fmean(counts) == pytest.approx(101, abs=4 * 10 / math.sqrt(400)), "the first, at 0, and 100 more"
    assert pvariance(counts) == pytest.approx(100, rel=4 * math.sqrt(2 / 400))


def test_gamma_on_stages_keeps_its_spread() -> None:
    arrivals = staged("gamma", ramp(100, 200), burstiness=0.25, seed=4)
    areas = [at * at / 4 for at in times(arrivals, 200)]  # the integral of t/2
    gaps = [after - before for before, after in pairwise(areas)]
    assert fmean(gaps) == pytest.approx(1, rel=4 * 2 / math.sqrt(len(gaps)))
    assert pstdev(gaps) == pytest.approx(2, rel=0.1)


def test_one_stage_of_a_flat_rate_is_that_rate() -> None:
    flat = times(Arrivals(process="constant", rate=7), 60)
    assert times(staged("constant", step(7, 60)), 60) == flat
    random_ones = times(Arrivals(rate=7, seed=2), 60)
    assert times(staged("poisson", step(7, 60), seed=2), 60) == pytest.approx(random_ones)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ((ramp(2, 4),), [0, 2, math.sqrt(8), math.sqrt(12)]),
        ((step(0, 5), step(1, 3)), [5, 6, 7]),
        ((step(0, 5), ramp(2, 2)), [5, 5 + math.sqrt(2)]),
        ((step(0.1, 30), step(0, 10), step(1, 2)), [0, 10, 20, 40, 41]),
        ((step(2, 2), ramp(0, 2), ramp(0, 3), step(1, 1)), [0, 0.5, 1, 1.5, 2, 4 - math.sqrt(2), 7]),
    ],
)
def test_the_first_comes_when_the_rate_first_rises_above_0(
    stages: tuple[dict[str, object], ...], expected: list[float]
) -> None:
    arrivals = staged("constant", *stages)
    assert times(arrivals, arrivals.staged or 0) == pytest.approx(expected)


STAGES = st.lists(
    st.builds(
        lambda make, rate, seconds: make(rate, seconds),
        st.sampled_from([step, ramp]),
        st.one_of(st.just(0.0), st.floats(0.01, 40).map(lambda rate: round(rate, 3))),
        st.floats(0.1, 30).map(lambda seconds: round(seconds, 3)),
    ),
    min_size=1,
    max_size=6,
).filter(lambda stages: any(stage.get("rate") or stage.get("rampTo") for stage in stages))


@settings(max_examples=150, deadline=None)
@given(STAGES, st.sampled_from(["constant", "poisson", "gamma"]), st.integers(0, 99))
def test_whatever_the_stages_arrivals_are_in_order_within_them_and_never_where_the_rate_is_0(
    stages: list[dict[str, object]], process: str, seed: int
) -> None:
    arrivals = staged(process, *stages, seed=seed, **({"burstiness": 0.5} if process == "gamma" else {}))
    duration = arrivals.staged or 0
    found = times(arrivals, duration)
    assert all(after >= before for before, after in pairwise(found))
    assert all(0 <= at < duration for at in found)
    begin = last = 0.0
    for stage in arrivals.stages:
        first = last if stage.rate is None else stage.rate
        last = first if stage.ramp_to is None else stage.ramp_to
        if first == last == 0:
            assert not [at for at in found if begin + 1e-6 < at < begin + stage.during - 1e-6]
        begin += stage.during
    if process == "constant":
        expected = integral(arrivals.stages, duration)
        assert len(found) in {math.ceil(expected - 1e-6), math.ceil(expected + 1e-6)}
        for number, at in list(enumerate(found))[:: max(1, len(found) // 5)]:
            assert integral(arrivals.stages, at) == pytest.approx(number, abs=1e-3)


@pytest.mark.parametrize("burstiness", [None, 0.5])
def test_a_seed_gives_the_same_arrivals_again_and_another_seed_others(burstiness: float | None) -> None:
    process = "gamma" if burstiness else "poisson"
    more = {"burstiness": burstiness} if burstiness else {}

    def made(seed: int) -> list[float]:
        return times(staged(process, ramp(30, 20), step(5, 5), seed=seed, **more), 25)

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_a_day_of_ten_thousand_a_second_is_never_held_in_memory() -> None:
    day: Callable[[], Arrivals] = lambda: staged("poisson", ramp(10_000, 43_200), ramp(0, 43_200))  # noqa: E731
    tracemalloc.start()
    for arrivals in (Arrivals(process="gamma", rate=10_000, burstiness=0.5), day()):
        assert sum(1 for _ in islice(schedule(arrivals, 86_400), 20_000)) == 20_000
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 1_000_000


ROWS = [Row(at=at, prompt=10, output=1) for at in (0.0, 1.0, 1.0, 2.5, 9.0)]


def test_a_trace_is_replayed_at_its_speed_and_cut_at_the_end() -> None:
    arrivals = Arrivals(process="trace", trace="x.csv", speed=2)
    assert list(schedule(arrivals, 1.25, ROWS)) == [Due(0.0, ROWS[0]), Due(0.5, ROWS[1]), Due(0.5, ROWS[2])]
    slow = Arrivals(process="trace", trace="x.csv", speed=0.5)
    assert [due.at for due in schedule(slow, 100, ROWS)] == [0, 2, 2, 5, 18]


def test_what_has_no_schedule_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="closed arrivals have no schedule"):
        schedule(Arrivals(process="closed", users=2), 10)
    with pytest.raises(ValueError, match="replayed from its rows"):
        schedule(Arrivals(process="trace", trace="x.csv"), 10)
