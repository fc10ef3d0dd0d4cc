#include <arm_neon.h>

#include "half.h"
#include "kernels.h"

#define QWEN_NEON
#define QWEN_ISA neon
#define QWEN_ISA_NAME "neon"
#include "vector.inc"  // the order matters

#include "rows.inc"

#include "attention.inc"

#include "gemm.inc"

#include "elementwise.inc"
