/* Device functions of the kernels for tensor cores. Each is one or two instructions that neither CUDA
 * C++ nor TVM's operations can name. All lanes of a warp must call the functions that exchange data.
 *
 * A warp's 32 lanes hold a product of 16 x 16 and 16 x 8 numbers as the PTX ISA lays them out for
 * mma.m16n8k16: with g = lane / 4 and t = lane % 4, sums d[0], d[1] are row g, d[2], d[3] row
 * g + 8, columns 2t and 2t + 1. a0, a1 (rows g, g + 8) and b0 (column g) hold k = 2t and 2t + 1;
 * a2, a3 and b1 hold k = 2t + 8 and 2t + 9.
 */
#ifdef __CUDACC__
__device__ __forceinline__ void natc_mma_f16(float *d, unsigned a0, unsigned a1, unsigned a2,
                                             unsigned a3, unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void natc_mma_bf16(float *d, unsigned a0, unsigned a1, unsigned a2,
                                              unsigned a3, unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/* Two numbers rounded to nearest, the first in the lower half. */
__device__ __forceinline__ unsigned natc_pack_f16(float low, float high) {
  unsigned packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ unsigned natc_pack_bf16(float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
/* 2^x: exp2f would spend three instructions more on results that are subnormal numbers. */
__device__ __forceinline__ float natc_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/* 1 / x; the last bit may be wrong. A division would need more registers, and branches. */
__device__ __forceinline__ float natc_inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/* The smaller number; NaN if x or y is NaN. */
__device__ __forceinline__ float natc_min(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
/* The larger of two pairs of float16 numbers that are not negative. */
__device__ __forceinline__ unsigned natc_max_f16x2(unsigned x, unsigned y) {
  unsigned z;
  asm("max.f16x2 %0, %1, %2;" : "=r"(z) : "r"(x), "r"(y));
  return z;
}
__device__ __forceinline__ float natc_low_f16(unsigned x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((unsigned short)x));
  return y;
}
__device__ __forceinline__ float natc_shuffle_xor(float x, int lanes) {
  return __shfl_xor_sync(~0u, x, lanes);
}
/* The value of x in another lane. */
__device__ __forceinline__ unsigned natc_shuffle_from(unsigned x, int lane) {
  return __shfl_sync(~0u, x, lane);
}
__device__ __forceinline__ float natc_shuffle_float(float x, int lane) {
  return __shfl_sync(~0u, x, lane);
}
/* The address of a row: row_0 + row * pitch, with a pitch below 2^32. The address of a token: row +
 * 2 * behind. Written in assembly, each is one instruction; the compiler would keep recurring products
 * in registers, and need two instructions for each 64-bit addition. */
__device__ __forceinline__ unsigned long long natc_row_at(unsigned long long row_0, int row,
                                                          long long pitch) {
  unsigned long long address;
  asm("{ .reg .u64 behind; mul.wide.u32 behind, %1, %2; add.u64 %0, behind, %3; }"
      : "=l"(address)
      : "r"(row), "r"((unsigned)pitch), "l"(row_0));
  return address;
}
__device__ __forceinline__ unsigned long long natc_token_at(unsigned long long row, int behind) {
  unsigned long long address;
  asm("{ .reg .s64 behind; mul.wide.s32 behind, %1, 2; add.s64 %0, behind, %2; }"
      : "=l"(address)
      : "r"(behind), "l"(row));
  return address;
}
/* Tells the compiler that x is the same in every lane. */
__device__ __forceinline__ int natc_uniform(int x) { return __shfl_sync(~0u, x, 0); }
__device__ __forceinline__ int natc_any(int x) { return __any_sync(~0u, x); }
#endif

/* The largest x, and the sum of x, over the four lanes that hold a row of a product. */
__device__ __forceinline__ float natc_row_max(float x) {
  x = fmaxf(x, natc_shuffle_xor(x, 1));
  return fmaxf(x, natc_shuffle_xor(x, 2));
}
__device__ __forceinline__ float natc_row_sum(float x) {
  x += natc_shuffle_xor(x, 1);
  return x + natc_shuffle_xor(x, 2);
}
/* -x / log(2) for a logsumexp x; NaN if x is infinite, since probabilities are then inf / inf. */
__device__ __forceinline__ float natc_minus_lse(float x) {
  return fmaf(x, -1.44269504f, x * 0.0f);
}
/* Whether x is NaN or infinite in any lane. */
__device__ __forceinline__ int natc_any_not_finite(float x) { return natc_any(x - x != 0.0f); }
/* The lower halves of two words in one word, and the upper halves. */
__device__ __forceinline__ unsigned natc_low_halves(unsigned a, unsigned b) {
  return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ unsigned natc_high_halves(unsigned a, unsigned b) {
  return __byte_perm(a, b, 0x7632);
}
/* n / d for n >= 0 and d >= 1, in fewer than the twenty instructions of a division. inverse:
 * (2^31 - 1) / d, with which the first quotient is exact or one too small. */
__device__ __forceinline__ int natc_divide(int n, int d, int inverse) {
  int q = (int)(((unsigned long long)(unsigned)n * (2u * (unsigned)inverse)) >> 32);
  return n - q * d >= d ? q + 1 : q;
}
/* Sums of a row of keys on diagonals, which is by how far a key is behind a query: found[i] of key
 * `key` + 32 i and query 0, and of all that are as far apart. values: [half][product][2] as sums of
 * products are laid out, of 8 queries or of two times 8 side by side. */
template <int WARPS, int QUERIES, int PRODUCTS, int NUMBER>
__device__ __forceinline__ void natc_diagonals(float *found, const float *values, int key) {
  /* Lanes store pairs of numbers of four queries at once, in banks of their own. */
  __shared__ float2 shared[WARPS][QUERIES][4 * (PRODUCTS | 1)];
  float2(*rows)[4 * (PRODUCTS | 1)] = shared[threadIdx.y];
  int row = threadIdx.x >> 2, column = threadIdx.x & 3;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < QUERIES / 8 * PRODUCTS; ++i)
    rows[row + i / PRODUCTS * 8][4 * (i % PRODUCTS) + column] =
        make_float2(values[2 * i], values[2 * i + 1]);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < NUMBER; ++i) {
    found[i] = 0.0f;
#pragma unroll
    for (int query = 0; query < QUERIES; ++query) {
      int at = key + 32 * i + query;
      if ((unsigned)at < 8 * PRODUCTS) found[i] += ((const float *)rows[query])[at];
    }
  }
}
__device__ __forceinline__ void natc_sync_warp() { __syncwarp(); }
__device__ __forceinline__ void natc_load_16(unsigned *to, const void *from) {
  uint4 found = *(const uint4 *)from;
  to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
}
__device__ __forceinline__ void natc_load_8(unsigned *to, const void *from) {
  uint2 found = *(const uint2 *)from;
  to[0] = found.x, to[1] = found.y;
}
__device__ __forceinline__ void natc_load_4(unsigned *to, const void *from) {
  to[0] = *(const unsigned *)from;
}
/* Loads from tensors that the kernel does not write. */
__device__ __forceinline__ unsigned long long natc_address(const void *at) {
  return (unsigned long long)at;
}
__device__ __forceinline__ void natc_fetch_16(unsigned *to, unsigned long long from) {
  uint4 found = __ldg((const uint4 *)from);
  to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
}
__device__ __forceinline__ void natc_fetch_8(unsigned *to, unsigned long long from) {
  uint2 found = __ldg((const uint2 *)from);
  to[0] = found.x, to[1] = found.y;
}
__device__ __forceinline__ void natc_fetch_4(unsigned *to, unsigned long long from) {
  to[0] = __ldg((const unsigned *)from);
}
__device__ __forceinline__ void natc_store_16(void *to, const unsigned *from) {
  *(uint4 *)to = make_uint4(from[0], from[1], from[2], from[3]);
}
__device__ __forceinline__ void natc_store_8(void *to, const unsigned *from) {
  *(uint2 *)to = make_uint2(from[0], from[1]);
}
