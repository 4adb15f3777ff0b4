/* Threads of a block as fibers of one thread, one block after the other.
 *
 * A thread runs until it ends or meets others. Lanes that met go on when all that their mask names
 * have come; where that cannot happen any more the grid ends with a message.
 */
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { STACK = 128 * 1024, MESSAGE = 1024 };
enum { READY, WAITING, ENDED };

typedef struct {
  void *stack_pointer;
  int state;
  uint3 index;
  natc_meeting *meeting;
} fiber;

uint3 threadIdx, blockIdx, blockDim, gridDim;

static fiber fibers[MOST_THREADS];
static char *stacks;
static int order[MOST_THREADS], num_threads, running = -1;
static unsigned block_epoch, warp_epochs[MOST_THREADS / WARP];
static void *scheduler;
static const natc_emulated *kernel;
static void **kernel_arguments;
static char message[MESSAGE];
static uint64_t seed, randomness;

int natc_running(void) { return running; }
const char *natc_stack_of(int thread, size_t *bytes) {
  *bytes = STACK;
  return stacks + (size_t)thread * STACK;
}
unsigned natc_block_epoch(void) { return block_epoch; }
unsigned natc_warp_epoch(int thread) { return warp_epochs[thread / WARP]; }

/* The order in which threads run: 0 ascending, 1 descending, else at random. */
__attribute__((visibility("default"))) void natc_set_order(uint64_t chosen) {
  seed = randomness = chosen;
}

/* ---- fibers: registers that a called function keeps are saved on the stack ---- */
void natc_switch(void **save, void *load);
#if defined(__x86_64__)
__asm__(".text\n.globl natc_switch\n.hidden natc_switch\nnatc_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n");
enum { SAVED = 8, RETURN_TO = 6 };
#elif defined(__aarch64__)
__asm__(".text\n.globl natc_switch\n.hidden natc_switch\nnatc_switch:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
        "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n"
        "  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
        "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n"
        "  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n  ret\n");
enum { SAVED = 20, RETURN_TO = 11 };
#else
#error "fibers are written for x86-64 and aarch64"
#endif

static void leave(int state) {
  fiber *me = &fibers[running];
  me->state = state;
  natc_switch(&me->stack_pointer, scheduler);
}

static void body(void) {
  kernel->call(kernel_arguments);
  natc_memory_settle();
  leave(ENDED);
  abort(); /* nobody goes on with a thread that ended */
}

static void start(int thread) {
  uint64_t *top = (uint64_t *)(stacks + (size_t)(thread + 1) * STACK) - 2;
  top -= SAVED;
  memset(top, 0, SAVED * sizeof *top);
  top[RETURN_TO] = (uint64_t)(uintptr_t)body;
  fiber *it = &fibers[thread];
  it->stack_pointer = top;
  it->state = READY;
  it->meeting = NULL;
  it->index.x = (unsigned)thread % blockDim.x;
  it->index.y = (unsigned)thread / blockDim.x % blockDim.y;
  it->index.z = (unsigned)thread / blockDim.x / blockDim.y;
}

static void resume(int thread) {
  running = thread;
  threadIdx = fibers[thread].index;
  natc_switch(&scheduler, fibers[thread].stack_pointer);
  running = -1;
}

/* ---- messages ---- */
static int where(char *to, size_t size, int thread) {
  int n = snprintf(to, size, "%s, block (%u, %u, %u)", kernel->name, blockIdx.x, blockIdx.y,
                   blockIdx.z);
  if (thread >= 0)
    n += snprintf(to + n, size - (size_t)n, ", thread (%u, %u, %u)", fibers[thread].index.x,
                  fibers[thread].index.y, fibers[thread].index.z);
  return n + snprintf(to + n, size - (size_t)n, ": ");
}

void natc_fail(const char *format, ...) {
  va_list arguments;
  int n = where(message, sizeof message, running);
  va_start(arguments, format);
  vsnprintf(message + n, sizeof message - (size_t)n, format, arguments);
  va_end(arguments);
  leave(ENDED); /* for good: the scheduler looks at the message first */
  abort();
}

static const char *const names[] = {"",           "a shuffle",       "__activemask", "a vote",
                                    "__syncwarp", "__syncthreads",   "a matrix product"};

static const char *doing(int thread) {
  return fibers[thread].state == ENDED ? "the end of the kernel" : names[fibers[thread].meeting->op];
}

static void report(int thread, const char *reason, int other) {
  int n = where(message, sizeof message, thread);
  snprintf(message + n, sizeof message - (size_t)n,
           "%s: it waits at %s (mask %08x), and thread %d of its block is at %s%s", reason,
           doing(thread), fibers[thread].meeting->mask, other, doing(other),
           fibers[other].state == READY ? " (not yet run)" : "");
}

