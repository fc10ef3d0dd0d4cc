"""Writing into the fixed-size KV cache.

A layer's keys (or values) are one array `[B * K, S, H]`: batch and key heads share an axis, because attention contracts it
as one, and XLA then updates the array in place. With two axes it inserts a reshape behind the update and copies the cache
in every step (docs/decisions/kv-cache.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from qwen_asr_jax import runtime
from qwen_asr_jax.typing import Array


def write(cache: Array, new: Array, start: Array | None) -> Array:
    """The cache with `new` in slots `start[b], start[b] + 1, ...` of every row; in place when the cache is donated.

    Args:
      cache: `[B * K, S, H]`.
      new: `[B, K, T, H]`, same dtype; `start[b] + T <= S`, or the update would be shifted down.
      start: `[B]` int32, the first slot of each row; None for the first slot of all.

    Returns:
      `[B * K, S, H]`.
    """
    on_cpu = runtime.platform() == "cpu"
    if not on_cpu and start is not None and new.shape[0] > 1:
        return _scatter(cache, new, start)
    # XLA's CPU backend before jaxlib 0.12 has no bfloat16 slice update: it converts all of the cache to float32 and back
    # for one slot. Integers of the same width are moved as they are, and the casts are free.
    as_bits = cache.dtype == jnp.bfloat16 and on_cpu and jax.__version_info__ < (0, 12)
    if as_bits:
        cache, new = (lax.bitcast_convert_type(x, jnp.uint16) for x in (cache, new))
    if start is None:
        cache = lax.dynamic_update_slice(cache, new.reshape(-1, *new.shape[2:]), (0, 0, 0))
    elif (as_bits and new.shape[0] > _MOST_BELOW_A_CAST) or new.shape[0] > _MOST_UNROLLED:
        cache = _write_rows_in_a_loop(cache, new, start)
    else:
        cache = _write_rows(cache, new, start)
    return lax.bitcast_convert_type(cache, jnp.bfloat16) if as_bits else cache


_MOST_BELOW_A_CAST = 8
"""Up to so many updates below a cast stay in place; more would be fused into one operation that computes every slot anew."""

_MOST_UNROLLED = 32
"""Every layer has two updates per row: hundreds of rows would take the compiler minutes."""


def _write_rows(cache: Array, new: Array, start: Array) -> Array:
    """One slice update per row, not a scatter: XLA's CPU backend turns a scatter into a sequential loop."""
    for row in range(new.shape[0]):
        cache = lax.dynamic_update_slice(cache, new[row], (jnp.int32(row * new.shape[1]), start[row], jnp.int32(0)))
    return cache


def _write_rows_in_a_loop(cache: Array, new: Array, start: Array) -> Array:
    def step(row: Array, cache: Array) -> Array:
        piece = lax.dynamic_index_in_dim(new, row, keepdims=False)
        return lax.dynamic_update_slice(cache, piece, (row * new.shape[1], start[row], jnp.int32(0)))

    return lax.fori_loop(jnp.int32(0), jnp.int32(new.shape[0]), step, cache)


def _scatter(cache: Array, new: Array, start: Array) -> Array:
    """All rows in one operation: on a GPU an update per row is a launch per row."""
    _, heads, time, width = new.shape
    slots = jnp.repeat(start, heads)[:, None] + jnp.arange(time, dtype=start.dtype)
    rows = jnp.arange(cache.shape[0])[:, None]
    # No slot is written twice, so that no atomic operations are needed.
    place = cache.at[rows, slots]
    return place.set(new.reshape(-1, time, width), unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")
