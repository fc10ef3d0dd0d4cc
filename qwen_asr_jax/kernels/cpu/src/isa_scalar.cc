#include "half.h"
#include "kernels.h"

#define QWEN_ISA scalar
#define QWEN_ISA_NAME "scalar"
#include "vector.inc"
#include "rows.inc"
