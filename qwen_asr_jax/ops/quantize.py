"""Matrices as int8 values with one float32 scale per row, and back.

Rows are outputs (`[out, in]`), so a product takes its scale after the sum: `(x @ values.T) * scale`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.typing import Array, DType

LIMIT = 127
"""Largest value: -128 stays unused, so that values are symmetric and products of pairs fit 15 bits."""


def quantize_rows(weight: Array) -> tuple[Array, Array]:
    """The nearest int8 values on a grid per row, from `-max|row|` to `max|row|`; halves go to the even neighbour.

    Args:
      weight: `[F, D]`, any floating dtype.

    Returns:
      `(values, scale)`: `[F, D]` int8 within +-`LIMIT`, and `[F]` float32, `max|row| / LIMIT`. A row of zeros has scale 0. A
      row with a NaN or an infinity has scale NaN, so that it does not become finite; its values mean nothing.
    """
    scale = jnp.max(jnp.abs(weight.astype(jnp.float32)), axis=1) / LIMIT
    # XLA's CPU backend drops NaNs from a maximum that it vectorises, but no sum loses one. Behind the barriers below and here
    # the matrix is converted again, inside each loop: shared, the float32 copy would be stored.
    sums = jnp.sum(jnp.abs(lax.optimization_barrier(weight).astype(jnp.float32)), axis=1)
    scale = jnp.where(jnp.isnan(sums), jnp.nan, scale)
    scale = jnp.where(jnp.isfinite(scale), scale, jnp.nan)
    # A row of zeros must not be divided by its scale; a NaN must not be cast, as what it becomes differs by platform.
    divisor = jnp.where(scale > 0, scale, jnp.inf)
    again, divisor = lax.optimization_barrier((weight, divisor))
    values = jnp.clip(jnp.round(again.astype(jnp.float32) / divisor[:, None]), -LIMIT, LIMIT)
    return jnp.where(jnp.isnan(values), 0, values).astype(jnp.int8), scale


def dequantize_rows(values: Array, scale: Array, dtype: DType) -> Array:
    """`[F, D]` int8 with their `[F]` float32 scales as `[F, D]` in a floating dtype."""
    return narrow(values.astype(jnp.float32) * scale[:, None], dtype)
