"""Writing into the fixed-size KV cache.

A layer's keys (or values) are one array `[B * K, S, H]`: batch and key heads share an axis, because attention contracts it
as one, and XLA then updates the array in place. With two axes it inserts a reshape behind the update and copies the cache
in every step (docs/decisions/kv-cache.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from qwen_asr_jax.typing import Array


def write(cache: Array, new: Array, start: Array) -> Array:
    """The cache with `new` in slots `start[b], start[b] + 1, ...` of every row; in place when the cache is donated.

    One slice update per row, not a scatter: XLA's CPU backend turns a scatter into a sequential loop.

    Args:
      cache: `[B * K, S, H]`.
      new: `[B, K, T, H]`, same dtype; `start[b] + T <= S`, or the update would be shifted down.
      start: `[B]` int32, the first slot of each row.

    Returns:
      `[B * K, S, H]`.
    """
    heads = new.shape[1]

    # XLA's CPU backend before jaxlib 0.12 has no bfloat16 slice update: it converts all of the cache to float32 and back
    # for one slot. Integers of the same width are moved as they are, and the casts are free.
    as_bits = cache.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    if as_bits:
        cache, new = (lax.bitcast_convert_type(x, jnp.uint16) for x in (cache, new))
    for row in range(new.shape[0]):
        cache = lax.dynamic_update_slice(cache, new[row], (jnp.int32(row * heads), start[row], jnp.int32(0)))
    return lax.bitcast_convert_type(cache, jnp.bfloat16) if as_bits else cache
