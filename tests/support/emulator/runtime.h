/* Functions that the emulated driver and the fibers call of each other. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "include/meeting.h"

typedef struct {
  unsigned x, y, z;
} uint3;

enum { WARP = 32, MOST_THREADS = 1024 };

/* A kernel of the library: generated beside its source. */
typedef struct {
  const char *name;
  void (*call)(void **arguments);
  int most_threads;
} natc_emulated;
extern const natc_emulated natc_emulated_kernels[];
extern const int natc_num_emulated;

/* Run a grid; return NULL, or what went wrong. */
const char *natc_run(const natc_emulated *kernel, uint3 grid, uint3 block, void **arguments);
/* End the thread that runs, and the grid, with a message. */
void natc_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* The thread that runs, counted through its block; -1 between threads. */
int natc_running(void);
const char *natc_stack_of(int thread, size_t *bytes);
/* How many barriers the block, and how many full ones a thread's warp, has passed. */
unsigned natc_block_epoch(void), natc_warp_epoch(int thread);

/* memory.c */
void natc_memory_begin_grid(void);
void natc_memory_begin_block(void);
/* Called before the running thread gives way to another. */
void natc_memory_settle(void);

/* collectives.c: compute for lanes that have met; lanes[i] is NULL if lane i is not among them */
void natc_compute(natc_meeting **lanes);
