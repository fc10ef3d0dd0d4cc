// Products with one weight matrix, and the head.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_LINEAR_H_
#define QWEN_ASR_JAX_KERNELS_CPU_LINEAR_H_

#include <cstdint>

#include "kernels.h"
#include "product.h"
#include "team.h"

namespace qwen_asr {

struct Linear {
  Type weights;
  int64_t rows;
  const float* x;  // [R, D]
  Matrix matrix;   // [F, D]
  const float* bias;  // [F], or null
  float* out;      // [R, F]
};

void RunLinear(const Linear& linear, Pool& pool);

struct Head {
  Type weights;
  int64_t batch;
  const float* x;  // [B, D], normed
  Matrix matrix;   // [V, D]
  int32_t* token;  // [B]
  float* top;      // [B], the highest logit
  float* log_sum;  // [B], log of the sum of exp(logits)

  // The same matrix in int8, to find the few rows that can be the best; and the length of every row's difference to it. Then
  // `log_sum` is that of the int8 logits. Null values for none.
  Matrix screen;
  const float* screen_errors;
};

// The head's argmax (the first of equal ones; the first NaN, if there is one), without ever storing the logits.
void RunHead(const Head& head, Pool& pool);

}  // namespace qwen_asr

#endif
