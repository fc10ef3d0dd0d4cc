"""Writing into the fixed-size KV cache."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from qwen_asr_jax.typing import Array


def write(cache: Array, new: Array, start: Array) -> Array:
    """The cache with `new` in slots `start[b], start[b] + 1, ...` of every row; in place when the cache is donated.

    One slice update per row, not a scatter: XLA's CPU backend turns a scatter into a loop over single rows that copies.

    Args:
      cache: `[B, K, S, H]`.
      new: `[B, K, T, H]`, same dtype; `start[b] + T <= S`, or the update would be shifted down.
      start: `[B]` int32, the first slot of each row.

    Returns:
      `[B, K, S, H]`.
    """
    if cache.shape[0] == 1:
        return lax.dynamic_update_slice(cache, new, (jnp.int32(0), jnp.int32(0), start[0], jnp.int32(0)))
    for row in range(cache.shape[0]):
        at = (jnp.int32(row), jnp.int32(0), start[row], jnp.int32(0))
        cache = lax.dynamic_update_slice(cache, new[row : row + 1], at)
    return cache
