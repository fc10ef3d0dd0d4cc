// What every instruction set implements: products of weights with few and with many vectors, attention, and what lies between.
//
// The same source (*.inc) is compiled once per instruction set, each time into a namespace of its own; the best set that the
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
  int64_t panel;      // weight rows (output columns) of a packed panel
  int64_t tile_rows;  // most vectors of a packed tile

  // ---- A few vectors: weights are read once, as they are in memory ----

  // Bytes that `prepare` writes for a vector of n values.
  size_t (*prepared_size)(Type weights, int64_t n);

  // Rounds x as the weights' type asks of its operands and lays it out for `dot`.
  Operand (*prepare)(Type weights, const float* x, int64_t n, void* out);

  // y[b * stride + r] = scale[r] * dot(row r of the weights, x[b]), for `rows` rows of n values each. `scales` only for int8.
  void (*dot)(Type weights, const void* rows_begin, const float* scales, int64_t rows, int64_t n, const Operand* x,
              int64_t batch, float* y, int64_t stride);

  // out[g * stride + s] = dot(q[g], key s) for `slots` keys of `width` values. Queries are what the cache's type can hold.
  void (*scores)(Type cache, const void* keys, int64_t slots, int64_t width, const float* q, int64_t groups, float* out,
                 int64_t stride);

  // out[g] += sum over s of p[g * stride + s] * value s.
  void (*weighted_sum)(Type cache, const void* values, int64_t slots, int64_t width, const float* p, int64_t groups,
                       int64_t stride, float* out);

  // ---- Many vectors: panels of weights and tiles of vectors are packed first (gemm.inc says how) ----

  // The type of packed values, kF32 or kBF16; depths are counted up to an even number for kBF16.
  Type (*packed_type)(Type weights);

  // A panel of `cols` weight rows, `stride` values apart, from the first `depth` values of each.
  void (*pack_rows)(Type type, const void* rows, int64_t stride, int64_t cols, int64_t depth, void* out);

  // The same from a matrix that lies the other way: `depth` rows, `stride` apart, of which `cols` values are taken. Not int8.
  void (*pack_depth)(Type type, const void* values, int64_t stride, int64_t cols, int64_t depth, void* out);

  // A tile of `count` vectors for weights of that type.
  void (*pack_tile)(Type weights, Type source, const void* const* rows, int64_t count, int64_t depth, void* out);

  // c[i * stride + j] (+)= the product of the tile's vector i with the panel's row j.
  void (*multiply)(Type packed, const void* tile, int64_t rows, int64_t depth, const void* panel, float* c, int64_t stride,
                   bool add);

  // ---- Value by value ----

  // p[i] = exp(scale * p[i] - largest) where that is at most 0, for n values; returns their sum.
  float (*exponentials)(float* p, int64_t n, float scale, float largest);

  // The largest of n values, at least one; NaN if there is one.
  float (*largest)(const float* p, int64_t n);

  // Floats as another type, rounded to nearest even; into float16 saturating.
  void (*store)(Type type, const float* x, int64_t n, void* out);

  // The same, back as floats.
  void (*round)(Type type, float* x, int64_t n);

  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* out);

  // Rotary position of one head of 2 * half values, in place.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);

  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
  void (*gelu)(float* x, int64_t n);

  // out = sums * scale + bias + residual, whichever of them are not null. `out` may be `sums`.
  void (*finish)(const float* sums, int64_t n, const float* scale, const float* bias, const float* residual, float* out);

  void (*clamp)(float* x, int64_t n, float limit);
};

// Those in this build that this processor can run, from the best to the scalar ones; a null pointer ends them.
const Kernels* const* RunnableKernels();

// The best of them; QWEN_ASR_CPU_ISA names another one.
const Kernels& BestKernels();

// What `BestKernels` returns from now on, for tests; null for its own choice.
void UseKernels(const Kernels* kernels);

}  // namespace qwen_asr

#endif
