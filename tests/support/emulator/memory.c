/* Every access of a kernel to memory, as the compiler's thread sanitizer reports it.
 *
 * Outside of a thread's own stack there are the tensors of the call and the block's shared memory:
 * an access must lie inside one of them and be aligned to its size, and a barrier must order it
 * after every access of another thread that conflicts with it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

enum { MOST_TENSORS = 32, GRANULE = 2, SEVERAL = 0xffff };

/* Who was there last. Blocks are counted over all grids; 0 is nobody. */
typedef struct {
  uint32_t block, epoch, warp_epoch;
  uint16_t thread, warp;
} visit;
typedef struct {
  visit written, read;
} shadow;
typedef struct {
  char *start;
  size_t bytes;
  shadow *shadows;
} region;

static region tensors[MOST_TENSORS], shared;
static int num_tensors;
static uint32_t block_number, first_of_grid;
extern char __start_natc_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_natc_shared[] __attribute__((weak, visibility("hidden")));
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));

/* Name the memory that the next grids may touch. */
__attribute__((visibility("default"))) int natc_set_tensors(int number, void **starts,
                                                            const size_t *bytes) {
  for (int i = 0; i < num_tensors; ++i) free(tensors[i].shadows);
  num_tensors = 0;
  if (number > MOST_TENSORS) return -1;
  for (int i = 0; i < number; ++i) {
    shadow *shadows = calloc(bytes[i] / GRANULE + 1, sizeof *shadows);
    if (!shadows) return -1;
    tensors[num_tensors++] = (region){starts[i], bytes[i], shadows};
  }
  return 0;
}

void natc_memory_begin_grid(void) {
  first_of_grid = block_number + 1;
  if (!shared.start && __start_natc_shared) {
    size_t bytes = (size_t)(__stop_natc_shared - __start_natc_shared);
    shared = (region){__start_natc_shared, bytes, calloc(bytes / GRANULE + 1, sizeof(shadow))};
  }
}

void natc_memory_begin_block(void) {
  ++block_number;
  /* NaN in every floating-point type, whatever an earlier block left. */
  if (shared.start) memset(shared.start, 0xff, shared.bytes);
}

static int within(const char *start, size_t bytes, const char *at, size_t size) {
  size_t offset = (size_t)((uintptr_t)at - (uintptr_t)start); /* huge before its start */
  return offset <= bytes && size <= bytes - offset;
}

static int ordered(const region *it, const visit *last) {
  int thread = natc_running();
  if (last->block < first_of_grid) return 1;
  if (last->block != block_number) return it == &shared; /* each block has its own */
  if (last->thread == thread || last->epoch < natc_block_epoch()) return 1;
  return last->warp == thread / WARP && last->warp_epoch < natc_warp_epoch(thread);
}

static void conflict(const region *it, const char *at, const visit *last, const char *mine,
                     const char *theirs) {
  char other[64] = "several threads";
  if (last->thread != SEVERAL) snprintf(other, sizeof other, "thread %d", last->thread);
  natc_fail("a race: it %s byte %td of %s, which %s%s %s with no barrier between", mine,
            at - it->start, it == &shared ? "shared memory" : "a tensor", other,
            last->block == block_number ? "" : " of another block", theirs);
}

static void visited(visit *last, visit now) {
  if (last->block == now.block && !(last->thread == now.thread)) {
    now.thread = SEVERAL;
    if (last->warp != now.warp) now.warp = SEVERAL;
  }
  *last = now;
}

/* Threads may write the same: a write beside another's is looked at once it has happened. */
static struct {
  const region *it;
  const char *at;
  size_t size;
  visit other;
  char before[64];
} pending;

void natc_memory_settle(void) {
  if (!pending.size) return;
  size_t size = pending.size;
  pending.size = 0;
  if (memcmp(pending.at, pending.before, size))
    conflict(pending.it, pending.at, &pending.other, "writes", "wrote otherwise");
}

static void note(region *it, const char *at, size_t size, int writes) {
  int thread = natc_running();
  visit now = {block_number, natc_block_epoch(), natc_warp_epoch(thread), (uint16_t)thread,
               (uint16_t)(thread / WARP)};
  size_t first = (size_t)(at - it->start) / GRANULE;
  size_t last = (size_t)(at + size - 1 - it->start) / GRANULE;
  for (size_t i = first; i <= last; ++i) {
    shadow *found = &it->shadows[i];
    if (!ordered(it, &found->written)) {
      if (!writes || size > sizeof pending.before)
        conflict(it, at, &found->written, writes ? "writes" : "reads", "wrote");
      pending.it = it, pending.at = at, pending.size = size, pending.other = found->written;
      memcpy(pending.before, at, size);
    }
    if (!writes) {
      visited(&found->read, now);
      continue;
    }
    if (!ordered(it, &found->read)) conflict(it, at, &found->read, "writes", "read");
    found->written = now;
  }
}

