"""Decides whether a candidate is faster than the kernels that it would replace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from natc.host import environment
from natc.store.records import LEAST_GAIN, Comparison
from natc.store.schedules import Gain
from natc.tune.events import Note
from natc.tune.history import key_of
from natc.tune.measure.measurer import BuiltLibrary, Times
from natc.tune.measure.pairs import Interval, interval, log_ratios, spread
from natc.tune.measure.processes import JobError, why
from natc.tune.measure.race import Decisions, Race

# The chance that a comparison calls a candidate faster that is not. It is divided among the
# candidates and the looks at the turns, because each look is one more chance for noise.
_LEVEL = 0.01
# After so many turns the comparison is looked at, and ends if all is certain; but not before
# `_FEWEST`, so that the interval is narrow.
_LOOKS, _FEWEST = (16, 32, 64, 128, 256), 64
# A candidate that can be at most so much faster is called "not faster" instead of undecided.
_MARGIN = 1.02
# The quartiles of one kernel's times differ by this factor only on a disturbed machine.
_DISTURBED = 1.3


class Verdict(NamedTuple):
    """The outcome of a comparison.

    outcome: `faster`, `not faster`, or `undecided` if the noise is too large. winner: the
    comparison of the winner with the default, or None. message: a sentence for people.
    """

    outcome: str
    winner: Comparison | None
    message: str


NO_CANDIDATE = Verdict("not faster", None, "no candidate was faster than the default")


def seconds_to_confirm(race: Race, candidates: int) -> float:
    """Return how long `compare` takes, if differences are clear."""
    return race.seconds_a_turn * (candidates + 2) * _FEWEST


def conclude(race: Race, rival: Decisions | None, until: float | None) -> Verdict:
    """Compare the race's best candidates with the default and a rival; return the verdict.

    rival, until: see `compare`.
    """
    finalists = race.finalists([rival] if rival is not None else [])
    if not finalists:
        return NO_CANDIDATE
    begin = race.clock()
    decisions = [trial.decisions for trial in finalists]
    for each in decisions:
        race.measurer.build(each, may_spill=True)  # all at once
    decisions = [each for each in decisions if has_own_code(race, each, rival)]
    if until is not None:
        # Candidates of an earlier run had to be built, which must not cost the comparison.
        until += race.clock() - begin
    if not decisions:
        return NO_CANDIDATE
    comparisons = compare(race, decisions, rival, until)
    if rival is not None and key_of(rival) not in {key_of(each.base) for each in comparisons}:
        trial = race.history.get(rival)
        if trial is not None and trial.error is not None:
            rival = None  # it fails, so it is not in the way
    return judge(comparisons, race.default, rival)


def has_own_code(race: Race, decisions: Decisions, rival: Decisions | None) -> bool:
    """Return whether a candidate's code differs from the default's and the rival's.

    True for a candidate that cannot be built.
    """
    kernels = [race.default, decisions, *([rival] if rival is not None else [])]
    pending = [race.measurer.build(each, may_spill=True) for each in kernels]
    try:
        default, candidate, *rival_hashes = (library.result().sha256 for library in pending)
    except (JobError, TimeoutError, ChildProcessError):
        return True
    return candidate not in (default, *rival_hashes)


def compare(
    race: Race,
    candidates: Sequence[Decisions],
    rival: Decisions | None,
    until: float | None,
) -> list[Comparison]:
    """Time candidates, the default and a rival in alternation; record and return comparisons.

    rival: decisions that candidates must beat besides the default. until: when to stop, by the
    race's clock, if nothing is certain before. A candidate that fails is recorded as a failure
    and has no comparison; a rival that fails is passed over with a note.
    """
    wanted = [*([rival] if rival is not None else []), *candidates]
    pending = [race.measurer.build(decisions, may_spill=True) for decisions in wanted]
    libraries: list[BuiltLibrary] = [race.default_library]
    kept: list[Decisions] = [race.default]
    for decisions, library in zip(wanted, pending, strict=True):
        try:
            libraries.append(library.result())
            kept.append(decisions)
        except Exception as error:
            _leave_out(race, decisions, why(error, "to build"))
    for _ in range(2):
        try:
            return _compare(race, kept, libraries, candidates, until)
        except (JobError, TimeoutError, ChildProcessError):
            # A kernel fails: timing each beside the default alone shows which.
            libraries, kept = _working(race, libraries, kept)
    return []


def _compare(
    race: Race,
    kernels: Sequence[Decisions],
    libraries: Sequence[BuiltLibrary],
    candidates: Sequence[Decisions],
    until: float | None,
) -> list[Comparison]:
    """Take turns of all kernels until each candidate's order is certain or time is up."""
    wanted = {key_of(decisions) for decisions in candidates}
    numbers = [i for i, decisions in enumerate(kernels) if key_of(decisions) in wanted]
    bases = [i for i in range(len(kernels)) if i not in numbers]
    if not numbers:
        return []
    level = _LEVEL / (len(_LOOKS) * len(numbers))
    turns: Times = []
    intervals: dict[tuple[int, int], Interval] = {}
    for look in _LOOKS:
        while len(turns) < look and (until is None or race.clock() < until):
            turns += race.turns(libraries, look - len(turns))
        if not turns:
            break
        intervals = {
            (number, base): interval(log_ratios(turns, number, base), level)
            for number in numbers
            for base in bases
        }
        best = min(numbers, key=lambda number: intervals[number, 0].median)
        certain = all(intervals[best, base].high < -math.log(LEAST_GAIN) for base in bases)
        hopeless = all(
            any(intervals[number, base].low > 0 for base in bases) for number in numbers
        )
        if len(turns) < look or hopeless or (certain and look >= _FEWEST):
            break
    _tell_of_noise(race, turns)
    comparisons = [
        _comparison(race, kernels, turns, number, base, pair)
        for (number, base), pair in intervals.items()
        if math.isfinite(pair.low)
    ]
    for comparison in comparisons:
        race.record(comparison)
    return comparisons


