/* The values that a lane brings to a meeting with other lanes, and takes from it. */
#pragma once
#include <stdint.h>

enum {
  NATC_SHUFFLE = 1,
  NATC_ACTIVEMASK,
  NATC_VOTE,
  NATC_SYNCWARP,
  NATC_BARRIER,
  NATC_MMA,
};
enum { NATC_IDX, NATC_UP, NATC_DOWN, NATC_XOR }; /* kinds of shuffles */
enum { NATC_F16, NATC_BF16 };                    /* kinds of matrix products */

typedef struct {
  int op;
  unsigned mask; /* the lanes that meet */
  int kind, argument, width;
  uint64_t value, result; /* value: of a shuffle */
  float *d;               /* the fragments of a matrix product */
  const unsigned *a, *b;
} natc_meeting;
