"""Contestants that only the scripts here time: NATTEN, and attention of all tokens to all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from natc.bench import clocks
from natc.bench.peers import heads_first, in_torch_layout
from natc.bench.problem import Case
from natc.bench.times import Prepared, Unavailable, first_line
from natc.checks.tolerance import relative_errors

# The backends of NATTEN 0.21, and the functions that list their tile shapes.
_BACKENDS = {
    "cutlass-fna": ("get_configs_for_cutlass_fna", "get_bwd_configs_for_cutlass_fna"),
    "hopper-fna": (
        "get_configs_for_cutlass_hopper_fna",
        "get_bwd_configs_for_cutlass_hopper_fna",
    ),
}


def full_sdpa(case: Case) -> Prepared:
    """Let every token attend to every other: another result, compared with its own in float64."""
    if case.inputs.rpb is not None:
        raise Unavailable("takes no bias by relative position")
    leaves = case.leaves(heads_first)
    attend: Any = functools.partial(
        functional.scaled_dot_product_attention, enable_gqa=case.problem.group > 1
    )
    prepared = in_torch_layout(case, leaves, lambda: attend(*leaves), "full attention")

    def error(results: Sequence[Tensor]) -> float:
        # The first entry of the batch: all of them would take too much memory in float64.
        exact = [tensor[:1].detach().double().requires_grad_() for tensor in leaves]
        with torch.inference_mode(False), torch.enable_grad():
            output = attend(*(tensor.clone() for tensor in exact))
            expected = [output]
            if prepared.d_output is not None:
                d_output = prepared.d_output[:1].double()
                expected += torch.autograd.grad(output, exact, d_output)
        pairs = zip(results, map(prepared.to_natc, expected), strict=True)
        return max(relative_errors(result[:1], wanted).largest for result, wanted in pairs)

    return Prepared(**{**vars(prepared), "error": error})


def natten(case: Case) -> Prepared:
    """NATTEN, with the fastest tile shapes of its CUDA backends for this problem."""
    if case.inputs.rpb is not None:
        raise Unavailable("takes no bias by relative position")
    try:
        import natten as package
        from natten import backends
    except ImportError as error:
        raise Unavailable(f"is not installed ({error})") from None
    problem, leaves = case.problem, case.leaves()
    attend = getattr(package, f"na{problem.kernel.rank}d")

    def prepared(options: dict[str, Any]) -> Prepared:
        call = functools.partial(
            attend, *leaves, problem.kernel.kernel_size, **problem.options, **options
        )
        return Prepared(call, leaves, case.d_output, note=str(options))

    def forwards() -> Iterator[dict[str, Any]]:
        for backend, (names, _) in _BACKENDS.items():
            for config in getattr(backends, names)(*leaves):
                yield {"backend": backend, **_tiles(config)}

    def backwards(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for query, key in getattr(backends, _BACKENDS[options["backend"]][1])(*leaves):
            yield {**options, "backward_q_tile_shape": query, "backward_kv_tile_shape": key}

    best = _fastest(forwards(), lambda options: prepared(options).attend)
    if case.d_output is not None:
        # All pairs of a forward and a backward would be thousands.
        best = _fastest(backwards(best), lambda options: prepared(options).call)
    return prepared(best)


def _tiles(config: Any) -> dict[str, Any]:
    """Return the arguments for a configuration: two tile shapes, on Hopper with a schedule."""
    if isinstance(config[0][0], tuple):
        (query, key), schedule = config
        return {"q_tile_shape": query, "kv_tile_shape": key, "kernel_schedule": schedule}
    return {"q_tile_shape": config[0], "kv_tile_shape": config[1]}


def _fastest(
    candidates: Iterator[dict[str, Any]],
    call_of: Callable[[dict[str, Any]], Callable[[], object]],
) -> dict[str, Any]:
    """Return the options whose call takes the least time; raise Unavailable if none runs."""
    seconds: list[tuple[float, dict[str, Any]]] = []
    reason = "has no tile shapes for it"
    for options in candidates:
        try:
            seconds.append((clocks.device_seconds(call_of(options)), options))
        except Exception as error:  # it refuses with several types the shapes that it listed
            reason = first_line(error)
    if not seconds:
        raise Unavailable(reason)
    return min(seconds, key=lambda pair: pair[0])[1]
