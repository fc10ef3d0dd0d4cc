// What every instruction set implements: products of weight rows with a few vectors, and the two halves of attention.
//
// The same source (rows.inc) is compiled once per instruction set, each time into a namespace of its own; the best set that the
// processor has is chosen when the library is first used.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_KERNELS_H_
#define QWEN_ASR_JAX_KERNELS_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace qwen_asr {

enum class Type { kF32, kBF16, kF16, kI8 };

inline size_t SizeOf(Type type) {
  switch (type) {
    case Type::kF32:
      return 4;
    case Type::kI8:
      return 1;
    default:
      return 2;
  }
}

// A vector in the form that the products of one weight type want, made once and used for every row.
struct Operand {
  const void* values;  // f32, bf16 or int16, see `PreparedSize`
  float scale;         // of int16 values
};

struct Kernels {
  const char* name;

  // Bytes that `Prepare` writes for a vector of n values.
  size_t (*prepared_size)(Type weights, int64_t n);

  // Rounds x as the policy asks (to the weights' type, int8 weights excepted) and lays it out for `Dot`.
  Operand (*prepare)(Type weights, const float* x, int64_t n, void* out);

  // y[b * stride + r] = scale[r] * dot(row r of the weights, x[b]), for `rows` rows of n values each. `scales` only for int8.
  void (*dot)(Type weights, const void* rows_begin, const float* scales, int64_t rows, int64_t n, const Operand* x,
              int64_t batch, float* y, int64_t stride);

  // out[g * stride + s] = dot(q[g], key s) for `slots` keys of `width` values.
  void (*scores)(Type cache, const void* keys, int64_t slots, int64_t width, const float* q, int64_t groups, float* out,
                 int64_t stride);

  // out[g] += sum over s of p[g * stride + s] * value s.
  void (*weighted_sum)(Type cache, const void* values, int64_t slots, int64_t width, const float* p, int64_t groups,
                       int64_t stride, float* out);

  // p[i] = exp(scale * p[i] - largest) where that is at most 0, for n values; returns their sum.
  float (*exponentials)(float* p, int64_t n, float scale, float largest);

  // The largest of n values, at least one; NaN if there is one.
  float (*largest)(const float* p, int64_t n);

  // The scalar conversions of the cache's type.
  void (*store)(Type cache, const float* x, int64_t n, void* out);
};

// Those in this build that this processor can run, from the best to the scalar ones; a null pointer ends them.
const Kernels* const* RunnableKernels();

// The best of them; QWEN_ASR_CPU_ISA names another one.
const Kernels& BestKernels();

// What `BestKernels` returns from now on, for tests; null for its own choice.
void UseKernels(const Kernels* kernels);

}  // namespace qwen_asr

#endif
