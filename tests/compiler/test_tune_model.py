"""Which candidates a search builds and measures: a model that learns, also from other kernels."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from natc.compiler.cpu_tiles.plan import QUERIES
from natc.compiler.space import all_decisions
from natc.compiler.space.cpu import tile_facts
from natc.errors import NatcError
from natc.spec import KernelSpec
from natc.store.records import SpaceVersion, Trial
from natc.targets import Target
from natc.tune.search import model as model_module
from natc.tune.search.model import Model

pytestmark = pytest.mark.quick

CPU = Target.parse("llvm-x86-64-v3")
K7, K9 = (KernelSpec.make(size, rpb=True) for size in (7, 9))
VALUES = {
    "rows": (1, 2, 3),
    "columns": (1, 2, 4, 8),
    "strip": (8, 16, 24, 32, 48),
    "keys": (1, 2, 4),
    "unroll": (1, 2, 4),
}
SPACE = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]


def spills(decisions: Mapping[str, int]) -> float:
    """Return registers beyond 16 that a made-up kernel needs."""
    return float(max(0, decisions["rows"] * decisions["columns"] * decisions["keys"] - 12))


def ratio(spec: KernelSpec, decisions: Mapping[str, int]) -> float | None:
    """Return a made-up candidate's time over the default's; None if it fails."""
    if decisions["columns"] * decisions["unroll"] == 32:
        return None

    def slowness(d: Mapping[str, int]) -> float:
        reuse = 1 / d["rows"] + 1 / d["columns"] + 0.5 / d["keys"]
        cache = abs(math.log(d["strip"] / (2.4 * spec.kernel_size[0])))
        return 1 + reuse + cache + 0.1 * spills(d) + 0.05 * abs(d["unroll"] - 2)

    noise = random.Random(str((spec.name, sorted(decisions.items())))).gauss(0, 0.01)
    return slowness(decisions) / slowness(SPACE[0]) * math.exp(noise)


def trial(spec: KernelSpec, decisions: Mapping[str, int], **changes: object) -> Trial:
    value = ratio(spec, decisions)
    fields = {
        "spec": spec.name,
        "target": CPU.name,
        "space": SpaceVersion("made_up", 1),
        "decisions": dict(decisions),
        "seconds": None if value is None else {"1x56x56x2x32": 1e-3 * value},
        "error": "failed" if value is None else None,
        "environment": "here",
        "timestamp": "2026-01-02T03:04:05+00:00",
        "trial": 0,
        "ratio": value,
        "features": {"spills": spills(decisions)},
    }
    return Trial(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "all_decisions", lambda *_: SPACE)
    monkeypatch.setattr(model_module, "space_for", lambda *_: SimpleNamespace(facts=None))


def best_found(model: Model, spec: KernelSpec, most: int) -> float:
    """Return the lowest ratio after measuring `most` candidates."""
    best, measured = 1.0, 0
    while measured < most:
        batch = model.propose()
        batch = [
            d
            for d, wanted in zip(
                batch, model.worth_measuring([(d, {"spills": spills(d)}) for d in batch])
            )
            if wanted
        ][: most - measured]
        measured += len(batch)
        model.learn([trial(spec, decisions) for decisions in batch])
        best = min([best, *(ratio(spec, d) or 9.0 for d in batch)])
    return best


def of(spec: KernelSpec, seed: int) -> Model:
    return Model(spec, CPU, "forward", batch=6, seed=seed)


def by_chance(spec: KernelSpec, seed: int, most: int) -> float:
    return min(ratio(spec, d) or 9.0 for d in random.Random(seed).sample(SPACE, most))


def test_a_search_finds_the_optimum_sooner_than_chance(made_up: None) -> None:
    optimum = min(ratio(K7, d) or 9.0 for d in SPACE)
    learned = [best_found(of(K7, seed), K7, 36) / optimum for seed in range(3)]
    chance = [by_chance(K7, seed, 36) / optimum for seed in range(99)]
    assert statistics.median(learned) < 1.05 < 1.12 < statistics.median(chance)


def test_what_a_kernel_taught_helps_another(made_up: None) -> None:
    optimum = min(ratio(K9, d) or 9.0 for d in SPACE)
    alone, taught = [], []
    for seed in range(3):
        alone.append(best_found(of(K9, seed), K9, 12) / optimum)
        model = of(K9, seed)
        model.learn([trial(K7, d) for d in random.Random(seed).sample(SPACE, 80)])
        taught.append(best_found(model, K9, 12) / optimum)
    assert statistics.median(taught) < 1.1 and max(taught) < min(alone)


def test_every_candidate_is_proposed_once(made_up: None) -> None:
    model, proposed = of(K7, 1), []
    model.pass_over(SPACE[40:])
    while batch := model.propose():
        assert len(batch) == min(6, 40 - len(proposed))
        proposed += batch
        # Failures and candidates of other kernels are learned from as well.
        model.learn([*(trial(K7, d) for d in batch), *(trial(K9, d) for d in batch)])
    assert sorted(map(str, proposed)) == sorted(map(str, SPACE[:40]))


def test_a_seed_makes_proposals_repeatable(made_up: None) -> None:
    def proposed(seed: int) -> list[dict[str, int]]:
        model = of(K7, seed)
        model.learn([trial(K7, d) for d in SPACE[:40]])
        return model.propose() + model.propose()

    assert proposed(3) == proposed(3) != proposed(4)


def test_a_first_proposal_has_candidates_near_the_default_and_others(made_up: None) -> None:
    def differences(decisions: Mapping[str, int]) -> int:
        return sum(value != SPACE[0][name] for name, value in decisions.items())

    proposed = Model(K7, CPU, "forward", batch=12, seed=1)
    proposed.pass_over(SPACE[:1])
    near = [differences(decisions) == 1 for decisions in proposed.propose()]
    assert 3 <= sum(near) <= 10  # few of the space's 540


def test_measured_and_refused_candidates_are_not_proposed(made_up: None) -> None:
    model = of(K7, 1)
    model.learn([trial(K7, d) for d in SPACE[:200]])
    model.pass_over(SPACE[200:-5])
    assert sorted(map(str, model.propose())) == sorted(map(str, SPACE[-5:]))
    assert model.propose() == []


def test_with_few_examples_chance_decides(made_up: None) -> None:
    model = of(K7, 1)
    model.learn([trial(K7, d) for d in SPACE[:4]])
    # Times without a ratio to the default's time teach nothing.
    model.learn([trial(K7, d, ratio=None) for d in SPACE[4:50] if ratio(K7, d)])
    assert model.predict([(SPACE[60], {})]) is None


def test_machine_code_tells_what_decisions_do_not(made_up: None) -> None:
    """A candidate that spills for no reason in its decisions is expected to be slow."""
    model = of(K7, 1)
    chance = random.Random(1)
    model.learn(
        trial(K7, d, ratio=2.0 if spilled else 1.0, features={"spills": float(spilled)},
              seconds={"x": 1.0}, error=None)
        for d in SPACE[:200]
        for spilled in [chance.random() < 0.5]
    )  # fmt: skip
    asked = SPACE[200:210]
    fast, slow = (model.predict([(d, {"spills": s}) for d in asked]) for s in (0.0, 1.0))
    assert fast is not None and slow is not None
    assert max(fast) < 1.2 < 1.8 < min(slow)


def test_decisions_are_completed_or_refused(made_up: None) -> None:
    model = of(K7, 1)
    assert model.candidate({"strip": 24}) == {**model.untuned, "strip": 24}
    with pytest.raises(NatcError, match="no candidate"):
        model.candidate({"strip": 7})


def test_decisions_that_change_nothing_on_tensor_cores_make_no_candidates() -> None:
    """The kernel beside theirs, for calls that they do not serve, is the same in all of them."""
    spec = KernelSpec.make(7, rpb=True, dtype="float16")
    model = Model(spec, Target.parse("cuda-sm_90"), "forward", batch=1000, seed=1)
    by_choice: dict[int, list[dict[str, int]]] = {0: [], 1: []}
    for candidate in model.propose():
        by_choice[candidate["tensor_cores"]].append(candidate)
    assert len({candidate["lanes"] for candidate in by_choice[0]}) == 3
    assert len({candidate["lanes"] for candidate in by_choice[1]}) == 1 and len(by_choice[1]) > 10
    assert {"tensor_cores": 1, "lanes": by_choice[1][0]["lanes"]}.items() <= model.untuned.items()


def test_candidates_with_hopeless_code_are_built_but_not_measured(made_up: None) -> None:
    # Whether a candidate spills does not follow from its decisions here.
    spilling = [(d, {"spills": 90.0}) for d in SPACE[1::2]]
    fast = sorted(SPACE[1::2], key=lambda d: ratio(K7, d) or 9.0)[:5]
    of_kind = {
        thorough: Model(K7, CPU, "forward", batch=6, seed=1, thorough=thorough)
        for thorough in (False, True)
    }
    for model in of_kind.values():
        assert all(model.worth_measuring(spilling))  # as long as little is known
        model.learn(trial(K7, d) for d in SPACE[::4])
        model.learn(
            trial(K7, d, ratio=4.0, features={"spills": 90.0}, seconds={"x": 1.0}, error=None)
            for d in SPACE[2::4]
        )
    # Chance lets a fifth pass.
    assert 0.1 < statistics.mean(of_kind[False].worth_measuring(spilling)) < 0.3
    assert sum(of_kind[False].worth_measuring([(d, {"spills": spills(d)}) for d in fast])) >= 4
    assert all(of_kind[True].worth_measuring(spilling))


def test_a_plan_of_tiles_is_judged_by_caches_and_registers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {1: 32 * 1024, 2: 2**20}
    monkeypatch.setattr(tile_facts, "cache_bytes", sizes.__getitem__)
    (_, *candidates) = all_decisions(K7, CPU, "forward")
    for decisions in candidates[::100]:
        facts = tile_facts.facts(K7, CPU, decisions)
        taller = tile_facts.facts(K9, CPU, decisions)
        of_queries = decisions["lanes_of"] == QUERIES
        assert facts["score_sums"] >= (4 if of_queries else 8)
        # Lanes beside a window are lost if keys are in lanes; rows of a taller tile always are.
        assert 0 < facts["useful_scores"] <= 7 / (7 + decisions["tile_rows"] - 1)
        # Keys and values: rows of a ring, columns, channels; and 16 columns at most. A strip of
        # queries has six columns more of keys, in whole vectors.
        columns = decisions["strip"] + (8 if of_queries else 0)
        ring = 8 * 2 * columns * 32 * 4
        assert ring <= facts["panels"] * sizes[1] <= ring + 256
        assert taller["panels"] > facts["panels"] and taller["scores"] > facts["scores"]
        assert facts["scratch"] * sizes[2] > (facts["panels"] + facts["scores"]) * sizes[1]
