/* What lanes of a warp compute together, after the PTX ISA. */
#include <string.h>

#include "runtime.h"

static const uint64_t UNDEFINED = ~(uint64_t)0; /* NaN in every floating-point type */

static void shuffle(natc_meeting **lanes) {
  uint64_t values[WARP];
  for (int i = 0; i < WARP; ++i) values[i] = lanes[i] ? lanes[i]->value : UNDEFINED;
  for (int i = 0; i < WARP; ++i) {
    if (!lanes[i]) continue;
    int width = lanes[i]->width, by = lanes[i]->argument;
    int first = i / width * width, from = 0;
    switch (lanes[i]->kind) {
      case NATC_IDX: from = first + (by & (width - 1)); break;
      case NATC_UP: from = i - by < first ? i : i - by; break;
      case NATC_DOWN: from = i + by >= first + width ? i : i + by; break;
      /* A lane may read from earlier groups of lanes, but not from later ones. */
      default: from = (i ^ by) >= first + width ? i : (i ^ by); break;
    }
    lanes[i]->result = values[from & (WARP - 1)];
  }
}

static void vote(natc_meeting **lanes, int only_present) {
  unsigned found = 0;
  for (int i = 0; i < WARP; ++i)
    if (lanes[i] && (only_present || lanes[i]->argument)) found |= 1u << i;
  for (int i = 0; i < WARP; ++i)
    if (lanes[i]) lanes[i]->result = found;
}

static float from_half(unsigned bits) {
  unsigned exponent = bits >> 10 & 31, rest = bits & 1023;
  float value = exponent == 31 ? (rest ? __builtin_nanf("") : __builtin_inff())
                               : __builtin_ldexpf((float)(exponent ? rest + 1024 : rest),
                                                  exponent ? (int)exponent - 25 : -24);
  return bits & 0x8000 ? -value : value;
}

static float element(const unsigned *fragment, int index, int kind) {
  unsigned bits = fragment[index / 2] >> index % 2 * 16 & 0xffff, word = bits << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return kind == NATC_F16 ? from_half(bits) : value;
}

/* mma.m16n8k16: A by rows, B by columns, sums in float. With g = lane / 4 and t = lane % 4, the
 * registers of A hold rows g, g + 8, g, g + 8 and columns 2t, 2t, 2t + 8, 2t + 8, each with the
 * column after it. B's registers hold rows 2t and 2t + 8 of column g, each with the row after it.
 * D's registers hold rows g, g, g + 8, g + 8 and columns 2t, 2t + 1, 2t, 2t + 1. */
static void mma(natc_meeting **lanes) {
  float a[16][16], b[16][8];
  int kind = lanes[0]->kind;
  for (int lane = 0; lane < WARP; ++lane) {
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i)
      a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = element(lanes[lane]->a, i, kind);
    for (int i = 0; i < 4; ++i)
      b[2 * t + i % 2 + i / 2 * 8][g] = element(lanes[lane]->b, i, kind);
  }
  for (int lane = 0; lane < WARP; ++lane) {
    for (int i = 0; i < 4; ++i) {
      int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      lanes[lane]->d[i] += sum;
    }
  }
}

void natc_compute(natc_meeting **lanes) {
  int op = 0;
  for (int i = 0; i < WARP; ++i)
    if (lanes[i]) op = lanes[i]->op;
  switch (op) {
    case NATC_SHUFFLE: shuffle(lanes); break;
    case NATC_ACTIVEMASK: vote(lanes, 1); break;
    case NATC_VOTE: vote(lanes, 0); break;
    case NATC_MMA: mma(lanes); break;
    default: break;
  }
}
