// What the kernels' layers must compute, in double precision and without a thought for speed.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_REFERENCE_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "conv.h"
#include "decoder_layer.h"
#include "encoder_layer.h"
#include "testing.h"
#include "values.h"

namespace native {

inline qwen_asr::Matrix MatrixOf(const Packed& weights, int64_t cols) {
  return {weights.bytes.data(), weights.scales.empty() ? nullptr : weights.scales.data(),
          static_cast<int64_t>(weights.values.size()) / cols, cols};
}

// Normal weights of products that are about as large as their operands.
Packed RandomMatrix(Random& random, Type type, int64_t rows, int64_t cols);

struct DecoderShape {
  int64_t batch, time, width, key_heads, groups, head_dim, inner, slots;
  int64_t heads() const { return key_heads * groups; }
  int64_t rows() const { return batch * time; }
  bool steps() const { return time == 1 && batch <= qwen_asr::kFewRows; }
};

// A decoder layer's inputs. From the new tokens' first slot on the caches are full of NaN: reading there shows.
struct DecoderProblem {
  DecoderShape shape;
  Type weights, cache;
  Floats x, cos, sin, input_norm, post_norm, q_norm, k_norm;
  Ints start;
  Packed q, k, v, o, gate, up, down;
  Packed k_cache, v_cache;
};

DecoderProblem MakeDecoder(const DecoderShape& shape, Type weights, Type cache, const std::vector<int32_t>& start);

// The kernel's view of it, with other caches and a result.
qwen_asr::DecoderLayer LayerOf(const DecoderProblem& problem, Bytes& k_cache, Bytes& v_cache, Floats& out);

struct DecoderResult {
  Values out;           // [B, T, D]
  Values keys, values;  // the new ones before they are rounded, [B, T, K, H]
};

constexpr float kNormEps = 1e-6f;

// The two ways of the kernels round differently: in a block, int8 weights meet bfloat16 operands, and weights of attention are
// rounded to the cache's type where eight queries or more share a head.
enum class Way { kStep, kBlock };

DecoderResult DecoderOf(const DecoderProblem& problem, Way way);

struct EncoderProblem {
  Type weights;
  int64_t batch, time, width, heads, inner, windows, window;
  float limit;
  bool biases;
  Floats x, attention_norm, attention_norm_bias, mlp_norm, mlp_norm_bias;
  Floats q_bias, k_bias, v_bias, out_bias, fc1_bias, fc2_bias;
  Ints valid;
  Packed q, k, v, out_proj, fc1, fc2;
  Type operands() const { return weights == Type::kI8 ? Type::kBF16 : weights; }
};

Values EncoderOf(const EncoderProblem& problem);

struct ConvProblem {
  Type weights, input;
  int64_t images, time, freq, c_in, c_out;
  Packed x, weight;
  Floats bias;
  int64_t rows() const { return images * ((time + 1) / 2) * ((freq + 1) / 2); }
};

// Before they are rounded to the weights' type.
Values ConvOf(const ConvProblem& problem);

}  // namespace native

#endif
