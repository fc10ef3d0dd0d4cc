"""Attention in plain XLA.

The query heads that share a key head are folded into the rows of one product per key head, so the keys are read once. On
the CPU half-precision keys need the same care as half-precision weights (see `qwen_asr_jax.ops.linear.xla`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax import runtime
from qwen_asr_jax.ops.cast import narrow, precision_of
from qwen_asr_jax.typing import Array, DType

_HIDDEN = -1e30
"""Score of a hidden key: finite, so that a row without keys stays free of NaN."""

_FEW_ROWS = 16
"""Fewer query rows than this cannot pay for converting all their keys at once."""


def attend(q: Array, k: Array, v: Array, mask: Array, *, accum_dtype: DType) -> Array:
    """See `qwen_asr_jax.ops.attention.attend`."""
    batch, time, heads, width = q.shape
    key_heads = k.shape[0] // batch
    groups = heads // key_heads
    rows = jnp.moveaxis(q.reshape(batch, time, key_heads, groups, width), 1, 3).reshape(-1, groups * time, width)
    slow_dtype = runtime.platform() == "cpu" and k.dtype not in (np.float32, jnp.bfloat16)
    if slow_dtype and groups * time < _FEW_ROWS:
        out = _by_key_head(rows, k, v, mask, groups, accum_dtype)
    else:
        if slow_dtype:
            rows, k, v = (x.astype(jnp.float32) for x in (rows, k, v))
        out = _all_key_heads(rows, k, v, mask, groups, accum_dtype)
    out = out.reshape(batch, key_heads, groups, time, width)
    return jnp.moveaxis(out, 3, 1).reshape(batch, time, heads, width)


def _all_key_heads(q: Array, k: Array, v: Array, mask: Array, groups: int, accum_dtype: DType) -> Array:
    """`[B * K, G * T, H]` queries on `[B * K, S, H]` keys and values."""
    batch, _, slots = mask.shape
    rows = q.shape[1]
    if runtime.platform() == "cpu" and rows == 1 and k.dtype == jnp.bfloat16:
        q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))  # as in `linear`: one row alone would convert the keys
        mask = jnp.pad(mask, ((0, 0), (0, 1), (0, 0)))
    q = narrow(q, k.dtype)
    scores = _product("nrh,nsh->nrs", q, k, accum_dtype) * q.shape[-1] ** -0.5
    by_time = scores.reshape(batch, -1, groups, mask.shape[1], slots)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], by_time, _HIDDEN), axis=-1).reshape(scores.shape)
    return _product("nrs,nsh->nrh", narrow(weights, v.dtype), v, accum_dtype)[:, :rows]


def _by_key_head(q: Array, k: Array, v: Array, mask: Array, groups: int, accum_dtype: DType) -> Array:
    """The same, one key head after the other, so that only one head's keys are ever held in float32."""
    key_heads = q.shape[0] // mask.shape[0]

    def one(operands: tuple[Array, Array, Array, Array]) -> Array:
        i, *rest = operands
        q, k, v = (x.astype(jnp.float32)[None] for x in rest)
        return _all_key_heads(q, k, v, lax.dynamic_index_in_dim(mask, i // key_heads), groups, accum_dtype)[0]

    return lax.map(one, (jnp.arange(q.shape[0]), q, k, v))


def _product(spec: str, a: Array, b: Array, accum_dtype: DType) -> Array:
    return jnp.einsum(spec, a, b, precision=precision_of(a), preferred_element_type=accum_dtype)
