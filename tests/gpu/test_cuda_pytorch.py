"""What PyTorch does around kernels, on a GPU: compiles, exports, casts, captures, recomputes.

With kernels that have a bias and gradients; `gpu_libraries` says how to make some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.gpu_libraries import has, specs
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import Dim
from torch.utils._triton import has_triton
from torch.utils.checkpoint import checkpoint

import natc
from natc import ops
from natc.checks.inputs import make_inputs
from natc.nn import NeighborhoodAttention2D
from natc.operations import operations_of
from natc.ops.direct import goes_straight
from natc.spec import KernelSpec

DEVICE = "cuda"
HEADS = 3


def wanted(spec: KernelSpec) -> bool:
    plain = spec.rank == 2 and spec.rpb and spec.value_dim == spec.head_dim
    return plain and has(spec, *operations_of(spec, ("forward", "backward")))


SPECS = specs(wanted, "with a bias, forward and backward, of rank 2")
# One for each dtype: torch treats all alike.
each_spec = pytest.mark.parametrize(
    "spec", list({spec.dtype: spec for spec in SPECS}.values()), ids=str
)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No call may run on the reference."""
    monkeypatch.setenv("NATC_STRICT", "1")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def inputs_of(
    spec: KernelSpec,
    batch: int = 2,
    size: tuple[int, int] = (15, 14),
    *,
    dtype: str | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Return query, key, value and rpb, which require gradients."""
    inputs = make_inputs(
        (batch, *size, HEADS, spec.head_dim),
        kernel_size=spec.kernel_size,
        dtype=getattr(torch, dtype or spec.dtype),
        device=DEVICE,
        seed=seed,
        requires_grad=True,
    )
    return [tensor for tensor in inputs if tensor is not None]


def attention(spec: KernelSpec) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor) -> Tensor:
        return natc.na2d(2 * query, key, value, spec.kernel_size, dilation=2, rpb=rpb)

    return attend


def gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of a sum of its squares."""
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), inputs)]


def assert_same(results: Any, expected: Any) -> None:
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.dtype == wanted.dtype and torch.equal(actual, wanted)
        assert bool(actual.isfinite().all()) and bool(actual.any())


class Attention(nn.Module):
    """A module whose parameters are on the device."""

    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        torch.manual_seed(0)
        dim = HEADS * spec.head_dim
        self.attention = NeighborhoodAttention2D(dim, HEADS, spec.kernel_size)
        self.to(DEVICE, getattr(torch, spec.dtype))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x)
        return output


def image(spec: KernelSpec, batch: int, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, *size, HEADS * spec.head_dim, generator=generator)
    return x.to(DEVICE, getattr(torch, spec.dtype))


# Compiled and exported


@each_spec
@pytest.mark.parametrize(
    "options",
    [{"backend": "aot_eager"}, {"backend": "inductor"}, {"mode": "reduce-overhead"}],
    ids=lambda options: next(iter(options.values())),
)
def test_a_compiled_graph_trains(spec: KernelSpec, options: dict[str, str]) -> None:
    exact = options.get("backend") == "aot_eager"
    if not exact and DEVICE == "cuda" and not has_triton():
        pytest.skip("inductor needs triton")
    attend = attention(spec)
    compiled = torch.compile(attend, fullgraph=True, **options)  # type: ignore[call-overload]
    for batch, seed in ((2, 0), (2, 1), (3, 2), (5, 3)):
        inputs = inputs_of(spec, batch, seed=seed)
        # The next run of a CUDA graph overwrites the results of this one.
        torch.compiler.cudagraph_mark_step_begin()
        results = [tensor.clone() for tensor in gradients(compiled, inputs)]
        expected = gradients(attend, inputs)
        if exact:
            assert_same(results, expected)
        torch.testing.assert_close(results, expected, rtol=1e-2, atol=1e-2)
    assert counters["stats"]["unique_graphs"] == 2, "the first batch, and any other"


@each_spec
def test_an_exported_program_takes_any_size(spec: KernelSpec) -> None:
    module = Attention(spec).eval()
    sizes = {axis: Dim(name) for axis, name in enumerate(("batch", "height", "width"))}
    x = image(spec, 2, 15, 14)
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,))
    targets = {node.target for node in program.graph.nodes if "natc" in str(node.target)}
    assert targets == {ops.forward_packed}
    call = program.module()
    with torch.no_grad():
        for x in (image(spec, 3, 13, 17), image(spec, 5, 31, 16)):
            torch.testing.assert_close(call(x), module(x), rtol=1e-2, atol=1e-2)


