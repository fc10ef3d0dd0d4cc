"""The one way in which values enter a narrower dtype, and the precision that a dtype asks of products."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax.typing import Array, DType

FP16_LIMIT = 65504.0 - 1000.0
"""Where the reference clamps float16 encoder activations: `finfo(float16).max - 1000`."""


def narrow(x: Array, dtype: DType) -> Array:
    """`x` (any shape, floating) as `dtype`; into float16, values saturate at +-`FP16_LIMIT` instead of becoming infinite.

    Large activations in a few channels are normal in this family, and one infinity in a matrix product makes every later
    token garbage. The other dtypes hold all of float32's range, so nothing is done for them.
    """
    if dtype == np.float16 and x.dtype != np.float16:
        x = jnp.clip(x, -FP16_LIMIT, FP16_LIMIT)
    return x.astype(dtype)


def precision_of(operand: Array) -> lax.Precision:
    """The precision for products of such operands: float32 means float32, not the TF32 that recent GPUs would take."""
    return lax.Precision.HIGHEST if operand.dtype == np.float32 else lax.Precision.DEFAULT
