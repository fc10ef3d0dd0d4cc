#include "half.h"
#include "kernels.h"

#define QWEN_ISA scalar
#define QWEN_ISA_NAME "scalar"
#include "vector.inc"  // the order matters

#include "rows.inc"

#include "attention.inc"

#include "gemm.inc"

#include "elementwise.inc"
