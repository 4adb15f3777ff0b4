/* bfloat16, kept as its bits: the upper half of a float, rounded to nearest even. */
#pragma once
#include "cuda_fp16.h"

__noinline__ inline unsigned short natc_to_bfloat16(float x) {
  unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float natc_from_bfloat16(unsigned short bits) {
  return __uint_as_float((unsigned)bits << 16);
}

NATC_SHORT_FLOAT(__nv_bfloat16, natc_to_bfloat16, natc_from_bfloat16)
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162_ __nv_bfloat162;
typedef __nv_bfloat162_ nv_bfloat162;
inline float __bfloat162float(__nv_bfloat16 x) { return (float)x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(nv_bfloat162 v) { return {(float)v.x, (float)v.y}; }
inline float __low2float(nv_bfloat162 v) { return (float)v.x; }
inline float __high2float(nv_bfloat162 v) { return (float)v.y; }
inline nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return natc_bits<__nv_bfloat16>(x); }
