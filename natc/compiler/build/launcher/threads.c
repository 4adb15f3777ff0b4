/* The runtime of compiled CPU code: threads and scratch memory.
 *
 * Compiled code calls through pointers that TVM's runtime would fill in. Filling them in here makes a
 * library independent of that runtime. Work runs on the threads of the OpenMP library that the process
 * has already loaded (PyTorch brings one), so that torch.set_num_threads holds for natc and no second
 * pool competes for the cores. In a process without OpenMP, each call starts threads of its own.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct {
  void *sync_handle;
  int32_t num_task;
} group_env;
typedef int (*task_fn)(int task_id, group_env *env, void *closure);

typedef struct {
  task_fn task;
  void *closure;
  group_env env;
  int failed;
} launch;

/* GNU's entry points; LLVM's OpenMP library has them as well on Linux. */
static void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*omp_max_threads)(void);
static int (*omp_thread_num)(void);
static int (*omp_num_threads)(void);
static int (*omp_inside)(void);

static void run(launch *work, int task_id) {
  if (work->task(task_id, &work->env, work->closure) != 0)
    __atomic_store_n(&work->failed, 1, __ATOMIC_RELAXED);
}

/* OpenMP may provide fewer threads than there are tasks; a thread then runs several. */
static void on_openmp_thread(void *data) {
  launch *work = data;
  int step = omp_num_threads();
  for (int id = omp_thread_num(); id < work->env.num_task; id += step) run(work, id);
}

typedef struct {
  launch *work;
  int task_id;
} started;

static void *on_started_thread(void *data) {
  started *mine = data;
  run(mine->work, mine->task_id);
  return NULL;
}

static void run_on_started_threads(launch *work) {
  int count = work->env.num_task;
  pthread_t *threads = malloc(sizeof(pthread_t) * count);
  started *arguments = malloc(sizeof(started) * count);
  char *is_started = calloc(count, 1);
  for (int id = 1; id < count; ++id) {
    if (!threads || !arguments || !is_started) break;
    arguments[id] = (started){work, id};
    is_started[id] = pthread_create(&threads[id], NULL, on_started_thread, &arguments[id]) == 0;
  }
  run(work, 0);
  for (int id = 1; id < count; ++id) {
    if (is_started && is_started[id])
      pthread_join(threads[id], NULL);
    else
      run(work, id); /* no thread to be had: the work is done here */
  }
  free(threads);
  free(arguments);
  free(is_started);
}

static int parallel_launch(task_fn task, void *closure, int num_task) {
  int available;
  if (gomp_parallel)
    available = omp_inside() ? 1 : omp_max_threads();
  else
    available = (int)sysconf(_SC_NPROCESSORS_ONLN);
  if (num_task <= 0) num_task = available;
  if (num_task < 1) num_task = 1;
  launch work = {task, closure, {NULL, num_task}, 0};
  if (num_task == 1)
    run(&work, 0);
  else if (gomp_parallel && available > 1)
    gomp_parallel(on_openmp_thread, &work, (unsigned)available, 0);
  else if (gomp_parallel)
    for (int id = 0; id < num_task; ++id) run(&work, id);
  else
    run_on_started_threads(&work);
  return work.failed ? -1 : 0;
}

/* Scratch memory is kept for the next call. If it were freed, the system would unmap its pages and
 * clear new ones, which costs as much time as filling them. Blocks that are too large, or find no
 * free slot, are freed. */
enum { SLOTS = 4, ALIGNMENT = 64, MOST_KEPT = 16 << 20 };
static void *kept[SLOTS]; /* each begins with its size; the memory lies ALIGNMENT behind */

static void *alloc_workspace(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (bytes > MOST_KEPT || !__atomic_load_n(&kept[slot], __ATOMIC_RELAXED)) continue;
    uint64_t *block = __atomic_exchange_n(&kept[slot], NULL, __ATOMIC_ACQUIRE);
    if (!block) continue;
    if (*block >= bytes) return (char *)block + ALIGNMENT;
    free(block); /* too small: the block of the larger call takes its slot */
  }
  void *memory = NULL;
  if (bytes > UINT64_MAX / 2 || posix_memalign(&memory, ALIGNMENT, ALIGNMENT + bytes)) return NULL;
  *(uint64_t *)memory = bytes;
  return (char *)memory + ALIGNMENT;
}

static int free_workspace(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  void *block = memory ? (char *)memory - ALIGNMENT : NULL;
  if (block && *(uint64_t *)block <= MOST_KEPT)
    for (int slot = 0; slot < SLOTS; ++slot) {
      void *none = NULL;
      if (__atomic_compare_exchange_n(&kept[slot], &none, block, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        return 0;
    }
  free(block);
  return 0;
}

__attribute__((destructor)) static void give_back(void) {
  for (int slot = 0; slot < SLOTS; ++slot)
    free(__atomic_exchange_n(&kept[slot], NULL, __ATOMIC_ACQUIRE));
}

/* Weak: the compiler emits a pointer only if its code uses it. */
extern void *__TVMBackendParallelLaunch __attribute__((weak));
extern void *__TVMBackendAllocWorkspace __attribute__((weak));
extern void *__TVMBackendFreeWorkspace __attribute__((weak));

__attribute__((constructor)) static void fill_in(void) {
  gomp_parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))dlsym(RTLD_DEFAULT, "GOMP_parallel");
  omp_max_threads = (int (*)(void))dlsym(RTLD_DEFAULT, "omp_get_max_threads");
  omp_thread_num = (int (*)(void))dlsym(RTLD_DEFAULT, "omp_get_thread_num");
  omp_num_threads = (int (*)(void))dlsym(RTLD_DEFAULT, "omp_get_num_threads");
  omp_inside = (int (*)(void))dlsym(RTLD_DEFAULT, "omp_in_parallel");
  if (!omp_max_threads || !omp_thread_num || !omp_num_threads || !omp_inside) gomp_parallel = NULL;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = (void *)parallel_launch;
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = (void *)alloc_workspace;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = (void *)free_workspace;
}
