"""Matrix products by the native CPU kernels, for any number of rows."""

from __future__ import annotations

import jax.numpy as jnp

from qwen_asr_jax.kernels.cpu import calls
from qwen_asr_jax.typing import Array, DType


def linear(x: Array, weight: Array, *, scale: Array | None = None, accum_dtype: DType) -> Array:
    """See `qwen_asr_jax.ops.linear.linear`.

    Raises:
      NotImplementedError: operands and weights are a mixture that the kernels do not have.
    """
    if not fits(x, weight):
        raise NotImplementedError(f"linear: the native kernels do not multiply {x.dtype} by {weight.dtype}")
    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    return calls.linear(rows, calls.Matrix(weight, scale)).reshape(*x.shape[:-1], weight.shape[0]).astype(accum_dtype)


def fits(x: Array, weight: Array) -> bool:
    """Whether the kernels round operands to what these already are."""
    return x.dtype == (jnp.bfloat16 if weight.dtype == jnp.int8 else weight.dtype)
