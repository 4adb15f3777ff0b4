// A kernel in plain C with natc's calling convention, for tests of everything around a kernel.
// Slow and strict: it refuses arguments that would crash a compiled kernel. Compiled with
// -DKERNEL_SIZE=, -DHEAD_DIM=, -DRPB=, and -DFORWARD= and
// -DFORWARD_LSE=, the names of its functions. -DFACTOR= multiplies the output, to tell builds apart.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <dlpack/dlpack.h>

// The part of tvm-ffi's C interface that is used here (its header is C++).
typedef struct {
  int32_t type_index;
  int32_t padding;
  union {
    int64_t v_int64;
    double v_float64;
    void* v_ptr;
  };
} Any;
enum { INT = 1, BOOL = 2, FLOAT = 3, DLTENSOR = 7, TENSOR = 70, OBJECT_HEADER = 24 };
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

typedef struct {
  int64_t dilation, stride, causal;
} Axis;

// Taps of one query on one axis: group member of the first tap, and how many.
static void window(int64_t position, int64_t length, Axis axis, int64_t* first, int64_t* count) {
  int64_t members = (length - position % axis.dilation + axis.dilation - 1) / axis.dilation;
  int64_t member = position / axis.dilation;
  int64_t ahead = axis.causal ? axis.stride - 1 : axis.stride / 2;
  int64_t leader = smaller(member / axis.stride * axis.stride + ahead, members - 1);
  if (axis.causal) {
    *first = larger(0, leader - KERNEL_SIZE + 1);
    *count = member - *first + 1;
  } else {
    *count = smaller(KERNEL_SIZE, members);
    *first = larger(0, smaller(leader - KERNEL_SIZE / 2, members - *count));
  }
}

static int run(const Any* args, int32_t num_args, int with_lse) {
  enum { TAPS = KERNEL_SIZE * KERNEL_SIZE, SPAN = 2 * KERNEL_SIZE - 1 };
  const DLTensor* t[6] = {0};  // query, key, value, rpb, output, lse
  int at = 0;
  if (num_args != 12 + RPB + with_lse) return refuse("wrong number of arguments");
  for (int i = 0; i < 6; ++i) {
    if ((i == 3 && !RPB) || (i == 5 && !with_lse)) continue;
    t[i] = tensor_of(&args[at++]);
    if (!t[i]) return refuse("argument is not a tensor");
    const char* problem = problem_of(t[i], i == 3 ? 3 : i == 5 ? 4 : 5);
    if (problem) return refuse(problem);
  }
  if (args[at].type_index != FLOAT) return refuse("scale is not a float");
  double scale = args[at].v_float64;
  int64_t integer[7];  // two dilations, two strides, two flags, group
  for (int i = 0; i < 7; ++i) {
    int type = args[at + 1 + i].type_index, is_flag = i == 4 || i == 5;
    if (type != INT && !(is_flag && type == BOOL)) return refuse("scalar is not an integer");
    integer[i] = args[at + 1 + i].v_int64;
    if (integer[i] < (is_flag ? 0 : 1) || integer[i] > INT32_MAX)
      return refuse("scalar is out of range");
  }
  Axis axis[2];
  for (int i = 0; i < 2; ++i) axis[i] = (Axis){integer[i], integer[2 + i], integer[4 + i]};
  int64_t group = integer[6];
  const int64_t* shape = t[0]->shape;
  if (shape[4] != HEAD_DIM) return refuse("wrong head_dim");
  int64_t of_keys[5] = {shape[0], shape[1], shape[2], shape[3] / group, HEAD_DIM};
  if (shape[3] % group) return refuse("heads are no multiple of the group");
  for (int i = 1; i < 5; ++i)
    if (i != 3 && memcmp(t[i]->shape, i == 4 ? shape : of_keys, sizeof of_keys))
      return refuse("shapes differ");
  const float *query = t[0]->data, *key = t[1]->data, *value = t[2]->data;
  const float* rpb = RPB ? t[3]->data : NULL;
  float *output = t[4]->data, *lse = with_lse ? t[5]->data : NULL;
  int64_t H = shape[1], W = shape[2], heads = shape[3];

  for (int64_t row = 0; row < shape[0] * H * W * heads; ++row) {
    int64_t head = row % heads, x = row / heads % W, y = row / heads / W % H;
    int64_t batch = row / heads / W / H, first[2], count[2], taps = 0;
    double logit[TAPS], most = -INFINITY, sum = 0, out[HEAD_DIM] = {0};
    int64_t source[TAPS];
    window(y, H, axis[0], &first[0], &count[0]);
    window(x, W, axis[1], &first[1], &count[1]);
    for (int64_t i = 0; i < count[0]; ++i)
      for (int64_t j = 0; j < count[1]; ++j, ++taps) {
        int64_t ky = (first[0] + i) * axis[0].dilation + y % axis[0].dilation;
        int64_t kx = (first[1] + j) * axis[1].dilation + x % axis[1].dilation;
        source[taps] = (((batch * H + ky) * W + kx) * (heads / group) + head / group) * HEAD_DIM;
        double dot = 0;
        for (int d = 0; d < HEAD_DIM; ++d)
          dot += (double)query[row * HEAD_DIM + d] * key[source[taps] + d];
        logit[taps] = dot * scale;
        if (RPB)
          logit[taps] += rpb[(head * SPAN + (ky - y) / axis[0].dilation + KERNEL_SIZE - 1) * SPAN +
                             (kx - x) / axis[1].dilation + KERNEL_SIZE - 1];
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

EXPORT int FORWARD(void* self, const Any* args, int32_t num_args, Any* result) {
  result->type_index = 0;
  return run(args, num_args, 0);
}

EXPORT int FORWARD_LSE(void* self, const Any* args, int32_t num_args, Any* result) {
  result->type_index = 0;
  return run(args, num_args, 1);
}

// How many calls were completed: a test can tell a kernel's result from the reference's.
EXPORT int __tvm_ffi_calls(void* self, const Any* args, int32_t num_args, Any* result) {
  result->type_index = INT;
  result->v_int64 = calls;
  return 0;
}
