// What the kernels must compute, in double precision and without a thought for speed.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_REFERENCE_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "decoder_layer.h"
#include "testing.h"

namespace native {

struct Product {
  double value;
  double tolerance;  // for sums in float32, in any order, of operands in the form that some instruction set takes
};

// The weights times x, which is rounded as the policy asks.
std::vector<Product> ProductsOf(const Packed& weights, const std::vector<double>& x);

inline qwen_asr::Matrix MatrixOf(const Packed& weights, int64_t cols) {
  return {weights.bytes.data(), weights.scales.empty() ? nullptr : weights.scales.data(),
          static_cast<int64_t>(weights.values.size()) / cols, cols};
}

struct LayerShape {
  int64_t batch, width, key_heads, groups, head_dim, inner, slots;
  int64_t heads() const { return key_heads * groups; }
};

// A decoder layer's inputs.
struct LayerProblem {
  LayerShape shape;
  Type weights, cache;
  std::vector<float> x, cos, sin, input_norm, post_norm, q_norm, k_norm;
  std::vector<int32_t> start;
  Packed q, k, v, o, gate, up, down;
  Packed k_cache, v_cache;
};

struct LayerResult {
  std::vector<double> out;           // [B, D]
  std::vector<double> keys, values;  // the new ones, [B, K, H]
};

constexpr float kNormEps = 1e-6f;

LayerResult LayerOf(const LayerProblem& problem);

}  // namespace native

#endif
