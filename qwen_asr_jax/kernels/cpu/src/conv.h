// The stem's convolution: 3 x 3, stride 2, one row of zeros on every side, then GELU.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_CONV_H_
#define QWEN_ASR_JAX_KERNELS_CPU_CONV_H_

#include <cstdint>

#include "kernels.h"
#include "team.h"

namespace qwen_asr {

struct Conv {
  Type weights;  // also the type of the output
  Type input;    // kF32 or the weights'
  int64_t images, time, freq, c_in, c_out;

  const void* x;       // [n, time, freq, c_in]
  const void* weight;  // [3 (time), 3 (freq), c_in, c_out]
  const float* bias;   // [c_out]
  void* out;           // [n, ceil(time / 2), ceil(freq / 2), c_out]

  int64_t time_out() const { return (time + 1) / 2; }
  int64_t freq_out() const { return (freq + 1) / 2; }
  int64_t rows() const { return images * time_out() * freq_out(); }
};

void RunConv(const Conv& conv, Pool& pool);

}  // namespace qwen_asr

#endif
