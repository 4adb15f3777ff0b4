"""Which candidates of an operation there are, and which are proposed next."""

from __future__ import annotations

import pytest

from natc.errors import NatcError
from natc.spec import KernelSpec
from natc.store.records import SpaceVersion, Trial
from natc.targets import Target
from natc.tune.search.ranking import Ranking

pytestmark = pytest.mark.quick


def trial_of(decisions: dict[str, int], ratio: float) -> Trial:
    return Trial(
        spec="na2d_k7_d32_float32_rpb",
        target="cuda-sm_90",
        space=SpaceVersion("some", 1),
        decisions=decisions,
        seconds={"1x8x8x1x32": ratio},
        error=None,
        ratio=ratio,
        environment="here",
        timestamp="2026-01-02T03:04:05Z",
        trial=0,
    )


def test_every_candidate_is_proposed_once_and_fast_ones_first() -> None:
    spec = KernelSpec.make(7, rpb=True)  # for which there are no tensor cores
    target = Target.parse("cuda-sm_90")

    def ranked() -> Ranking:
        return Ranking(spec, target, "d_query", batch=10, seed=1)

    def seconds(decisions: dict[str, int]) -> float:
        slow = (decisions["threads"] != 64) + (decisions["unroll"] != 16)
        return 1e-3 * (1 + slow)

    ranking, seen = ranked(), []
    while batch := ranking.propose():
        assert batch == batch[:10]
        seen += batch
        ranking.pass_over(batch)
    assert len(seen) == len({tuple(candidate.items()) for candidate in seen}) > 20
    assert ranking.untuned in seen

    taught = ranked()
    sample = seen[:60]
    taught.learn([trial_of(candidate, seconds(candidate)) for candidate in sample])
    proposed = taught.propose()
    assert [candidate for candidate in proposed if candidate in sample] == []
    unmeasured = [candidate for candidate in seen if candidate not in sample]
    # All but the random candidates have the fastest time, and more such candidates exist.
    assert [seconds(candidate) for candidate in proposed[:8]] == [1e-3] * 8
    assert 8 < [seconds(candidate) for candidate in unmeasured].count(1e-3) < len(unmeasured) / 5
    assert ranking.propose() == [] and ranked().propose() == seen[:10]
    with pytest.raises(NatcError, match="no candidate"):
        ranking.candidate({"threads": 7})


def test_decisions_that_change_nothing_on_tensor_cores_make_no_candidates() -> None:
    """The kernel beside theirs, for calls that they do not serve, is the same in all of them."""
    spec = KernelSpec.make(7, rpb=True, dtype="float16")
    ranking = Ranking(spec, Target.parse("cuda-sm_90"), "forward", batch=1000, seed=1)
    by_choice: dict[int, list[dict[str, int]]] = {0: [], 1: []}
    for candidate in ranking.propose():
        by_choice[candidate["tensor_cores"]].append(candidate)
    assert len({candidate["lanes"] for candidate in by_choice[0]}) == 3
    assert len({candidate["lanes"] for candidate in by_choice[1]}) == 1 and len(by_choice[1]) > 10
