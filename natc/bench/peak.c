/* The rates that one core reaches: multiply-adds in registers, and copies of memory.
 *
 * REAL and LANES, from the command line: the type of an element, and how many fill a register.
 * Both functions return the seconds of their own loop, so that a thread that starts late does not
 * count the time of another one.
 */
#include <string.h>
#include <time.h>

typedef REAL vector __attribute__((vector_size(sizeof(REAL) * LANES)));

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
#define START(i) sum##i = {1}
/* Empty, but the compiler must assume that it changes the sum, so it cannot merge two sums. */
#define OPAQUE(i) REGISTER(sum##i)
#define ADD(i) sum##i = sum##i * factor + addend

long natc_peak_multiply_adds_a_round(void) { return SUMS * LANES; }

/* Seconds of that many rounds of multiply-adds. */
double natc_peak_multiply_adds(long rounds) {
  vector factor = {(REAL)0.999}, addend = {(REAL)1e-3}, EACH_SUM(START);
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