static void outside(const char *at, size_t size, int writes) {
  const char *verb = writes ? "writes" : "reads";
  int nearest = -1;
  ptrdiff_t least = 0;
  for (int i = 0; i < num_tensors; ++i) {
    ptrdiff_t after = at + size - (tensors[i].start + tensors[i].bytes);
    ptrdiff_t off = at < tensors[i].start ? tensors[i].start - at : after;
    if (nearest < 0 || off < least) nearest = i, least = off;
  }
  if (nearest < 0) natc_fail("it %s %zu bytes, and there is no tensor", verb, size);
  natc_fail("it %s %zu bytes at byte %td of tensor %d, which has %zu", verb, size,
            at - tensors[nearest].start, nearest, tensors[nearest].bytes);
}

static void touch(const void *address, size_t size, int writes) {
  const char *at = address;
  int thread = natc_running();
  size_t bytes;
  if (thread < 0 || !size) return;
  natc_memory_settle();
  const char *stack = natc_stack_of(thread, &bytes);
  if (within(stack, bytes, at, size)) return;
  region *it = NULL;
  if (shared.start && within(shared.start, shared.bytes, at, size)) it = &shared;
  for (int i = 0; i < num_tensors && !it; ++i)
    if (within(tensors[i].start, tensors[i].bytes, at, size)) it = &tensors[i];
  if (!it) {
    /* Constants that the compiler made, and the numbers of threads and blocks. */
    if (!writes && at >= __ehdr_start && at < _end) return;
    outside(at, size, writes);
    return;
  }
  if (size <= 16 && !(size & (size - 1)) && (uintptr_t)at % size)
    natc_fail("it %s %zu bytes at an address that is no multiple of them",
              writes ? "writes" : "reads", size);
  note(it, at, size, writes);
}

/* ---- called by the thread sanitizer's instrumentation ---- */
void __tsan_init(void) {}
void __tsan_func_entry(void *caller) { (void)caller; }
void __tsan_func_exit(void) {}
#define ACCESS(bytes)                                                       \
  void __tsan_read##bytes(void *at) { touch(at, bytes, 0); }                \
  void __tsan_write##bytes(void *at) { touch(at, bytes, 1); }               \
  void __tsan_unaligned_read##bytes(void *at) { touch(at, bytes, 0); }      \
  void __tsan_unaligned_write##bytes(void *at) { touch(at, bytes, 1); }     \
  void __tsan_read_write##bytes(void *at) { touch(at, bytes, 0), touch(at, bytes, 1); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void *__tsan_memcpy(void *to, const void *from, size_t size) {
  touch(from, size, 0);
  touch(to, size, 1);
  return memcpy(to, from, size);
}
void *__tsan_memmove(void *to, const void *from, size_t size) {
  touch(from, size, 0);
  touch(to, size, 1);
  return memmove(to, from, size);
}
void *__tsan_memset(void *to, int value, size_t size) {
  touch(to, size, 1);
  return memset(to, value, size);
}

/* ---- called by the undefined-behaviour sanitizer's instrumentation ---- */
typedef struct {
  const char *file;
  uint32_t line, column;
} source_location;
#define UNDEFINED(name, what)                                                       \
  void __ubsan_handle_##name(const source_location *at) {                           \
    if (natc_running() >= 0) natc_fail("line %u of its source: %s", at->line, what); \
  }
UNDEFINED(out_of_bounds, "an index outside of an array")
UNDEFINED(type_mismatch_v1, "an address that is not aligned to its type")
UNDEFINED(add_overflow, "a sum beyond its integer type")
UNDEFINED(sub_overflow, "a difference beyond its integer type")
UNDEFINED(mul_overflow, "a product beyond its integer type")
UNDEFINED(negate_overflow, "a negation beyond its integer type")
UNDEFINED(divrem_overflow, "a division by zero, or beyond its integer type")
UNDEFINED(shift_out_of_bounds, "a shift by too many bits, or of too large a number")
