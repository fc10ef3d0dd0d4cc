#include <immintrin.h>

#include "half.h"
#include "kernels.h"

#define QWEN_AVX2
#define QWEN_ISA avx2
#define QWEN_ISA_NAME "avx2"
#include "vector.inc"  // the order matters

#include "rows.inc"

#include "attention.inc"

#include "gemm.inc"

#include "elementwise.inc"
