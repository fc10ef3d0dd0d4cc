// One layer of the audio encoder: norm, q|k|v, attention within windows, output, norm, MLP with GELU.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_ENCODER_LAYER_H_
#define QWEN_ASR_JAX_KERNELS_CPU_ENCODER_LAYER_H_

#include <cstdint>

#include "kernels.h"
#include "product.h"
#include "team.h"

namespace qwen_asr {

struct EncoderLayer {
  Type weights;
  Type operands;     // what activations are rounded to before products
  float eps;
  float limit;       // outputs are clamped to it; 0 for no limit
  int64_t batch;     // B
  int64_t time;      // tokens per clip T, padding included
  int64_t windows;   // W per clip
  int64_t window;    // tokens per window S; W * S >= T
  int64_t heads;     // N

  const float* x;          // [B, T, D]
  const int32_t* valid;    // [B, W], how many of a window's tokens are a clip's own; they come first
  const float *attention_norm, *attention_norm_bias, *mlp_norm, *mlp_norm_bias;
  Matrix q, k, v, out_proj, fc1, fc2;
  const float *q_bias, *k_bias, *v_bias, *out_bias, *fc1_bias, *fc2_bias;
  float* out;  // [B, T, D]

  int64_t rows() const { return batch * time; }
  int64_t width() const { return q.cols; }
};

void RunEncoderLayer(const EncoderLayer& layer, Pool& pool);

}  // namespace qwen_asr

#endif
