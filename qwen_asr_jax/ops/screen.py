"""A head in int8 that finds, without ever being wrong, the few rows of the real one that can hold the largest logit.

Decoding reads the whole head for every token, only to learn which logit is the largest. Read in int8 it is half of the bytes
(a quarter of float32), and each row's quantisation error is known: by Cauchy and Schwarz a logit is off by at most the
length of that error times the length of the hidden state. Rows whose logit plus that stays below another row's logit
minus its own cannot win; the others, some tens of 151,936, are computed from the real head. docs/decisions/screened-head.md
has the measurements.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from qwen_asr_jax.kernels.cpu.calls import Screen
from qwen_asr_jax.ops.quantize import quantize_rows
from qwen_asr_jax.typing import Array

_BLOCK_ROWS = 4096
"""Made at once: all of them together would need the head in float32, twice."""

_ROUNDING = 1.001
"""More than what summing the squares of a row in float32 can lose."""


@jax.jit
def screen_of(head: Array) -> Screen:
    """The screen of a head.

    Args:
      head: `[V, D]`, any floating dtype.

    Returns:
      The screen; a row with a NaN or an infinity has a NaN in its error, which makes it a candidate always.
    """
    rows, width = head.shape
    block = min(rows, _BLOCK_ROWS)

    def step(i: Array, screen: Screen) -> Screen:
        # The last block is moved back to end with the head; what it overlaps is made twice, to the same values.
        # Behind the barrier the conversion depends on the step; otherwise XLA may convert all of the head before the loop.
        source, start = lax.optimization_barrier((head, jnp.minimum(i * block, rows - block)))
        piece = lax.dynamic_slice_in_dim(source, start, block)
        values, scale = quantize_rows(piece)
        error = piece.astype(jnp.float32) - values.astype(jnp.float32) * scale[:, None]
        length = jnp.sqrt(jnp.sum(error * error, axis=1)) * _ROUNDING
        made = Screen(values, scale, length)
        return jax.tree.map(lambda all_rows, new: lax.dynamic_update_slice_in_dim(all_rows, new, start, 0), screen, made)

    empty = Screen(jnp.zeros((rows, width), jnp.int8), jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.float32))
    return lax.fori_loop(0, -(-rows // block), step, empty)
