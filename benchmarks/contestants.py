"""Who is timed by `attention.py`: natc, and what else computes attention on the same tensors.

A contestant makes its own layouts, masks and compiled code beforehand. It may have several ways
(`Way`), such as tile shapes: the fastest is what counts.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import clocks
import torch
from problems import Problem, Tensors
from torch import Tensor
from torch.nn import functional

import natc
from natc import reference
from natc.bench import peers
from natc.bench.times import BenchProblem, Unavailable
from natc.errors import NatcError

# What the reference, or a mask, may take.
_MOST_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Way:
    """One way to compute it: `call()` returns the output, in the layout of `leaves`.

    leaves: query, key and value, and a bias where there is one, which gradients are wanted of.
    d_output: in that layout. last: brings a tensor of it into `[B, H, W, heads, head_dim]`.
    """

    call: Callable[[], Tensor]
    leaves: list[Tensor]
    d_output: Tensor
    last: Callable[[Tensor], Tensor]
    note: str = ""

    def with_gradients(self) -> list[Tensor]:
        """Go forward and backward once; return the output and the gradients."""
        output = self.call()
        return [output, *torch.autograd.grad(output, self.leaves, self.d_output)]


Contestant = Callable[[Problem, Tensors, bool], Iterator[Way]]


def _leaves(tensors: Tensors, change: Callable[[Tensor], Tensor], gradient: bool) -> list[Tensor]:
    made = [change(t).detach() for t in (tensors.query, tensors.key, tensors.value)]
    if tensors.rpb is not None:
        made.append(tensors.rpb.detach())
    return [tensor.requires_grad_(gradient) for tensor in made]


def _same(tensor: Tensor) -> Tensor:
    return tensor.clone()


def _of_function(
    function: Callable[..., Any], problem: Problem, tensors: Tensors, gradient: bool, note: str
) -> Way:
    leaves = _leaves(tensors, _same, gradient)
    rpb = leaves[3] if problem.rpb else None

    def call() -> Tensor:
        return function(*leaves[:3], problem.kernel, dilation=problem.dilation, rpb=rpb)

    return Way(call, leaves, tensors.d_output, lambda tensor: tensor, note)


def natc_kernels(problem: Problem, tensors: Tensors, gradient: bool) -> Iterator[Way]:
    """natc's operators, on kernels: what a program calls."""
    way = _of_function(natc.na2d, problem, tensors, gradient, "")
    try:
        way.with_gradients() if gradient else way.call()
    except NatcError as error:
        raise Unavailable(str(error)) from None
    yield way


def plain(problem: Problem, tensors: Tensors, gradient: bool) -> Iterator[Way]:
    """natc's reference."""
    # Keys and values of each window are gathered, and kept for a gradient.
    needs = (4 if gradient else 2) * problem.tensor_bytes * problem.kernel**2
    if needs > _MOST_BYTES:
        raise Unavailable(f"would take about {needs / 2**30:.0f} GiB")
    yield _of_function(reference.neighborhood_attention, problem, tensors, gradient, "")


def _heads_first(tensor: Tensor) -> Tensor:
    return tensor.flatten(1, 2).transpose(1, 2).contiguous()


def _heads_last(problem: Problem) -> Callable[[Tensor], Tensor]:
    return lambda t: t.transpose(1, 2).unflatten(1, (problem.height, problem.width))


def sdpa_full(problem: Problem, tensors: Tensors, gradient: bool) -> Iterator[Way]:
    """torch's attention of every token to all others: another result, compared with its own."""
    if problem.rpb:
        raise Unavailable("takes no bias by relative position")
    leaves = _leaves(tensors, _heads_first, gradient)
    yield Way(
        lambda: functional.scaled_dot_product_attention(*leaves),
        leaves,
        _heads_first(tensors.d_output),
        _heads_last(problem),
        "full attention",
    )


def _inputs(problem: Problem, tensors: Tensors) -> BenchProblem:
    sizes = (problem.kernel, problem.kernel)
    dilation = (problem.dilation, problem.dilation)
    named = (tensors.query, tensors.key, tensors.value, tensors.rpb)
    return BenchProblem(*named, kernel_size=sizes, dilation=dilation)


