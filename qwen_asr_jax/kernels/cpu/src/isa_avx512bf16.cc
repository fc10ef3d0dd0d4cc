#include <immintrin.h>

#include "half.h"
#include "kernels.h"

#define QWEN_AVX512
#define QWEN_AVX512BF16
#define QWEN_ISA avx512bf16
#define QWEN_ISA_NAME "avx512bf16"
#include "vector.inc"  // the order matters

#include "rows.inc"

#include "attention.inc"

#include "gemm.inc"

#include "elementwise.inc"
