"""What executes CUDA kernels on the CPU: numbers, warps, and each mistake that it finds."""

from __future__ import annotations

import pytest
import torch
from support.emulator import EmulatedSource, emulate_source
from torch import Tensor

# Kernels of one argument, on 64 threads; the mistake in each, and the first thread to report it.
WRONG = {
    "out_of_bounds_read": (
        "if (i == 63) x[0] = x[i + 1];",
        r"thread \(63, 0, 0\): it reads 4 bytes at byte 256 of tensor 0, which has 256",
    ),
    "out_of_bounds_write": (
        "x[i - 1] = i;",
        r"thread \(0, 0, 0\): it writes 4 bytes at byte -4 of tensor 0, which has 256",
    ),
    "beyond_by_a_vector": (
        "if (i > 62) ((float4*)x)[15] = ((float4*)x)[16];",
        r"thread \(63, 0, 0\): it reads (16|8) bytes at byte 256 of tensor 0",
    ),
    "misaligned": (
        "float4 v = *(float4*)(x + 1); x[i] = v.x;",
        r"thread \(0, 0, 0\): it reads 16 bytes at an address that is no multiple of them",
    ),
    "outside_of_an_array": (
        "float own[3]; own[i % 4] = 1; x[i] = own[i % 3];",
        r"thread \(3, 0, 0\): line \d+ of its source: an index outside of an array",
    ),
    "too_large_a_sum": (
        "x[i] = (int)(2147483600 + i);",
        r"thread \(48, 0, 0\): line \d+ of its source: a sum beyond its integer type",
    ),
    "too_large_a_product": (
        "x[i] = i * 100000000;",
        r"thread \(22, 0, 0\): line \d+ of its source: a product beyond its integer type",
    ),
    "division_by_zero": (
        "x[i] = 7 / (i - 5);",
        r"thread \(5, 0, 0\): line \d+ of its source: a division by zero",
    ),
    "neighbors_write": (
        "x[i / 2] = i;",
        r"thread \(1, 0, 0\): a race: it writes byte 0 of a tensor, which thread 0 wrote",
    ),
    "read_of_a_neighbors": (
        "x[i] = 1; float y = x[i ^ 1]; x[i] = y;",
        r"thread \(1, 0, 0\): a race: it (reads|writes) byte [04] of a tensor, which thread 0 \w+",
    ),
    "no_barrier": (
        "__shared__ float s[64]; s[i] = x[i]; x[i] = s[63 - i];",
        r"a race: it (reads|writes) byte \d+ of shared memory, which thread \d+ (read|wrote)",
    ),
    "barrier_before_reads_only": (
        "__shared__ float s[64]; s[i] = x[i]; __syncthreads(); float y = s[63 - i]; s[i] = y;",
        r"a race: it (reads|writes) byte \d+ of shared memory, which thread \d+ (read|wrote)",
    ),
    "barrier_of_one_warp": (
        "__shared__ float s[64]; s[i] = x[i]; __syncwarp(); x[i] = s[63 - i];",
        r"a race: it (reads|writes) byte \d+ of shared memory",
    ),
    "beside_shared_memory": (
        "__shared__ float s[64]; s[i + 1 & 127] = x[i]; __syncthreads(); x[i] = s[i];",
        r"thread \(63, 0, 0\): line \d+ of its source: an index outside of an array",
    ),
    "barrier_that_part_reaches": (
        "if (i < 40) __syncthreads(); x[i] = 1;",
        r"thread \(0, 0, 0\): threads part where they should meet: it waits at __syncthreads "
        r"\(mask ffffffff\), and thread 40 of its block is at the end of the kernel",
    ),
    "shuffle_that_part_reaches": (
        "if (i % 2) x[i] = __shfl_sync(~0u, x[i], 0); __syncwarp();",
        r"it waits at (a shuffle|__syncwarp) \(mask ffffffff\), and thread \d+ of its block is at",
    ),
    "mask_without_oneself": (
        "x[i] = __shfl_xor_sync(0xffff, x[i], 1);",
        r"thread \(16, 0, 0\): lane 16 calls a shuffle with mask 0000ffff, in which it is not",
    ),
    "masks_that_differ": (
        "x[i] = __shfl_xor_sync(i % 2 ? ~0u : ~2u, x[i], 4);",
        r"lanes that meet differ|lane 1 calls|threads part",
    ),
    "active_lanes_that_differ": (
        "if (i % 32 < 7) x[i] = __activemask(); else __syncwarp(); __syncwarp();",
        r"threads part where they should meet",
    ),
    "matrix_of_half_a_warp": (
        "float d[4]; if (i & 16) natc_mma_f16(d, 0, 0, 0, 0, 0, 0); x[i] = d[0];",
        r"it waits at a matrix product \(mask ffffffff\), and thread \d+ of its block is at the",
    ),
    "not_the_same_in_every_lane": (
        "x[i] = natc_uniform(i / 31);",
        r"thread \(31, 0, 0\): a number that every lane is to have is 1, and 0 in lane 0",
    ),
    "a_global_variable": (
        "static int count; x[i] = ++count;",
        r"it writes 4 bytes at byte -?\d+ of tensor 0",
    ),
}  # fmt: skip
RIGHT = """
extern "C" __global__ void __launch_bounds__(64) shuffles(int* x, int* y, int by, int width) {
  int i = threadIdx.x, *to = y + i * 4;
  to[0] = __shfl_sync(~0u, x[i], by, width);
  to[1] = __shfl_up_sync(~0u, x[i], by, width);
  to[2] = __shfl_down_sync(~0u, x[i], by, width);
  to[3] = __shfl_xor_sync(~0u, x[i], by, width);
}
extern "C" __global__ void votes(int* x, unsigned* y) {
  int i = threadIdx.x;
  unsigned active = __activemask();
  y[i * 4] = active;
  y[i * 4 + 1] = __ballot_sync(active, x[i]);
  y[i * 4 + 2] = __any_sync(active, x[i]);
  y[i * 4 + 3] = __all_sync(active, x[i]);
}
extern "C" __global__ void parts(float* x) {
  int i = threadIdx.x;
  if (i < 9) x[i] = __shfl_down_sync(0x1ff, x[i], 1);
  else x[i] = __shfl_up_sync(~0x1ffu, x[i], 1);
}
extern "C" __global__ void transpose(float* x, float* y, int rows, int columns) {
  __shared__ float tile[8][9];
  int column = blockIdx.x * 8 + threadIdx.x, row = blockIdx.y * 8 + threadIdx.y;
  if (row < rows && column < columns) tile[threadIdx.y][threadIdx.x] = x[row * columns + column];
  __syncthreads();
  column = blockIdx.x * 8 + threadIdx.y, row = blockIdx.y * 8 + threadIdx.x;
  if (row < rows && column < columns) y[column * rows + row] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void unwritten(float* x) {
  __shared__ float s[64];
  float own[2];
  if (x[0] < 0) s[0] = own[1] = 0;
  __syncthreads();
  x[threadIdx.x] = threadIdx.x < 32 ? s[threadIdx.x] : own[threadIdx.x % 2];
}
extern "C" __global__ void in_warps(float* x) {
  __shared__ float s[64];
  int i = threadIdx.x;
  s[i] = x[i];
  __syncwarp();
  x[i] = s[i ^ 31];
}
extern "C" __global__ void numbers(float* from, half* h, nv_bfloat16* b, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) h[i] = (half)from[i], b[i] = (nv_bfloat16)from[i];
}
extern "C" __global__ void packed(float* from, unsigned* h, unsigned* b, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) h[i] = natc_pack_f16(from[2 * i], from[2 * i + 1]);
  if (i < n) b[i] = natc_pack_bf16(from[2 * i], from[2 * i + 1]);
}
extern "C" __global__ void back(half* h, nv_bfloat16* b, float* from_h, float* from_b, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) from_h[i] = (float)h[i], from_b[i] = (float)b[i];
}
"""
PRODUCT = """
extern "C" __global__ void product_TYPE(unsigned short* a, unsigned short* b, float* c) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  unsigned* rows = (unsigned*)a;
  unsigned b0 = b[2 * t * 8 + g] | b[(2 * t + 1) * 8 + g] << 16;
  unsigned b1 = b[(2 * t + 8) * 8 + g] | b[(2 * t + 9) * 8 + g] << 16;
  float d[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t],
                c[(g + 8) * 8 + 2 * t + 1]};
  natc_mma_TYPE(d, rows[g * 8 + t], rows[(g + 8) * 8 + t], rows[g * 8 + t + 4],
                rows[(g + 8) * 8 + t + 4], b0, b1);
  c[g * 8 + 2 * t] = d[0], c[g * 8 + 2 * t + 1] = d[1];
  c[(g + 8) * 8 + 2 * t] = d[2], c[(g + 8) * 8 + 2 * t + 1] = d[3];
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> EmulatedSource:
    wrong = "\n".join(
        f'extern "C" __global__ void {name}(float* x) {{ int i = threadIdx.x; {body} }}'
        for name, (body, _) in WRONG.items()
    )
    source = f"#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n{wrong}\n{RIGHT}"
    source += "".join(PRODUCT.replace("TYPE", kind) for kind in ("f16", "bf16"))
    return emulate_source(source, tmp_path_factory.mktemp("emulator"))


@pytest.mark.parametrize("name", list(WRONG))
def test_mistakes_are_reported(kernels: EmulatedSource, name: str) -> None:
    for order in (0, 1, 3):
        kernels.run_in_order(order)
        with pytest.raises(RuntimeError, match=WRONG[name][1] if order == 0 else None) as caught:
            kernels.launch(name, (2,), (64,), torch.ones(64))
        assert str(caught.value).startswith(f"{name}, block (0, 0, 0)")
    # The next call is not the worse for it.
    kernels.run_in_order(0)
    x = torch.ones(2)
    kernels.launch("parts", (1,), (2,), x)


def test_threads_run_in_the_requested_order(kernels: EmulatedSource) -> None:
    orders = {}
    for order in (0, 1, 5, 6, 5):
        kernels.run_in_order(order)
        with pytest.raises(RuntimeError) as caught:
            kernels.launch("out_of_bounds_write", (1,), (64,), torch.ones(0))
        assert orders.setdefault(order, str(caught.value)) == str(caught.value)
    assert "thread (0, 0, 0)" in orders[0] and "thread (63, 0, 0)" in orders[1]
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize(
    ("grid", "block"),
    [((1,), (65,)), ((0,), (64,)), ((1,), (0,)), ((1, 65536), (64,)), ((1,), (1, 1, 64 * 2))],
)
def test_launches_that_a_gpu_refuses(
    kernels: EmulatedSource, grid: tuple[int, ...], block: tuple[int, ...]
) -> None:
    x, y = torch.zeros(64, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"a grid of \(.*\) threads, at most 64"):
        kernels.launch("shuffles", grid, block, x, y, 1, 32)
    assert not y.any()


def test_a_missing_kernel_is_reported(kernels: EmulatedSource) -> None:
    with pytest.raises(RuntimeError, match="no kernel of this name"):
        kernels.launch("missing", (1,), (1,))


# Lanes of a warp


@pytest.mark.parametrize("width", [2, 4, 16, 32])
@pytest.mark.parametrize("by", [0, 1, 3, 16, 33])
def test_shuffles(kernels: EmulatedSource, by: int, width: int) -> None:
    """After the pseudocode of `shfl.sync` in the PTX ISA."""
    x = torch.arange(64, dtype=torch.int32) * 3 + 7
    y = torch.full((64, 4), -1, dtype=torch.int32)
    kernels.launch("shuffles", (1,), (64,), x, y, by, width)
    for thread in range(64):
        lane = thread % 32
        first = lane // width * width
        up, down, crossed = lane - by, lane + by, lane ^ by
        chosen = (
            first + by % width,
            up if up >= first else lane,
            down if down < first + width else lane,
            crossed if crossed < first + width else lane,
        )
        expected = [int(x[thread - lane + source]) for source in chosen]
        assert y[thread].tolist() == expected, (thread, by, width)


@pytest.mark.parametrize("threads", [1, 5, 32, 43])
def test_votes_count_the_lanes_of_the_mask(kernels: EmulatedSource, threads: int) -> None:
    for value in (0, 1, 2):
        x = torch.full((threads,), value, dtype=torch.int32)
        if value == 2:
            x[::3] = 0
        y = torch.zeros(threads, 4, dtype=torch.int32)
        kernels.launch("votes", (1,), (threads,), x, y)
        for i in range(threads):
            warp = x[i // 32 * 32 :][:32] != 0
            votes = [number & 0xFFFFFFFF for number in y[i].tolist()]
            ballot = sum(1 << lane for lane, holds in enumerate(warp.tolist()) if holds)
            everyone = (1 << len(warp)) - 1
            assert votes == [everyone, ballot, bool(warp.any()), bool(warp.all())]


def test_shuffles_from_missing_lanes_give_nan(kernels: EmulatedSource) -> None:
    x = torch.arange(32.0)
    kernels.launch("parts", (1,), (32,), x)
    below, above = x[:9], x[9:]
    # The last of the mask reads a lane beyond it; the first of the other one before it.
    assert below[:8].tolist() == [*range(1, 9)] and below[8].isnan()
    assert above[0].isnan() and above[1:].tolist() == [*range(9, 31)]
    y = torch.arange(20.0)
    kernels.launch("parts", (1,), (20,), y)
    assert torch.equal(y.isnan(), (torch.arange(20) == 8) | (torch.arange(20) == 9))


# Memory


@pytest.mark.parametrize("order", [0, 1, 9])
def test_shared_memory_and_barriers(kernels: EmulatedSource, order: int) -> None:
    x, y = torch.randn(13, 21), torch.full((21, 13), float("nan"))
    kernels.run_in_order(order)
    kernels.launch("transpose", (3, 2), (8, 8), x, y, 13, 21)
    assert torch.equal(y, x.T)
    z = torch.arange(64.0)
    kernels.launch("in_warps", (1,), (64,), z)
    assert torch.equal(z, torch.arange(64.0).view(2, 32).flip(1).flatten())
    kernels.run_in_order(0)


def test_unwritten_memory_is_nan(kernels: EmulatedSource) -> None:
    x = torch.ones(64)
    kernels.launch("unwritten", (1,), (64,), x)
    assert x.isnan().all()


# Numbers


def hard_numbers() -> Tensor:
    """Every number of 16 bits, what lies halfway between two of them, and a little beside that."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    numbers = torch.cat([bits.view(torch.float16).float(), bits.view(torch.bfloat16).float()])
    numbers = numbers[numbers.isfinite()].sort().values
    middle = (numbers[1:].double() / 2 + numbers[:-1].double() / 2).float()
    many = torch.cat([numbers, middle, middle.nextafter(numbers[1:]), middle.nextafter(-middle)])
    return torch.cat(
        [many, torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 65520])]
    )


