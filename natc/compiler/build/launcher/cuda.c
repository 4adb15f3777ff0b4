/* Launches the kernels of a CUDA library through the driver, and nothing else.
 *
 * Compiled host code checks arguments, computes the grid and calls the kernel by name through
 * pointers that a compiler's runtime would fill in. They are filled in here instead. The driver
 * library is opened at the first launch: a natc library links to no CUDA version, and loads, for
 * inspection, on a machine without a GPU.
 *
 * The table of kernels (`natc_kernels`) and their machine code are generated beside this file.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "kernels.h"

/* ---- the functions of libtvm_ffi that this file calls (tvm/ffi/c_api.h) ---- */
typedef struct {
  int32_t type_index;
  int32_t padding;
  union {
    int64_t v_int64;
    double v_float64;
    void *v_ptr;
  } value;
} ffi_any;
typedef int (*ffi_safe_call)(void *self, const ffi_any *args, int32_t num_args, ffi_any *result);
extern int TVMFFIFunctionCreate(void *self, ffi_safe_call call, void (*deleter)(void *), void **out);
extern int TVMFFIFunctionCall(void *func, ffi_any *args, int32_t num_args, ffi_any *result);
extern int TVMFFIHandleInitOnce(void **handle, int (*init)(void **));
extern void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
extern void *TVMFFIEnvGetStream(int32_t device_type, int32_t device_id);
enum { DEVICE_CUDA = 2 };

/* ---- the functions of the CUDA driver that this file calls (cuda.h) ---- */
static struct {
  int (*Init)(unsigned);
  int (*DeviceGet)(int *, int);
  int (*PrimaryCtxRetain)(void **, int);
  int (*CtxGetCurrent)(void **);
  int (*CtxPushCurrent)(void *);
  int (*CtxPopCurrent)(void **);
  int (*ModuleLoadData)(void **, const void *);
  int (*ModuleGetFunction)(void **, void *, const char *);
  int (*LaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                      void *, void **, void **);
  int (*GetErrorString)(int, const char **);
  int (*DriverGetVersion)(int *);
} driver;

enum { MAX_DEVICES = 64, MOST_BLOCKS = 65535 }; /* blocks on a grid's second and third axis */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int driver_ready;
static void *contexts[MAX_DEVICES];
static void *modules[NUM_IMAGES][MAX_DEVICES];
static void *functions[NUM_KERNELS][MAX_DEVICES];

/* The device that the host code chose, for the launch that follows on the same thread. */
static __thread int current_device;

static int fail(const char *doing, int code) {
  char message[512];
  const char *reason = NULL;
  if (code && driver.GetErrorString) driver.GetErrorString(code, &reason);
  snprintf(message, sizeof message, "natc: %s failed%s%s", doing, reason ? ": " : "",
           reason ? reason : "");
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", message);
  return -1;
}

static int open_driver(void) {
  if (driver_ready) return 0;
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail("opening the CUDA driver (libcuda.so.1)", 0);
  const struct {
    void *to;
    const char *name;
  } wanted[] = {
      {&driver.Init, "cuInit"},
      {&driver.DeviceGet, "cuDeviceGet"},
      {&driver.PrimaryCtxRetain, "cuDevicePrimaryCtxRetain"},
      {&driver.CtxGetCurrent, "cuCtxGetCurrent"},
      {&driver.CtxPushCurrent, "cuCtxPushCurrent_v2"},
      {&driver.CtxPopCurrent, "cuCtxPopCurrent_v2"},
      {&driver.ModuleLoadData, "cuModuleLoadData"},
      {&driver.ModuleGetFunction, "cuModuleGetFunction"},
      {&driver.LaunchKernel, "cuLaunchKernel"},
      {&driver.GetErrorString, "cuGetErrorString"},
      {&driver.DriverGetVersion, "cuDriverGetVersion"},
  };
  for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; ++i) {
    void *found = dlsym(library, wanted[i].name);
    if (!found) return fail(wanted[i].name, 0);
    memcpy(wanted[i].to, &found, sizeof found);
  }
  int code = driver.Init(0);
  if (code) return fail("cuInit", code);
  driver_ready = 1;
  return 0;
}

/* A driver reads code of its own CUDA version and of earlier ones. */
static int fail_loading(int code) {
  char doing[256];
  int has = 0;
  driver.DriverGetVersion(&has);
  if (has / 1000 >= TOOLKIT / 1000) return fail("loading the kernel's machine code", code);
  snprintf(doing, sizeof doing,
           "loading the kernel's machine code, which was compiled by CUDA %d.%d, by a driver for "
           "CUDA %d.%d (update the driver, or build with an older CUDA)",
           TOOLKIT / 1000, TOOLKIT % 1000 / 10, has / 1000, has % 1000 / 10);
  return fail(doing, code);
}

/* Under the lock, with the device's context current. */
static int load(const natc_kernel *kernel, int index, int device) {
  void **module = &modules[kernel->image][device];
  int code;
  if (!*module && (code = driver.ModuleLoadData(module, natc_images[kernel->image])))
    return fail_loading(code);
  void *function;
  if ((code = driver.ModuleGetFunction(&function, *module, kernel->name)))
    return fail("finding the kernel in its machine code", code);
  __atomic_store_n(&functions[index][device], function, __ATOMIC_RELEASE);
  return 0;
}

