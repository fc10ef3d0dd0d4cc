"""Attention in plain XLA.

The query heads that share a key head are folded into the rows of one product per key head, so the keys are read once. On
the CPU half-precision keys need the same care as half-precision weights (see `qwen_asr_jax.ops.linear.xla`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.typing import Array, DType

_HIDDEN = -1e30
"""Score of a hidden key: finite, so that a row without keys stays free of NaN."""


def attend(q: Array, k: Array, v: Array, mask: Array, *, accum_dtype: DType) -> Array:
    """See `qwen_asr_jax.ops.attention.attend`."""
    batch, time, heads, width = q.shape
    groups = heads // k.shape[1]
    rows = jnp.moveaxis(q.reshape(batch, time, -1, groups, width), 1, 3).reshape(batch, -1, groups * time, width)
    mask = jnp.broadcast_to(mask[:, None, None], (mask.shape[0], 1, groups, time, k.shape[2]))
    mask = mask.reshape(mask.shape[0], 1, groups * time, -1)

    def one(q: Array, k: Array, v: Array) -> Array:
        """`[..., R, H]` queries (R = G * T) on `[..., S, H]` keys and values."""
        scores = _product("...rh,...sh->...rs", q, k, accum_dtype) * width**-0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, _HIDDEN), axis=-1)
        return _product("...rs,...sh->...rh", narrow(weights, v.dtype), v, accum_dtype)

    out = one(narrow(rows, k.dtype), k, v)
    return jnp.moveaxis(out.reshape(batch, -1, groups, time, width), 3, 1).reshape(batch, time, heads, width)


def _product(spec: str, a: Array, b: Array, accum_dtype: DType) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == np.float32 else lax.Precision.DEFAULT
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=accum_dtype)
