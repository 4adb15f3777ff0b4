"""Counts of multiply-adds: by fvcore's way through traces, by shapes, by torch's counter."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch
from support.compat_releases import installed
from torch.utils.flop_counter import FlopCounterMode

pytestmark = [
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


class Counter:
    """Calls one handle per node of a trace, as fvcore's FlopCountAnalysis does."""

    def __init__(self, model: torch.nn.Module, x: torch.Tensor) -> None:
        self.graph = torch.jit.trace(model, x, check_trace=False).inlined_graph
        self.handles: dict[str, Any] = {}

    def set_op_handle(self, **handles: Any) -> Counter:
        self.handles |= handles
        return self

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for node in self.graph.nodes():
            kind = node.kind()
            if kind == "prim::PythonOp":
                kind = f"{kind}.{node.pyname()}"
            if kind in self.handles:
                name = kind.rpartition(".")[2]
                counts[name] = self.handles[kind](list(node.inputs()), list(node.outputs()))
        return counts


SPATIAL = (9, 8, 7)


def multiply_adds(rank: int) -> tuple[int, int]:
    """Return the multiply-adds of qk (or av) of a module with 12 channels in 3 heads, and the
    number of its attention weights."""
    queries = {1: 9, 2: 72, 3: 504}[rank]
    weights = queries * 3 * 3**rank
    return weights * 4, weights


@pytest.mark.parametrize("version", ["0.14.4", "0.14.6", "0.15.1", "0.17.3", "0.17.4", None])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_traced_modules_are_counted(version: str | None, rank: int) -> None:
    with installed(version) as natten:
        if rank == 3 and natten.__version__ < "0.15":
            assert not hasattr(natten, "NeighborhoodAttention3D")
            return
        since_017 = natten.__version__ >= "0.17"
        bias = {"rel_pos_bias": True} if since_017 else {}
        module = getattr(natten, f"NeighborhoodAttention{rank}D")
        model = module(dim=12, num_heads=3, kernel_size=3, **bias).eval()
        x = torch.randn(1, *SPATIAL[:rank], 12)
        flops = importlib.import_module("natten.flops")
        product, weights = multiply_adds(rank)
        # From 0.17.4 on, products only.
        extra = weights if natten.__version__ < "0.17.4" else 0
        qk, av = (
            (f"NATTEN{rank}DQKRPBFunction", f"NATTEN{rank}DAVFunction")
            if natten.__version__ < "0.15"
            else (
                f"NeighborhoodAttention{rank}DQKAutogradFunction",
                f"NeighborhoodAttention{rank}DAVAutogradFunction",
            )
        )
        counter = flops.add_natten_handle(Counter(model, x))
        assert counter.counts() == {qk: product + extra, av: product}
        if since_017:
            natten.use_fused_na(True)
            counter = flops.add_natten_handle(Counter(model, x))
            name = f"FusedNeighborhoodAttention{rank}D"
            assert counter.counts() == {name: 2 * product + 2 * extra}


def test_handles_of_a_program_count_under_the_names_of_the_release() -> None:
    with installed() as natten:
        flops = importlib.import_module("natten.flops")
        model = natten.NeighborhoodAttention2D(12, 3, 3)
        counter = Counter(model, torch.randn(1, 9, 8, 12)).set_op_handle(
            **{
                "prim::PythonOp.NeighborhoodAttention2DQKAutogradFunction": flops.qk_2d_rpb_flop,
                "prim::PythonOp.NeighborhoodAttention2DAVAutogradFunction": flops.av_2d_flop,
            }
        )
        assert list(counter.counts().values()) == [multiply_adds(2)[0]] * 2


def test_a_traced_module_computes_the_same_and_has_gradients() -> None:
    with installed("0.14.6") as natten:
        model = natten.NeighborhoodAttention2D(12, 3, 3).double()
    x = torch.randn(1, 6, 5, 12, dtype=torch.float64)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), model(x))
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    grads = torch.autograd.grad(traced(x).square().sum(), list(model.parameters()))
    torch.testing.assert_close(grads, expected)


def test_counters_take_tensors_and_name_a_wrong_rank() -> None:
    query, attn = torch.zeros(2, 3, 8, 7, 4), torch.zeros(2, 3, 8, 7, 9)
    with installed("0.14.6"):
        flops = importlib.import_module("natten.flops")
        assert flops.qk_rpb_flop([query, query, None], [attn]) == 2 * 3 * 56 * 9 * 5
        assert flops.av_flop([attn, query], [query]) == 2 * 3 * 56 * 9 * 4
        with pytest.raises(ValueError, match="query has shape .* 4 axes"):
            flops.qk_1d_rpb_flop([query, query, None], [attn])


def test_counts_by_shape() -> None:
    shape = (2, 8, 7, 3, 4)
    options = {"kernel_size": (3, 5), "dilation": (1, 1), "is_causal": (False, False)}
    products = 2 * 56 * 3 * 15 * 4
    with installed("0.17.4"):
        flops = importlib.import_module("natten.flops")
        count = flops.fna_flop_count
        assert count(shape, shape, shape, **options, is_heads_last=True) == 4 * products
        first = (2, 3, 8, 7, 4)
        options |= {"is_heads_last": False, "return_macs": True}
        assert count(first, first, first, **options) == 2 * products
        assert flops.na_qk_flop_count(first, first, **options) == products
        assert flops.na_av_flop_count((2, 3, 8, 7, 15), first, **options) == products
        with pytest.raises(ValueError, match="k_shape"):
            flops.na_qk_flop_count(first, shape, **options)


@pytest.mark.parametrize("version", ["0.14.6", "0.17.4", "0.21"])
def test_the_counter_of_torch_needs_no_handles(version: str) -> None:
    with installed(version) as natten:
        module = natten.NeighborhoodAttention2D(12, 3, 3)
        with FlopCounterMode(display=False) as counter:
            module(torch.randn(1, 9, 8, 12))
    linear = 2 * 72 * 12 * 12 * 4
    assert counter.get_total_flops() == linear + 2 * 2 * multiply_adds(2)[0]


def test_get_flops_needs_fvcore() -> None:
    if importlib.util.find_spec("fvcore") is not None:
        with installed("0.14.6") as natten:
            flops = importlib.import_module("natten.flops")
            module = natten.NeighborhoodAttention2D(12, 3, 3)
            product, weights = multiply_adds(2)
            total = flops.get_flops(module, torch.randn(1, 9, 8, 12), disable_warnings=True)
            assert total == 72 * 12 * 12 * 4 + 2 * product + weights
        return
    with installed("0.14.6"), pytest.raises(ImportError, match="fvcore"):
        importlib.import_module("natten.flops").get_flops(None, None)
