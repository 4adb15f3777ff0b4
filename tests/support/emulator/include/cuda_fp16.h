/* half, kept as its bits; arithmetic in float, rounded once to nearest even. */
#pragma once
#include "emulated.h"

/* Not inlined: a kernel converts in hundreds of places, which takes seconds to compile. */
__noinline__ inline unsigned short natc_to_half(float x) {
  unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (unsigned short)(sign | 0x7fffu);  /* NaN */
  if (rest >= 0x47800000u) return (unsigned short)(sign | 0x7c00u); /* 65536 and more */
  if (rest < 0x38800000u) {
    /* Subnormal: a multiple of 2^-24. The sum with 0.5 rounds there, to nearest even. */
    float sum = __uint_as_float(rest) + 0.5f;
    return (unsigned short)(sign | (__float_as_uint(sum) - 0x3f000000u));
  }
  unsigned even = rest >> 13 & 1u;
  return (unsigned short)(sign | ((rest - 0x38000000u + 0xfffu + even) >> 13));
}
__noinline__ inline float natc_from_half(unsigned short bits) {
  unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, rest = bits & 1023u;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | rest << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | rest << 13);
  float small = (float)rest * 0x1p-24f;
  return sign ? -small : small;
}

#define NATC_SHORT_FLOAT(T, to_bits, from_bits)                                                   \
  struct T {                                                                                      \
    unsigned short bits;                                                                          \
    T() = default;                                                                                \
    T(float x) : bits(to_bits(x)) {}                                                              \
    T(double x) : bits(to_bits((float)x)) {}                                                      \
    T(int x) : bits(to_bits((float)x)) {}                                                         \
    T(unsigned x) : bits(to_bits((float)x)) {}                                                    \
    operator float() const { return from_bits(bits); }                                            \
  };                                                                                              \
  inline T operator+(T a, T b) { return T((float)a + (float)b); }                                 \
  inline T operator-(T a, T b) { return T((float)a - (float)b); }                                 \
  inline T operator*(T a, T b) { return T((float)a * (float)b); }                                 \
  inline T operator/(T a, T b) { return T((float)a / (float)b); }                                 \
  inline T operator-(T a) { return T(-(float)a); }                                                \
  inline bool operator<(T a, T b) { return (float)a < (float)b; }                                 \
  inline bool operator>(T a, T b) { return (float)a > (float)b; }                                 \
  inline bool operator<=(T a, T b) { return (float)a <= (float)b; }                               \
  inline bool operator>=(T a, T b) { return (float)a >= (float)b; }                               \
  inline bool operator==(T a, T b) { return (float)a == (float)b; }                               \
  inline bool operator!=(T a, T b) { return (float)a != (float)b; }                               \
  inline bool __hgt(T a, T b) { return a > b; }                                                   \
  inline bool __hlt(T a, T b) { return a < b; }                                                   \
  struct __align__(4) T##2_ {                                                                     \
    T x, y;                                                                                       \
    T##2_() = default;                                                                            \
    T##2_(T x, T y) : x(x), y(y) {}                                                               \
  };

NATC_SHORT_FLOAT(__half, natc_to_half, natc_from_half)
typedef __half half;
typedef __half2_ __half2;
typedef __half2_ half2;
inline float __half2float(__half x) { return (float)x; }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline float2 __half22float2(half2 v) { return {(float)v.x, (float)v.y}; }
inline float __low2float(half2 v) { return (float)v.x; }
inline float __high2float(half2 v) { return (float)v.y; }
inline half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) { return natc_bits<__half>(x); }