def test_rounding_is_to_nearest_even(kernels: EmulatedSource) -> None:
    numbers = hard_numbers()
    n = len(numbers) // 2 * 2
    numbers = numbers[:n]
    h, b = torch.zeros(n, dtype=torch.float16), torch.zeros(n, dtype=torch.bfloat16)
    kernels.launch("numbers", (n // 1024 + 1,), (1024,), numbers, h, b, n)
    same(h, numbers.half())
    same(b, numbers.bfloat16())
    h, b = torch.zeros_like(h), torch.zeros_like(b)
    words = [t.view(torch.int32) for t in (h, b)]
    kernels.launch("packed", (n // 2048 + 1,), (1024,), numbers, *words, n // 2)
    same(h, numbers.half())
    same(b, numbers.bfloat16())


def test_every_number_of_16_bits(kernels: EmulatedSource) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    h, b, n = bits.view(torch.float16), bits.view(torch.bfloat16), len(bits)
    from_h, from_b = torch.zeros(n), torch.zeros(n)
    kernels.launch("back", (n // 1024,), (1024,), h, b, from_h, from_b, n)
    same(from_h, h.float())
    same(from_b, b.float())


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_matrix_products(kernels: EmulatedSource, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(16, 16, generator=generator).to(dtype)
    b = torch.randn(16, 8, generator=generator).to(dtype)
    c = torch.randn(16, 8, generator=generator)
    exact = c.double() + a.double() @ b.double()
    kernels.launch(f"product_{name}", (1,), (32,), a, b, c)
    torch.testing.assert_close(c.double(), exact, rtol=1e-5, atol=1e-5)
    # A smaller block has no whole warp.
    with pytest.raises(RuntimeError, match="the warp is not whole"):
        kernels.launch(f"product_{name}", (1,), (31,), a, b, c)


def same(actual: Tensor, expected: Tensor) -> None:
    """Equal bits; any NaN equals any other."""
    number = ~expected.isnan()
    assert torch.equal(actual.isnan(), ~number)
    kind = torch.int32 if actual.dtype == torch.float32 else torch.int16
    assert torch.equal(actual[number].view(kind), expected[number].view(kind))