def sdpa_masked(problem: Problem, tensors: Tensors, gradient: bool) -> Iterator[Way]:
    """torch's attention with a mask of every query against every key, made beforehand."""
    if problem.rpb and gradient:
        raise Unavailable("its mask holds the bias, of which it gives no gradient")
    mask = peers.mask(_inputs(problem, tensors))
    leaves = _leaves(tensors, _heads_first, gradient)[:3]
    yield Way(
        lambda: functional.scaled_dot_product_attention(*leaves, attn_mask=mask),
        leaves,
        _heads_first(tensors.d_output),
        _heads_last(problem),
        "mask made beforehand",
    )


def flex(problem: Problem, tensors: Tensors, gradient: bool) -> Iterator[Way]:
    """torch's FlexAttention with the window as block mask, compiled."""
    if problem.rpb and gradient:
        raise Unavailable("the gradient of a bias read through tables fails to compile")
    attention, block_mask, score = peers.flex_parts(_inputs(problem, tensors))
    leaves = _leaves(tensors, _heads_first, gradient)[:3]
    torch._dynamo.reset()
    compiled = torch.compile(attention, dynamic=False)

    def call() -> Tensor:
        return compiled(*leaves, score_mod=score, block_mask=block_mask)

    try:
        call()
    except Exception as error:  # torch.compile fails with many types; every one means "cannot"
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:120]
        raise Unavailable(f"torch.compile failed: {reason}") from None
    d_output = _heads_first(tensors.d_output)
    yield Way(call, leaves, d_output, _heads_last(problem), "compiled")


def natten(problem: Problem, tensors: Tensors, gradient: bool) -> Iterator[Way]:
    """NATTEN, with every tile shape of its CUDA backends that it says fits (its release 0.21)."""
    if problem.rpb:
        raise Unavailable("takes no bias by relative position")
    try:
        from natten import backends
    except ImportError as error:
        raise Unavailable(f"is not installed ({error})") from None
    leaves = _leaves(tensors, _same, gradient)
    for backend, forward, backward in (
        ("cutlass-fna", "get_configs_for_cutlass_fna", "get_bwd_configs_for_cutlass_fna"),
        (
            "hopper-fna",
            "get_configs_for_cutlass_hopper_fna",
            "get_bwd_configs_for_cutlass_hopper_fna",
        ),
    ):
        ways = []
        for config in getattr(backends, forward)(*leaves):
            options = {"backend": backend, **_natten_options(config)}
            ways.append((_natten_way(problem, tensors, leaves, options), options))
        if not gradient:
            yield from (way for way, _ in ways)
        elif ways:
            # All pairs of a forward and a backward would be thousands.
            options = min(ways, key=lambda pair: _seconds(pair[0].call))[1]
            for config in getattr(backends, backward)(*leaves):
                tiles = {"backward_q_tile_shape": config[0], "backward_kv_tile_shape": config[1]}
                yield _natten_way(problem, tensors, leaves, {**options, **tiles})


def _natten_way(
    problem: Problem, tensors: Tensors, leaves: list[Tensor], options: dict[str, Any]
) -> Way:
    import natten as installed

    call = functools.partial(
        installed.na2d, *leaves, problem.kernel, dilation=problem.dilation, **options
    )
    return Way(call, leaves, tensors.d_output, lambda tensor: tensor, f"{options}")


def _seconds(call: Callable[[], Tensor]) -> float:
    try:
        with torch.no_grad():
            return float(clocks.device_time(call, 5)["median_us"])
    except Exception:  # it refuses with several types what it listed as fitting
        return math.inf


def _natten_options(config: Any) -> dict[str, Any]:
    """Return the arguments for a configuration: two tile shapes, or these and a schedule."""
    if isinstance(config[0][0], tuple):
        (queries, keys), schedule = config
        return {"q_tile_shape": queries, "kv_tile_shape": keys, "kernel_schedule": schedule}
    queries, keys = config
    return {"q_tile_shape": queries, "kv_tile_shape": keys}


CONTESTANTS: dict[str, Contestant] = {
    "natc": natc_kernels,
    "natten": natten,
    "flex": flex,
    "sdpa": sdpa_full,
    "sdpa-masked": sdpa_masked,
    "reference": plain,
}
FULL = ("sdpa",)
warnings.filterwarnings("ignore", message="Logical operators 'and' and 'or' are deprecated")
