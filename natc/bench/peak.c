/* What one core can do: float32 multiply-adds in registers, and copies of memory.
 *
 * LANES, from the command line: of a vector register. Both functions return seconds, taken around
 * their own loop, so that threads which start one after the other do not count each other's start.
 */
#include <string.h>
#include <time.h>

typedef float vector __attribute__((vector_size(4 * LANES)));

#if defined(__x86_64__)
#define REGISTER "+v"
#else
#define REGISTER "+w"
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Independent sums: at least the latency of a multiply-add times how many begin in a cycle. */
#define SUMS 12
#define EACH_SUM(x) x(0), x(1), x(2), x(3), x(4), x(5), x(6), x(7), x(8), x(9), x(10), x(11)
#define START(i) sum##i = {1.0f}
/* Empty, and for all the compiler knows, it changes the sum: no sum is equal to another. */
#define OPAQUE(i) REGISTER(sum##i)
#define ADD(i) sum##i = sum##i * factor + addend

long natc_peak_multiply_adds_a_round(void) { return SUMS * LANES; }

/* Seconds of that many rounds of multiply-adds. */
double natc_peak_multiply_adds(long rounds) {
  vector factor = {0.999f}, addend = {1e-3f}, EACH_SUM(START);
  double start = now();
  for (long round = 0; round < rounds; ++round) {
    EACH_SUM(ADD);
    __asm__ volatile("" : EACH_SUM(OPAQUE));
  }
  return now() - start;
}

/* Seconds of that many copies of memory. */
double natc_peak_copies(void *to, const void *from, unsigned long bytes, long rounds) {
  double start = now();
  for (long round = 0; round < rounds; ++round) {
    memcpy(to, from, bytes);
    __asm__ volatile("" : : "r"(to), "r"(from) : "memory");
  }
  return now() - start;
}
