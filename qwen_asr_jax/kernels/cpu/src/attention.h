// Attention of several queries to one head's keys and values.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_ATTENTION_H_
#define QWEN_ASR_JAX_KERNELS_CPU_ATTENTION_H_

#include <cstdint>

#include "kernels.h"
#include "product.h"

namespace qwen_asr {

struct Attention {
  Type type;           // of keys and values; queries are rounded to it, and the softmax weights of more than a few queries
  int64_t width;       // H
  int64_t stride;      // values from one slot's key (and value) to the next one's
  const void* keys;
  const void* values;
};

struct AttentionScratch {
  Buffer<float> scores;
  Buffer<float> sums;
  Buffer<uint8_t> panel;
  PackedRows queries;
  PackedRows weights;
};

// out[i] = softmax(q[i] . keys / sqrt(H)) values, over the first limits[i] slots, for `rows` queries; each q and out is [H].
void Attend(const Kernels& kernels, const Attention& attention, int64_t rows, const float* const* q, const int64_t* limits,
            float* const* out, AttentionScratch& scratch);

}  // namespace qwen_asr

#endif
