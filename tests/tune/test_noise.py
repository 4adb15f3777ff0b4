"""Noise must not mislead a search: the real engine in simulated time, on machines that disturb.

The machines below disturb times in different ways. On each, a search must not save a schedule that
is slower than the default, and must find a faster schedule if there is one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from natc.spec import KernelSpec
from natc.store.records import Environment, Record, SpaceVersion, Trial
from natc.tune.history import History
from natc.tune.measure.confirm import Verdict, conclude, seconds_to_confirm
from natc.tune.measure.measurer import BuiltLibrary, Times
from natc.tune.measure.race import FINALISTS, Race, TunedKernel

SPEC = KernelSpec.parse("na2d_k3_d8_float32")
SPACE = SpaceVersion("simulated", 1)
SHAPES = ["1x56x56x2x8", "1x7x7x16x8"]
SECONDS = (2e-4, 2e-5)  # of the default, for each shape
CANDIDATES, MINUTES = 24, 1.0
BUILD = 1.0  # seconds
MACHINE = Environment(
    id="simulated", versions={}, os="", cpu="simulated", cores=2, timestamp="2026-01-01T00:00:00Z"
)
Noise = Callable[[random.Random, float], float]  # (chance, time of day) -> factor of a time


def gaussian(chance: random.Random, now: float) -> float:
    """Times with a standard deviation of a tenth."""
    return max(0.2, chance.gauss(1, 0.1))


def lucky(chance: random.Random, now: float) -> float:
    """One time in twenty is a third too short."""
    return chance.gauss(1, 0.03) * (0.67 if chance.random() < 0.05 else 1)


class Bursts:
    """Again and again, for at most a second, times are two to five times as long."""

    def __init__(self) -> None:
        self.begin = self.end = 0.0
        self.factor = 1.0

    def __call__(self, chance: random.Random, now: float) -> float:
        if now > self.end:
            self.begin = now + chance.expovariate(4)
            self.end = self.begin + 10 ** chance.uniform(-2, 0)
            self.factor = chance.uniform(2, 5)
        return chance.gauss(1, 0.03) * (self.factor if now >= self.begin else 1)


class Load:
    """Half of the time a second program takes turns: times are doubled, now and then tenfold."""

    def __init__(self) -> None:
        self.start: float | None = None

    def __call__(self, chance: random.Random, now: float) -> float:
        if self.start is None:
            self.start = chance.uniform(0, 30)
        if (now + self.start) % 30 < 15:
            return chance.gauss(1, 0.03)
        return 10 if chance.random() < 0.05 else max(1.0, chance.gauss(2, 0.3))


MACHINES: dict[str, Callable[[], Noise]] = {
    "gaussian": lambda: gaussian,
    "lucky samples": lambda: lucky,
    "bursts": Bursts,
    "load half of the time": Load,
}


class Machine:
    """A measurer whose kernels take the times of a table, disturbed; time passes as they run."""

    builders, overlap = 2, False

    def __init__(self, speeds: Sequence[float], noise: Noise, chance: random.Random) -> None:
        self.speeds, self.noise, self.chance = speeds, noise, chance
        self.now = 0.0

    def build(
        self, decisions: Mapping[str, int], *, may_spill: bool = False
    ) -> Future[BuiltLibrary]:
        number = decisions["number"]
        self.now += BUILD / self.builders
        done: Future[BuiltLibrary] = Future()
        done.set_result(BuiltLibrary(Path(str(number)), str(number), {}))
        return done

    def measure(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        times: Times = []
        for _ in range(turns):
            turn: list[list[float]] = [[] for _ in libraries]
            order = self.chance.sample(range(len(libraries)), len(libraries))
            for seconds in SECONDS:
                for place in order:
                    true = seconds / self.speeds[int(libraries[place].sha256)]
                    taken = true * self.noise(self.chance, self.now)
                    self.now += 3 * taken
                    turn[place].append(taken)
            times.append(turn)
        return times


class InOrder:
    def __init__(self, count: int) -> None:
        self.waiting = [{"number": number} for number in range(1, count)]

    def propose(self) -> Sequence[Mapping[str, int]]:
        return self.waiting

    def learn(self, trials: Iterable[Trial]) -> None:
        pass

    def pass_over(self, candidates: Sequence[Mapping[str, int]]) -> None:
        self.waiting = self.waiting[len(candidates) :]

    def worth_measuring(self, built: Sequence[object]) -> list[bool]:
        return [True] * len(built)


def race_on(machine: Machine, records: list[Record]) -> Race:
    """Return the race of a search on a machine; it appends to records."""
    history = History(Path("no such log"), SPEC, SPACE, SHAPES, MACHINE)
    problem = TunedKernel(SPEC.name, "llvm-x86-64-v3", "forward", SPACE, SHAPES)
    default = {"number": 0}
    recorded = machine, history, MACHINE, records.append
    return Race(problem, default, *recorded, lambda event: None, lambda: machine.now)


def search(
    speeds: Sequence[float], noise: Noise, seed: int, rival: int | None = None
) -> tuple[Verdict, Machine, list[Record]]:
    """Return the verdict of one search; candidate 0 is the default, whose speed is 1."""
    machine = Machine(speeds, noise, random.Random(seed))
    records: list[Record] = []
    race = race_on(machine, records)
    race.measure_default()
    end = 60 * MINUTES

    def is_over() -> bool:
        return machine.now >= end - min(0.3 * end, seconds_to_confirm(race, FINALISTS))

    race.search(InOrder(len(speeds)), is_over)
    beaten = None if rival is None else {"number": rival}
    return conclude(race, beaten, end), machine, records


def saved(verdict: Verdict) -> int | None:
    """Return the number of the candidate that would be saved."""
    return None if verdict.winner is None else verdict.winner.decisions["number"]


@pytest.mark.parametrize(("speed", "searches"), [(1 / 1.05, 200), (1.0, 100)])
@pytest.mark.parametrize("name", MACHINES)
def test_noise_saves_no_schedule_without_a_gain(name: str, speed: float, searches: int) -> None:
    speeds = [1.0] + [speed] * CANDIDATES
    wins = [saved(search(speeds, MACHINES[name](), seed)[0]) for seed in range(searches)]
    assert sum(win is not None for win in wins) <= searches // 100


@pytest.mark.parametrize("name", MACHINES)
def test_noise_replaces_no_schedule_by_a_slower_one(name: str) -> None:
    """All candidates are faster than the default, and the schedule in use is faster still."""
    speeds = [1.0, *[1.15] * CANDIDATES, 1.25]
    rival = len(speeds) - 1
    wins = [saved(search(speeds, MACHINES[name](), seed, rival)[0]) for seed in range(50)]
    assert sum(win is not None for win in wins) <= 1


@pytest.mark.parametrize("name", MACHINES)
def test_noise_hides_no_faster_schedule(name: str) -> None:
    wins = 0
    for seed in range(200):
        faster = 1 + seed % CANDIDATES
        speeds = [1.0] + [1 / 1.05] * CANDIDATES
        speeds[faster] = 1.1
        wins += saved(search(speeds, MACHINES[name](), seed)[0]) == faster
    assert wins >= 190


class SlowBuild(Future[BuiltLibrary]):
    """A build that takes 20 seconds of a machine's time."""

    machine: Machine

    def result(self, timeout: float | None = None) -> BuiltLibrary:
        self.machine.now += 20.0
        return super().result(timeout)


class SlowMachine(Machine):
    def build(
        self, decisions: Mapping[str, int], *, may_spill: bool = False
    ) -> Future[BuiltLibrary]:
        build = SlowBuild()
        build.set_result(super().build(decisions).result())
        build.machine = self
        return build


def test_where_builds_are_slow_few_are_built_before_they_are_measured() -> None:
    """So that little is built in vain when time is over."""
    machine = SlowMachine([1.0] * 25, lambda chance, now: 1.0, random.Random(1))
    race = race_on(machine, [])
    # Two builders: each phase builds two candidates in 40 seconds.
    race.search(InOrder(25), lambda: machine.now > 190)
    assert race.measured == 8
