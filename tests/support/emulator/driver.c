/* libcuda, as far as natc's launcher calls it, with one device whose kernels run here. */
#include <stdio.h>
#include <string.h>

#include "runtime.h"

enum { SUCCESS, INVALID_VALUE = 1, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
static const char *last_message = "";
static int context, current_depth;

static int init(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
static int device_get(int *device, int ordinal) {
  *device = ordinal;
  return ordinal ? INVALID_VALUE : SUCCESS;
}
static int retain(void **out, int device) {
  *out = &context;
  return device ? INVALID_VALUE : SUCCESS;
}
static int get_current(void **out) {
  *out = current_depth ? &context : NULL;
  return SUCCESS;
}
static int push_current(void *pushed) {
  if (pushed != &context) return INVALID_VALUE;
  ++current_depth;
  return SUCCESS;
}
static int pop_current(void **out) {
  if (!current_depth) return INVALID_VALUE;
  *out = &context;
  --current_depth;
  return SUCCESS;
}
static int load_data(void **module, const void *image) {
  *module = (void *)image;
  return current_depth ? SUCCESS : INVALID_VALUE;
}
static int get_function(void **function, void *module, const char *name) {
  if (!current_depth || !module) return INVALID_VALUE;
  for (int i = 0; i < natc_num_emulated; ++i)
    if (strcmp(natc_emulated_kernels[i].name, name) == 0) {
      *function = (void *)&natc_emulated_kernels[i];
      return SUCCESS;
    }
  return NOT_FOUND;
}

static int run(const natc_emulated *kernel, uint3 grid, uint3 block, void **arguments) {
  static char reason[160];
  /* What every GPU since compute capability 3 allows. */
  const unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      !threads || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > MOST_THREADS ||
      (int)threads > kernel->most_threads) {
    snprintf(reason, sizeof reason,
             "a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads, at most %d", grid.x, grid.y,
             grid.z, block.x, block.y, block.z, kernel->most_threads);
    last_message = reason;
    return LAUNCH_FAILED;
  }
  const char *failed = natc_run(kernel, grid, block, arguments);
  if (!failed) return SUCCESS;
  last_message = failed;
  return LAUNCH_FAILED;
}

static int launch(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                  unsigned bz, unsigned shared_bytes, void *stream, void **arguments,
                  void **extra) {
  if (!current_depth || shared_bytes || stream || extra) return INVALID_VALUE;
  return run(function, (uint3){gx, gy, gz}, (uint3){bx, by, bz}, arguments);
}

static int get_version(int *version) {
  *version = 99990; /* of any toolkit's code */
  return SUCCESS;
}

static int error_string(int code, const char **out) {
  *out = code == LAUNCH_FAILED ? last_message : code == NOT_FOUND ? "not found" : "invalid value";
  return SUCCESS;
}

void *natc_emulated_open(const char *name, int mode) {
  static int library;
  (void)mode;
  return strcmp(name, "libcuda.so.1") == 0 ? &library : NULL;
}

void *natc_emulated_symbol(void *library, const char *name) {
  static const struct {
    const char *name;
    void *function;
  } known[] = {
      {"cuInit", init},
      {"cuDeviceGet", device_get},
      {"cuDevicePrimaryCtxRetain", retain},
      {"cuCtxGetCurrent", get_current},
      {"cuCtxPushCurrent_v2", push_current},
      {"cuCtxPopCurrent_v2", pop_current},
      {"cuModuleLoadData", load_data},
      {"cuModuleGetFunction", get_function},
      {"cuLaunchKernel", launch},
      {"cuGetErrorString", error_string},
      {"cuDriverGetVersion", get_version},
  };
  (void)library;
  for (unsigned i = 0; i < sizeof known / sizeof *known; ++i)
    if (strcmp(known[i].name, name) == 0) return known[i].function;
  return NULL;
}

/* Run a kernel by its name, with no launcher; return NULL, or what went wrong. */
__attribute__((visibility("default"))) const char *natc_set_off(const char *name,
                                                                const unsigned *grid,
                                                                const unsigned *block,
                                                                void **arguments) {
  for (int i = 0; i < natc_num_emulated; ++i)
    if (strcmp(natc_emulated_kernels[i].name, name) == 0)
      return run(&natc_emulated_kernels[i], (uint3){grid[0], grid[1], grid[2]},
                 (uint3){block[0], block[1], block[2]}, arguments)
                 ? last_message
                 : NULL;
  return "there is no kernel of this name";
}
