// One decoder layer for one new token per row: norm, q|k|v, head norms, rotation, cache, attention, output, norm, gated MLP.
//
// All of it in one call, because between calls the threads go to sleep: 28 layers of ten operations each would cost more than
// a tenth of the time that reading the weights takes.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_DECODER_LAYER_H_
#define QWEN_ASR_JAX_KERNELS_CPU_DECODER_LAYER_H_

#include <cstdint>

#include "kernels.h"

namespace qwen_asr {

struct Matrix {
  const void* values;
  const float* scales;  // of int8 rows, else null
  int64_t rows;
  int64_t cols;
};

struct DecoderLayer {
  Type weights;
  Type cache;
  float eps;
  int64_t batch;      // rows B
  int64_t key_heads;  // K
  int64_t groups;     // query heads per key head
  int64_t head_dim;   // H
  int64_t slots;      // S

  const float* x;        // [B, D]
  const float* cos;      // [B, H / 2]
  const float* sin;      // [B, H / 2]
  const int32_t* start;  // [B], slot of the new token
  const float* input_norm;
  const float* post_norm;
  const float* q_norm;
  const float* k_norm;
  Matrix q, k, v, o, gate, up, down;
  void* k_cache;  // [B * K, S, H], updated in place
  void* v_cache;
  float* out;  // [B, D]
};

// Starts `task` on one of `helpers` other threads, or drops it.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int Threads() const = 0;
  virtual void Start(void (*task)(void*), void* data) = 0;
};

void RunDecoderLayer(const DecoderLayer& layer, Pool& pool);

struct Head {
  Type weights;
  int64_t batch;
  const float* x;  // [B, D], normed
  Matrix matrix;   // [V, D]
  int32_t* token;  // [B]
  float* top;      // [B], the highest logit
  float* log_sum;  // [B], log of the sum of exp(logits)
};

// The head's argmax (the first of equal ones; the first NaN, if there is one), without ever storing the logits.
void RunHead(const Head& head, Pool& pool);

struct Linear {
  Type weights;
  int64_t batch;
  const float* x;  // [B, K]
  Matrix matrix;   // [N, K]
  float* out;      // [B, N]
};

void RunLinear(const Linear& linear, Pool& pool);

}  // namespace qwen_asr

#endif
