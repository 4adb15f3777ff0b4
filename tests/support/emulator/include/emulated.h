/* CUDA C++ as ordinary C++: the part that generated source and natc's device headers use.
 *
 * Included before the source. Threads are fibers (runtime.c); a collective suspends its lane until
 * every lane that its mask names has arrived.
 */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __constant__
#define __grid_constant__
/* One section, which is poisoned before each block of threads. */
#define __shared__ static __attribute__((section("natc_shared")))

/* ---- runtime.c ---- */
extern "C" {
#include "meeting.h"
void natc_meet(natc_meeting *);
void natc_fail(const char *format, ...);
}

/* ---- vectors ---- */
#define NATC_VECTORS(T, name, unit)                                                               \
  struct name##1 { T x; };                                                                        \
  struct __align__(2 * (unit)) name##2 { T x, y; };                                               \
  struct name##3 { T x, y, z; };                                                                  \
  struct __align__(4 * (unit) > 16 ? 16 : 4 * (unit)) name##4 { T x, y, z, w; };                  \
  inline name##1 make_##name##1(T x) { return {x}; }                                              \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                      \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                              \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
NATC_VECTORS(signed char, char, 1)
NATC_VECTORS(unsigned char, uchar, 1)
NATC_VECTORS(short, short, 2)
NATC_VECTORS(unsigned short, ushort, 2)
NATC_VECTORS(int, int, 4)
NATC_VECTORS(unsigned, uint, 4)
NATC_VECTORS(float, float, 4)
NATC_VECTORS(long long, longlong, 8)
NATC_VECTORS(unsigned long long, ulonglong, 8)
NATC_VECTORS(double, double, 8)

extern "C" const uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

/* ---- numbers ---- */
#define NATC_LARGER(T)                                                                            \
  inline T max(T a, T b) { return a < b ? b : a; }                                                \
  inline T min(T a, T b) { return b < a ? b : a; }
NATC_LARGER(int)
NATC_LARGER(unsigned)
NATC_LARGER(long)
NATC_LARGER(unsigned long)
NATC_LARGER(long long)
NATC_LARGER(unsigned long long)
/* Of a number and NaN, the number. */
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }

template <class To, class From> inline To natc_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return natc_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return natc_bits<unsigned>(x); }
inline float __int_as_float(int x) { return natc_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return natc_bits<float>(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
template <class T> inline T __ldg(const T *from) { return *from; }

/* ---- what lanes do together ---- */
template <class T>
inline T natc_shuffle(unsigned mask, T value, int kind, int argument, int width) {
  static_assert(sizeof(T) <= 8);
  natc_meeting meeting = {NATC_SHUFFLE, mask, kind, argument, width, 0, 0, 0, 0, 0};
  memcpy(&meeting.value, &value, sizeof value);
  natc_meet(&meeting);
  memcpy(&value, &meeting.result, sizeof value);
  return value;
}
template <class T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return natc_shuffle(mask, value, NATC_IDX, lane, width);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return natc_shuffle(mask, value, NATC_UP, (int)by, width);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return natc_shuffle(mask, value, NATC_DOWN, (int)by, width);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return natc_shuffle(mask, value, NATC_XOR, lanes, width);
}
inline unsigned natc_met(int op, unsigned mask, int argument = 0) {
  natc_meeting meeting = {op, mask, 0, argument, 32, 0, 0, 0, 0, 0};
  natc_meet(&meeting);
  return (unsigned)meeting.result;
}
inline unsigned __activemask() { return natc_met(NATC_ACTIVEMASK, ~0u); }
inline unsigned __ballot_sync(unsigned mask, int holds) { return natc_met(NATC_VOTE, mask, holds); }
inline int __any_sync(unsigned mask, int holds) { return __ballot_sync(mask, holds) != 0; }
inline int __all_sync(unsigned mask, int holds) { return __ballot_sync(mask, !holds) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { natc_met(NATC_SYNCWARP, mask); }
inline void __syncthreads() { natc_met(NATC_BARRIER, ~0u); }

/* ---- how a kernel is called: by pointers to its arguments ---- */
template <int... I> struct natc_indices {};
template <int N, int... I> struct natc_count : natc_count<N - 1, N - 1, I...> {};
template <int... I> struct natc_count<0, I...> { typedef natc_indices<I...> all; };
/* What these read is not the kernel's own access. */
#define NATC_UNCHECKED __attribute__((no_sanitize("thread")))
template <class... A, int... I>
NATC_UNCHECKED inline void natc_apply(void (*kernel)(A...), void **arguments, natc_indices<I...>) {
  kernel(*static_cast<A *>(arguments[I])...);
}
template <class... A> NATC_UNCHECKED inline void natc_call(void (*kernel)(A...), void **arguments) {
  natc_apply(kernel, arguments, typename natc_count<sizeof...(A)>::all());
}
