"""Scratch memory of compiled CPU code: kept for the next call, and never two calls' at once."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

PROGRAM = """
#include LAUNCHER
#include <stdio.h>
#include <string.h>

void *__TVMBackendParallelLaunch, *__TVMBackendAllocWorkspace, *__TVMBackendFreeWorkspace;
typedef void *(*alloc_fn)(int, int, uint64_t, int, int);
typedef int (*free_fn)(int, int, void *);
static void *get(uint64_t bytes) {
  return ((alloc_fn)__TVMBackendAllocWorkspace)(1, 0, bytes, 2, 32);
}
static void put(void *memory) { ((free_fn)__TVMBackendFreeWorkspace)(1, 0, memory); }
static void check(int holds, const char *what) { if (!holds) puts(what); }

static int mixed[8];
static void *on_thread(void *data) {
  int mine = (int)(intptr_t)data + 1;
  for (unsigned turn = 0; turn < 2000; ++turn) {
    unsigned bytes = 1 + (turn * 7919u + mine * 104729u) % 5000;
    unsigned char *one = get(bytes), *two = get(bytes / 2);
    memset(one, mine, bytes), memset(two, mine + 100, bytes / 2);
    for (unsigned i = 0; i < bytes; ++i) mixed[mine - 1] |= one[i] != mine;
    for (unsigned i = 0; i < bytes / 2; ++i) mixed[mine - 1] |= two[i] != mine + 100;
    put(one), put(two);
  }
  return NULL;
}

int main(void) {
  void *first = get(1000), *second = get(1000);
  check(first && second && first != second, "two blocks are one");
  check((uintptr_t)first % 64 == 0, "not aligned");
  memset(first, 1, 1000);
  put(first);
  check(get(900) == first, "not kept");
  put(first);
  void *larger = get(1 << 20);
  memset(larger, 1, 1 << 20);
  put(larger);
  check(get(1000) == larger, "the larger block is not what is kept");
  put(larger), put(second), put(NULL);
  void *most = get(MOST_KEPT + 1);
  memset(most, 1, MOST_KEPT + 1);
  put(most);
  uint64_t held = 0;
  for (int slot = 0; slot < SLOTS; ++slot) held += kept[slot] ? *(uint64_t *)kept[slot] : 0;
  check(held > 0 && held <= SLOTS * (uint64_t)MOST_KEPT, "too much is kept");
  for (int slot = 0; slot < SLOTS; ++slot)
    check(!kept[slot] || *(uint64_t *)kept[slot] <= MOST_KEPT, "what is too large is kept");
  check(get(UINT64_MAX - 8) == NULL && get(UINT64_MAX / 4) == NULL, "memory that cannot be");
  void *none = get(0);
  check(none != NULL, "nothing for no bytes");
  put(none);
  void *many[2 * SLOTS];
  for (int i = 0; i < 2 * SLOTS; ++i) many[i] = get(100 + i);
  for (int i = 0; i < 2 * SLOTS; ++i)
    for (int j = 0; j < i; ++j) check(many[i] != many[j], "one block twice");
  for (int i = 0; i < 2 * SLOTS; ++i) put(many[i]);
  pthread_t threads[8];
  for (intptr_t i = 0; i < 8; ++i) pthread_create(&threads[i], NULL, on_thread, (void *)i);
  for (int i = 0; i < 8; ++i) pthread_join(threads[i], NULL), check(!mixed[i], "shared");
  puts("done");
}
"""


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_blocks_are_kept_and_never_shared(sanitizer: str, tmp_path: Path) -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    program = tmp_path / "program"
    with resources.as_file(
        resources.files("natc.compiler.build") / "launcher" / "threads.c"
    ) as launcher:
        subprocess.run(
            [*compiler, "-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", "-x", "c", "-",
             f'-DLAUNCHER="{launcher}"', "-o", str(program), "-ldl", "-pthread"],
            input=PROGRAM, text=True, check=True,
        )  # fmt: skip
    # Threads are watched best where addresses are not drawn by chance; some sandboxes forbid that.
    fixed = ["setarch", "--addr-no-randomize"]
    allowed = shutil.which(fixed[0]) and not subprocess.run([*fixed, "true"]).returncode
    run = [*(fixed if allowed else ()), str(program)]
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1",
                   "TSAN_OPTIONS": "allocator_may_return_null=1"}  # fmt: skip
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n" and done.returncode == 0, done.stdout + done.stderr