def _comparison(
    race: Race,
    kernels: Sequence[Decisions],
    turns: Times,
    number: int,
    base: int,
    pair: Interval,
) -> Comparison:
    problem = race.problem
    return Comparison(
        spec=problem.spec,
        target=problem.target,
        operation=problem.operation,
        space=problem.space,
        decisions=dict(kernels[number]),
        base=dict(kernels[base]),
        seconds=race.times_of(turns, number),
        base_seconds=race.times_of(turns, base),
        speedup=math.exp(-pair.median),
        low=math.exp(-pair.high),
        high=math.exp(-pair.low),
        pairs=pair.pairs,
        environment=race.machine.id,
        timestamp=environment.now(),
    )


def _working(
    race: Race, libraries: Sequence[BuiltLibrary], kernels: Sequence[Decisions]
) -> tuple[list[BuiltLibrary], list[Decisions]]:
    """Return the libraries and decisions of the kernels that run beside the default."""
    working, kept = [libraries[0]], [kernels[0]]
    for library, decisions in zip(libraries[1:], kernels[1:], strict=True):
        try:
            race.turns([libraries[0], library], 1)
        except (JobError, TimeoutError, ChildProcessError) as error:
            _leave_out(race, decisions, why(error, "to run"))
        else:
            working.append(library)
            kept.append(decisions)
    return working, kept


def _leave_out(race: Race, decisions: Decisions, error: str) -> None:
    race.fail(decisions, error)
    race.tell(Note(f"candidate {dict(decisions)} failed when it was measured again: {error}"))


def _tell_of_noise(race: Race, turns: Times) -> None:
    """Say that the machine is busy if the default's own times disagree."""
    if len(turns) < 2:
        return
    factor = spread([math.prod(turn[0]) ** (1 / len(turn[0])) for turn in turns])
    if factor > _DISTURBED:
        race.tell(
            Note(
                f"this machine is busy: times of the same kernel differ by a factor of "
                f"{factor:.1f}, so only large gains can be proven now."
            )
        )


def judge(
    comparisons: Iterable[Comparison],
    default: Decisions,
    rival: Decisions | None,
    subject: str = "the best candidate",
    rival_name: str = "the schedule in use",
) -> Verdict:
    """Return the verdict: a winner beats the default and the rival, beyond the noise.

    subject, rival_name: for the sentence: the candidate, and the rival.
    """
    beside = {(key_of(each.decisions), key_of(each.base)): each for each in comparisons}
    bases = [(key_of(default), "the default")]
    if rival is not None and key_of(rival) != bases[0][0]:
        bases.append((key_of(rival), rival_name))
    beside_default = [each for (_, base), each in beside.items() if base == bases[0][0]]
    beside_default.sort(key=lambda each: each.speedup, reverse=True)
    if not beside_default:
        text = f"there was no time to compare {subject} with the default"
        return Verdict("undecided", None, text)
    problems = []
    for candidate in beside_default:
        for base, name in bases:
            pair = beside.get((key_of(candidate.decisions), base))
            if pair is None or not pair.faster:
                problems.append((pair, name))
                break
        else:
            text = f"{subject} is {gain_text(candidate, 'the default')}"
            return Verdict("faster", candidate, text)
    pair, name = problems[0]
    if pair is None:
        text = f"there was no time to compare {subject} with {name}"
        return Verdict("undecided", None, text)
    text = f"{subject} is {gain_text(pair, name)}"
    if pair.high < _MARGIN:
        return Verdict("not faster", None, f"{text}: no gain to speak of")
    return Verdict("undecided", None, f"{text}: too noisy to decide")


def gain_text(pair: Comparison | Gain, name: str) -> str:
    """Return a speed-up over `name`, and its interval."""
    return f"{pair.speedup:.2f} times as fast as {name}, {pair.low:.2f} to {pair.high:.2f}"