def test_tensors_of_a_gpu_go_past_the_dispatcher() -> None:
    """By keys of their own; what makes a call go through it is tested on CPUs."""
    x = torch.randn(2, 3, device=DEVICE)
    assert goes_straight((x, None, nn.Parameter(x)))
    with torch.inference_mode():
        assert goes_straight((x, x * 1))


@each_spec
def test_every_operator_passes_opcheck(spec: KernelSpec) -> None:
    query, key, value, rpb = inputs_of(spec, 2, (5, 6))
    qkv = torch.stack((query, key, value), -3).detach().requires_grad_()
    options = (spec.kernel_size, (1, 1), (2, 1), (False, True), 0.3)
    with torch.no_grad():
        output, lse = ops.forward_lse(query, key, value, rpb, *options)
    upstream = (torch.randn_like(output), torch.randn_like(lse))
    wanted = [True, True, True, True]
    calls = {
        ops.forward: (query, key, value, rpb, *options),
        ops.forward_lse: (query, key, value, rpb, *options),
        ops.forward_packed: (qkv, rpb, *options),
        ops.forward_lse_packed: (qkv, rpb, *options),
        ops.backward: (*upstream, query.detach(), key.detach(), value.detach(), rpb.detach(),
                       output, lse, wanted, *options),
        ops.backward_packed: (*upstream, qkv.detach(), rpb.detach(), output, lse, [True, True],
                              *options),
    }  # fmt: skip
    for operator, arguments in calls.items():
        outcome = torch.library.opcheck(operator, arguments)
        assert list(outcome.values()) == ["SUCCESS"] * 4, operator


# Autocast, checkpoints


def test_autocast_runs_kernels_of_float16() -> None:
    spec = next((spec for spec in SPECS if spec.dtype == "float16"), None)
    if spec is None:
        pytest.skip("there is no kernel of float16 among them")
    inputs = inputs_of(spec, dtype="float32")

    def cast(*tensors: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.float16):
            output = attention(spec)(*tensors)
        assert output.dtype == torch.float16
        return output

    results = gradients(cast, inputs)
    assert {tensor.dtype for tensor in results[1:]} == {torch.float32}

    def by_hand(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor) -> Tensor:
        low = [tensor.half() for tensor in (2 * query, key, value)]
        return natc.na2d(*low, spec.kernel_size, dilation=2, rpb=rpb)

    assert_same(results, gradients(by_hand, inputs))


@each_spec
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_recomputes_the_same_results(spec: KernelSpec, use_reentrant: bool) -> None:
    module = Attention(spec).train()

    def trained(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = image(spec, 2, 15, 14).requires_grad_()
        module.zero_grad()
        run(x).float().square().mean().backward()
        grads = [tensor.grad for tensor in (x, *module.parameters())]
        return [grad.clone() for grad in grads if grad is not None]

    expected = trained(module)
    assert len(expected) == 1 + len(list(module.parameters()))
    assert_same(trained(lambda x: checkpoint(module, x, use_reentrant=use_reentrant)), expected)


# Streams and graphs


@each_spec
def test_the_backward_runs_on_the_stream_of_its_forward(spec: KernelSpec) -> None:
    late, second = inputs_of(spec), inputs_of(spec, seed=1)
    attend = attention(spec)
    expected = gradients(attend, late)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(attend, second)  # to have memory for the results, which may take long to get
        torch.cuda._sleep(200_000_000)  # clock cycles, about 0.1 s
        with torch.no_grad():
            for tensor, new in zip(second, late):
                tensor.copy_(new)
        results = gradients(attend, second)
    # On any other stream it would have read the tensors before they were copied.
    stream.synchronize()
    assert_same(results, expected)


@each_spec
def test_a_step_is_captured_in_a_graph(spec: KernelSpec) -> None:
    static = inputs_of(spec)
    attend = attention(spec)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients(attend, static)  # the first call loads machine code
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = gradients(attend, static)
    for seed in (5, 6):
        fresh = inputs_of(spec, seed=seed)
        with torch.no_grad():
            for tensor, new in zip(static, fresh):
                tensor.copy_(new)
        for result in results:
            result.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(results, gradients(attend, fresh))
