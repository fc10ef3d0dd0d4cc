// Decoder layers for the new tokens of every row: norm, q|k|v, head norms, rotation, cache, attention, output, norm, gated MLP.
//
// All layers in one call, because between calls the threads go to sleep: with a call per layer waking them took up to a tenth of
// the time that reading the weights takes, and with one per operation it would be more.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_DECODER_LAYER_H_
#define QWEN_ASR_JAX_KERNELS_CPU_DECODER_LAYER_H_

#include <cstdint>

#include "kernels.h"
#include "product.h"
#include "team.h"

namespace qwen_asr {

struct DecoderLayer {
  Type weights;
  Type cache;
  float eps;
  int64_t batch;      // rows B
  int64_t time;       // new tokens per row T
  int64_t key_heads;  // K
  int64_t groups;     // query heads per key head
  int64_t head_dim;   // H
  int64_t slots;      // S

  const float* x;        // [B, T, D]
  const float* cos;      // [B, T, H / 2]
  const float* sin;      // [B, T, H / 2]
  const int32_t* start;  // [B], slot of the first new token
  const float* input_norm;
  const float* post_norm;
  const float* q_norm;
  const float* k_norm;
  Matrix q, k, v, o, gate, up, down;
  void* k_cache;  // [B * K, S, H], updated in place
  void* v_cache;
  float* out;  // [B, T, D]

  int64_t rows() const { return batch * time; }
  int64_t width() const { return q.cols; }

  // Cache bytes of one row's key head, from a slot on.
  uint8_t* Slot(void* cache_values, int64_t b, int64_t head, int64_t slot) const {
    const int64_t at = ((b * key_heads + head) * slots + slot) * head_dim;
    return static_cast<uint8_t*>(cache_values) + at * static_cast<int64_t>(SizeOf(cache));
  }
};

// All layers of a decoder, one behind the other; they have one shape, and one set of rows. Only `x` of the first and `out` of the
// last are used, unless there is but one.
void RunDecoderLayers(DecoderLayer* layers, int64_t count, Pool& pool);

// The two ways of doing it: one token for each of at most kFewRows rows, or any number of tokens.
void RunDecoderStep(const DecoderLayer* layers, int64_t count, Pool& pool);
void RunDecoderBlock(const DecoderLayer& layer, Pool& pool);

// Norm and rotation of one query or key head, in place.
inline void NormAndRotate(const Kernels& kernels, const DecoderLayer& l, const float* x, const float* norm, int64_t row,
                          float* out) {
  const int64_t half = l.head_dim / 2;
  kernels.rms_norm(x, norm, l.head_dim, l.eps, out);
  kernels.rotate(out, l.cos + row * half, l.sin + row * half, half);
}

}  // namespace qwen_asr

#endif
