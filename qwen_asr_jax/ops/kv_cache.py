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
    # XLA's CPU backend before jaxlib 0.12 has no bfloat16 slice update: it converts all of the cache to float32 and back
    # for one slot. Integers of the same width are moved as they are, and the casts are free.
    as_bits = cache.dtype == jnp.bfloat16 and jax.default_backend() == "cpu" and jax.__version_info__ < (0, 12)
    if not as_bits:
        return _write_rows(cache, new, start)
    cache, new = (lax.bitcast_convert_type(x, jnp.uint16) for x in (cache, new))
    # Up to 8 updates below a cast stay in place; more would be fused into one operation that computes every slot anew.
    write_rows = _write_rows if new.shape[0] <= 8 else _write_rows_in_a_loop
    return lax.bitcast_convert_type(write_rows(cache, new, start), jnp.bfloat16)


def _write_rows(cache: Array, new: Array, start: Array) -> Array:
    for row in range(new.shape[0]):
        cache = lax.dynamic_update_slice(cache, new[row], (jnp.int32(row * new.shape[1]), start[row], jnp.int32(0)))
    return cache


def _write_rows_in_a_loop(cache: Array, new: Array, start: Array) -> Array:
    def step(row: Array, cache: Array) -> Array:
        piece = lax.dynamic_index_in_dim(new, row, keepdims=False)
        return lax.dynamic_update_slice(cache, piece, (row * new.shape[1], start[row], jnp.int32(0)))

    return lax.fori_loop(jnp.int32(0), jnp.int32(new.shape[0]), step, cache)