static int prepare_device(int device) {
  int code, handle;
  if (device < 0 || device >= MAX_DEVICES) return fail("choosing the device", 0);
  if (contexts[device]) return 0;
  if (open_driver()) return -1;
  if ((code = driver.DeviceGet(&handle, device))) return fail("cuDeviceGet", code);
  /* PyTorch and the CUDA runtime use the primary context. */
  if ((code = driver.PrimaryCtxRetain(&contexts[device], handle)))
    return fail("cuDevicePrimaryCtxRetain", code);
  return 0;
}

static void launch_shape(const natc_kernel *kernel, const ffi_any *args, unsigned *shape) {
  for (int i = 0; i < NUM_LAUNCH; ++i) shape[i] = 1;
  for (int i = 0; i < kernel->num_launch; ++i)
    shape[kernel->launch[i]] = (unsigned)args[kernel->num_params + i].value.v_int64;
}

static int launch_in_context(const natc_kernel *kernel, const ffi_any *args, int device) {
  int index = (int)(kernel - natc_kernels), code = 0;
  void *function = __atomic_load_n(&functions[index][device], __ATOMIC_ACQUIRE);
  if (!function) {
    pthread_mutex_lock(&lock);
    if (!functions[index][device]) code = load(kernel, index, device);
    pthread_mutex_unlock(&lock);
    if (code) return code;
    function = functions[index][device];
  }
  union {
    void *p;
    int64_t l;
    int32_t i;
    float f;
    double d;
  } values[MAX_PARAMS];
  void *pointers[MAX_PARAMS];
  for (int i = 0; i < kernel->num_params; ++i) {
    switch (kernel->params[i]) {
      case 'p': values[i].p = args[i].value.v_ptr; break;
      case 'l': values[i].l = args[i].value.v_int64; break;
      case 'i': values[i].i = (int32_t)args[i].value.v_int64; break;
      case 'd': values[i].d = args[i].value.v_float64; break;
      default: values[i].f = (float)args[i].value.v_float64; break;
    }
    pointers[i] = &values[i];
  }
  unsigned shape[NUM_LAUNCH];
  launch_shape(kernel, args, shape);
  void *stream = TVMFFIEnvGetStream(DEVICE_CUDA, device);
  code = driver.LaunchKernel(function, shape[0], shape[1], shape[2], shape[3], shape[4], shape[5],
                             0, stream, pointers, NULL);
  return code ? fail("launching the kernel", code) : 0;
}

static int launch(void *self, const ffi_any *args, int32_t num_args, ffi_any *result) {
  const natc_kernel *kernel = self;
  int device = current_device;
  (void)result;
  if (num_args != kernel->num_params + kernel->num_launch) return fail("matching arguments", 0);
  unsigned shape[NUM_LAUNCH];
  launch_shape(kernel, args, shape);
  if (shape[1] > MOST_BLOCKS || shape[2] > MOST_BLOCKS)
    return fail("launching the kernel on more than 65,535 tiles of a map's axis", 0);
  if (!contexts[device]) {
    pthread_mutex_lock(&lock);
    int code = prepare_device(device);
    pthread_mutex_unlock(&lock);
    if (code) return code;
  }
  void *current = NULL;
  driver.CtxGetCurrent(&current);
  if (current == contexts[device]) return launch_in_context(kernel, args, device);
  int code = driver.CtxPushCurrent(contexts[device]);
  if (code) return fail("cuCtxPushCurrent", code);
  int status = launch_in_context(kernel, args, device);
  driver.CtxPopCurrent(&current);
  return status;
}

/* The caller's current device is not changed: the launch goes to the tensors' device. */
static int set_device(void *self, const ffi_any *args, int32_t num_args, ffi_any *result) {
  (void)self, (void)result;
  if (num_args != 2) return fail("matching arguments", 0);
  int64_t device = args[1].value.v_int64;
  if (device < 0 || device >= MAX_DEVICES) return fail("choosing the device", 0);
  current_device = (int)device;
  return 0;
}

static int look_up(void *library, const char *name, void **out) {
  (void)library;
  if (strcmp(name, "__tvm_set_device") == 0)
    return TVMFFIFunctionCreate(NULL, set_device, NULL, out);
  for (int i = 0; i < NUM_KERNELS; ++i)
    if (strcmp(name, natc_kernels[i].name) == 0)
      return TVMFFIFunctionCreate((void *)&natc_kernels[i], launch, NULL, out);
  return fail(name, 0);
}

extern void *__TVMFFIFunctionCall __attribute__((weak));
extern void *__TVMFFIEnvModLookupFromImports __attribute__((weak));
extern void *__TVMFFIHandleInitOnce __attribute__((weak));

__attribute__((constructor)) static void fill_in(void) {
  if (&__TVMFFIFunctionCall) __TVMFFIFunctionCall = (void *)TVMFFIFunctionCall;
  if (&__TVMFFIEnvModLookupFromImports) __TVMFFIEnvModLookupFromImports = (void *)look_up;
  if (&__TVMFFIHandleInitOnce) __TVMFFIHandleInitOnce = (void *)TVMFFIHandleInitOnce;
}
