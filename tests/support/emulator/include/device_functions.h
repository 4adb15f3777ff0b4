/* What natc's mma.cuh says in PTX. The layout of fragments is in collectives.c. */
#pragma once
#include "cuda_bf16.h"

inline void natc_mma(int kind, float *d, const unsigned *a, const unsigned *b) {
  natc_meeting meeting = {NATC_MMA, ~0u, kind, 0, 32, 0, 0, d, a, b};
  natc_meet(&meeting);
}
inline void natc_mma_f16(float *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                         unsigned b1) {
  unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  natc_mma(NATC_F16, d, a, b);
}
inline void natc_mma_bf16(float *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                          unsigned b1) {
  unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  natc_mma(NATC_BF16, d, a, b);
}
inline float natc_min(float x, float y) { return x != x || x < y ? x : y; }
/* max.f16x2: of a number and NaN, the number. */
inline unsigned natc_max_f16(unsigned x, unsigned y) {
  return natc_to_half(fmaxf(natc_from_half((unsigned short)x), natc_from_half((unsigned short)y)));
}
inline unsigned natc_max_f16x2(unsigned x, unsigned y) {
  return natc_max_f16(x & 0xffff, y & 0xffff) | natc_max_f16(x >> 16, y >> 16) << 16;
}
inline float natc_low_f16(unsigned x) { return natc_from_half((unsigned short)x); }
inline unsigned long long natc_row_at(unsigned long long row_0, int row, long long pitch) {
  return row_0 + (unsigned long long)(unsigned)row * (unsigned)pitch;
}
inline unsigned long long natc_token_at(unsigned long long row, int behind) {
  return row + 2 * (long long)behind;
}
inline unsigned natc_shuffle_from(unsigned x, int lane) { return __shfl_sync(~0u, x, lane); }
inline float natc_shuffle_xor(float x, int lanes) { return __shfl_xor_sync(~0u, x, lanes); }
inline int natc_any(int x) { return __any_sync(~0u, x); }
inline int natc_uniform(int x) {
  int first = __shfl_sync(~0u, x, 0);
  if (x != first) natc_fail("a number that every lane is to have is %d, and %d in lane 0", x, first);
  return first;
}
/* ex2.approx.ftz: subnormal numbers are zeros. */
inline float natc_exp2(float x) {
  float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline float natc_inverse(float x) { return 1.0f / x; }
inline float natc_shuffle_float(float x, int lane) { return __shfl_sync(~0u, x, lane); }
inline unsigned natc_pair(unsigned short low, unsigned short high) { return high << 16 | low; }
inline unsigned natc_pack_f16(float low, float high) {
  return natc_pair(natc_to_half(low), natc_to_half(high));
}
inline unsigned natc_pack_bf16(float low, float high) {
  return natc_pair(natc_to_bfloat16(low), natc_to_bfloat16(high));
}
/* Bytes of two words as one chooses: four bits of the selector for each, the lowest first. */
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  unsigned long long bytes = (unsigned long long)b << 32 | a;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i)
    chosen |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return chosen;
}
