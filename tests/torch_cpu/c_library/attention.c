// A kernel in plain C with natc's calling convention, for tests of everything around a kernel.
// Slow and strict: it refuses what a compiled kernel would crash on. Compiled with
// -DKERNEL_SIZE=, -DHEAD_DIM= and -DRPB=. -DFACTOR= multiplies the output, to tell builds apart.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <dlpack/dlpack.h>

// The C interface of tvm-ffi, as far as it is needed (its header is C++).
typedef struct {
  int32_t type_index;
  int32_t padding;
  union {
    int64_t v_int64;
    double v_float64;
    void* v_ptr;
  };
} Any;
enum { INT = 1, FLOAT = 3, DLTENSOR = 7, TENSOR = 70, OBJECT_HEADER = 24 };
extern void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);

#ifndef FACTOR
#define FACTOR 1
#endif

#define EXPORT __attribute__((visibility("default")))

static int64_t calls = 0;

static int refuse(const char* message) {
  TVMFFIErrorSetRaisedFromCStr("ValueError", message);
  return -1;
}

static const char* problem_of(const DLTensor* t, int ndim) {
  if (t->ndim != ndim) return "wrong number of axes";
  if (t->dtype.code != kDLFloat || t->dtype.bits != 32) return "dtype is not float32";
  if (((uintptr_t)t->data + t->byte_offset) % 64) return "pointer is misaligned";
  int64_t expected = 1;
  for (int axis = ndim - 1; axis >= 0; --axis) {
    if (t->shape[axis] < 1) return "axis is empty";
    if (t->strides && t->shape[axis] > 1 && t->strides[axis] != expected) return "not compact";
    expected *= t->shape[axis];
  }
  return NULL;
}

static const DLTensor* tensor_of(const Any* any) {
  if (any->type_index == DLTENSOR) return (const DLTensor*)any->v_ptr;
  if (any->type_index == TENSOR) return (const DLTensor*)((char*)any->v_ptr + OBJECT_HEADER);
  return NULL;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Taps of one query on one axis: group member of the first tap, and how many.
static void window(int64_t position, int64_t length, int64_t dilation, int64_t* first,
                   int64_t* count) {
  int64_t members = (length - position % dilation + dilation - 1) / dilation;
  *count = smaller(KERNEL_SIZE, members);
  *first = larger(0, smaller(position / dilation - KERNEL_SIZE / 2, members - *count));
}

static int run(const Any* args, int32_t num_args, int with_lse) {
  enum { TAPS = KERNEL_SIZE * KERNEL_SIZE, SPAN = 2 * KERNEL_SIZE - 1 };
  const DLTensor* t[6] = {0};  // query, key, value, rpb, output, lse
  int at = 0;
  if (num_args != 7 + RPB + with_lse) return refuse("wrong number of arguments");
  for (int i = 0; i < 6; ++i) {
    if ((i == 3 && !RPB) || (i == 5 && !with_lse)) continue;
    t[i] = tensor_of(&args[at++]);
    if (!t[i]) return refuse("argument is not a tensor");
    const char* problem = problem_of(t[i], i == 3 ? 3 : i == 5 ? 4 : 5);
    if (problem) return refuse(problem);
  }
  if (args[at].type_index != FLOAT) return refuse("scale is not a float");
  double scale = args[at].v_float64;
  if (args[at + 1].type_index != INT || args[at + 2].type_index != INT)
    return refuse("dilation is not an integer");
  int64_t dilation[2] = {args[at + 1].v_int64, args[at + 2].v_int64};
  const int64_t* shape = t[0]->shape;
  if (shape[4] != HEAD_DIM) return refuse("wrong head_dim");
  for (int i = 1; i < 5; ++i)
    if (i != 3 && memcmp(t[i]->shape, shape, 5 * sizeof(int64_t))) return refuse("shapes differ");
  const float *query = t[0]->data, *key = t[1]->data, *value = t[2]->data;
  const float* rpb = RPB ? t[3]->data : NULL;
  float *output = t[4]->data, *lse = with_lse ? t[5]->data : NULL;
  int64_t H = shape[1], W = shape[2], heads = shape[3];

  for (int64_t row = 0; row < shape[0] * H * W * heads; ++row) {
    int64_t head = row % heads, x = row / heads % W, y = row / heads / W % H;
    int64_t batch = row / heads / W / H, first[2], count[2], taps = 0;
    double logit[TAPS], most = -INFINITY, sum = 0, out[HEAD_DIM] = {0};
    int64_t source[TAPS];
    window(y, H, dilation[0], &first[0], &count[0]);
    window(x, W, dilation[1], &first[1], &count[1]);
    for (int64_t i = 0; i < count[0]; ++i)
      for (int64_t j = 0; j < count[1]; ++j, ++taps) {
        int64_t ky = (first[0] + i) * dilation[0] + y % dilation[0];
        int64_t kx = (first[1] + j) * dilation[1] + x % dilation[1];
        source[taps] = (((batch * H + ky) * W + kx) * heads + head) * HEAD_DIM;
        double dot = 0;
        for (int d = 0; d < HEAD_DIM; ++d)
          dot += (double)query[row * HEAD_DIM + d] * key[source[taps] + d];
        logit[taps] = dot * scale;
        if (RPB)
          logit[taps] += rpb[(head * SPAN + (ky - y) / dilation[0] + KERNEL_SIZE - 1) * SPAN +
                             (kx - x) / dilation[1] + KERNEL_SIZE - 1];
        if (logit[taps] > most) most = logit[taps];
      }
    for (int64_t tap = 0; tap < taps; ++tap) {
      double weight = exp(logit[tap] - most);
      sum += weight;
      for (int d = 0; d < HEAD_DIM; ++d) out[d] += weight * value[source[tap] + d];
    }
    for (int d = 0; d < HEAD_DIM; ++d) output[row * HEAD_DIM + d] = (float)(FACTOR * out[d] / sum);
    if (lse) lse[row] = (float)(most + log(sum));
  }
  ++calls;
  return 0;
}

EXPORT int __tvm_ffi_attend(void* self, const Any* args, int32_t num_args, Any* result) {
  result->type_index = 0;
  return run(args, num_args, 0);
}

EXPORT int __tvm_ffi_attend_lse(void* self, const Any* args, int32_t num_args, Any* result) {
  result->type_index = 0;
  return run(args, num_args, 1);
}

// How many calls were completed: a test can tell a kernel's result from the reference's.
EXPORT int __tvm_ffi_calls(void* self, const Any* args, int32_t num_args, Any* result) {
  result->type_index = INT;
  result->v_int64 = calls;
  return 0;
}