/* ---- meeting ---- */
void natc_meet(natc_meeting *meeting) {
  int lane = running % WARP;
  if (!(meeting->mask >> lane & 1))
    natc_fail("lane %d calls %s with mask %08x, in which it is not", lane, names[meeting->op],
              meeting->mask);
  natc_memory_settle();
  fibers[running].meeting = meeting;
  leave(WAITING);
}

static int last_of_warp(int first) {
  return first + WARP < num_threads ? first + WARP : num_threads;
}

/* Let the lanes go on that a thread waits for, and itself, if all are there. */
static void try_warp(int thread) {
  natc_meeting *mine = fibers[thread].meeting, *lanes[WARP] = {NULL};
  int first = thread / WARP * WARP, last = last_of_warp(first);
  /* A full mask also names lanes that a smaller block does not have. Of matrices, all must be. */
  if (mine->op == NATC_MMA && last - first < WARP) {
    report(thread, "the warp is not whole", thread);
    return;
  }
  for (int i = first; i < last; ++i) {
    fiber *it = &fibers[i];
    if (!(mine->mask >> (i - first) & 1)) continue;
    if (it->state == ENDED && mine->op != NATC_MMA) continue;
    if (it->state != WAITING || it->meeting->op != mine->op) return;
    if (it->meeting->mask != mine->mask || it->meeting->kind != mine->kind ||
        it->meeting->width != mine->width) {
      report(thread, "lanes that meet differ in their masks or kinds", i);
      return;
    }
    lanes[i - first] = it->meeting;
  }
  natc_compute(lanes);
  if (mine->op == NATC_SYNCWARP && mine->mask == ~0u) ++warp_epochs[first / WARP];
  for (int i = 0; i < WARP; ++i)
    if (lanes[i]) fibers[first + i].state = READY;
}

static void try_block(void) {
  for (int i = 0; i < num_threads; ++i)
    if (fibers[i].state != WAITING || fibers[i].meeting->op != NATC_BARRIER) return;
  ++block_epoch;
  for (int i = 0; i < num_threads; ++i) fibers[i].state = READY;
}

/* Nobody can go on: say who waits for whom. */
static void stuck(void) {
  for (int i = 0; i < num_threads; ++i) {
    if (fibers[i].state != WAITING) continue;
    natc_meeting *meeting = fibers[i].meeting;
    int block = meeting->op == NATC_BARRIER, first = block ? 0 : i / WARP * WARP;
    int last = block ? num_threads : last_of_warp(first);
    for (int j = first; j < last; ++j)
      if ((block || meeting->mask >> (j - first) & 1) &&
          (fibers[j].state != WAITING || fibers[j].meeting->op != meeting->op)) {
        report(i, "threads part where they should meet", j);
        return;
      }
  }
  snprintf(message, sizeof message, "%s: threads wait for each other", kernel->name);
}

/* ---- blocks and grids ---- */
static uint64_t random_number(void) {
  randomness = randomness * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
  return randomness >> 33;
}

static void shuffle(void) {
  for (int i = 0; i < num_threads; ++i) order[i] = seed == 1 ? num_threads - 1 - i : i;
  if (seed < 2) return;
  for (int i = num_threads - 1; i > 0; --i) {
    int j = (int)(random_number() % (uint64_t)(i + 1)), kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }
}

static void run_block(void) {
  int left = num_threads, moved = 1;
  block_epoch = 0;
  memset(warp_epochs, 0, sizeof warp_epochs);
  natc_memory_begin_block();
  for (int i = 0; i < num_threads; ++i) start(i);
  while (left && moved && !*message) {
    moved = 0;
    shuffle();
    for (int i = 0; i < num_threads && !*message; ++i) {
      int thread = order[i];
      if (fibers[thread].state != READY) continue;
      moved = 1;
      resume(thread);
      if (*message) return;
      if (fibers[thread].state == ENDED)
        --left;
      else if (fibers[thread].meeting->op == NATC_BARRIER)
        try_block();
      else
        try_warp(thread);
    }
    /* Lanes may have waited for a lane that has ended meanwhile. */
    for (int i = 0; !moved && left && i < num_threads && !*message; ++i)
      if (fibers[i].state == WAITING && fibers[i].meeting->op != NATC_BARRIER) {
        try_warp(i);
        moved |= fibers[i].state == READY;
      }
  }
  if (left && !*message) stuck();
}

const char *natc_run(const natc_emulated *chosen, uint3 grid, uint3 block, void **arguments) {
  kernel = chosen;
  kernel_arguments = arguments;
  gridDim = grid;
  blockDim = block;
  num_threads = (int)(block.x * block.y * block.z);
  *message = 0;
  if (!stacks) {
    stacks = mmap(NULL, (size_t)MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) {
      stacks = NULL;
      return "no memory for stacks";
    }
  }
  natc_memory_begin_grid();
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x && !*message; ++x) {
        blockIdx = (uint3){x, y, z};
        run_block();
      }
  return *message ? message : NULL;
}
