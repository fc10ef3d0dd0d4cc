"""Matrix products in plain XLA, arranged so that no backend falls into a slow path.

On the GPU a `dot_general` is right as it is. On the CPU XLA turns a half-precision weight matrix into a float32 copy
before a one-row product, at 3 GB/s where the memory gives 30. Two arrangements avoid that copy
(docs/decisions/linear-on-cpu.md has the measurements):

- bfloat16: a second row of zeros makes it a matrix-matrix product, which runs on bfloat16 operands as they are;
- float16, and weights narrower than `x`, int8 among them: blocks of rows are converted one at a time, small enough to stay in
  the cache. int8 becomes what `x` is, so that bfloat16 products are; the rest float32.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax import runtime
from qwen_asr_jax.ops.cast import precision_of
from qwen_asr_jax.typing import Array, DType

_BLOCK = 512 << 10
"""Values of one converted block: fits the second-level cache, and large enough that the loop costs nothing."""


def linear(x: Array, weight: Array, *, scale: Array | None = None, accum_dtype: DType) -> Array:
    """See `qwen_asr_jax.ops.linear.linear`."""
    leading, rows = x.shape[:-1], math.prod(x.shape[:-1])
    x = x.reshape(rows, x.shape[-1])
    if runtime.platform() != "cpu":
        if weight.dtype == np.int8:
            # Behind the barrier the conversion depends on x; otherwise XLA may convert all weights before the decode loop.
            x, weight = lax.optimization_barrier((x, weight))
        out = _dot(x, weight.astype(x.dtype), accum_dtype)
    elif weight.dtype == np.float32:
        out = _dot(x, weight.astype(x.dtype), accum_dtype)
    elif weight.dtype == np.int8:
        operand = x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32)
        out = _dot_by_blocks(operand, weight, accum_dtype)
    elif weight.dtype == x.dtype == jnp.bfloat16:
        out = _dot(jnp.pad(x, ((0, max(0, 2 - rows)), (0, 0))), weight, accum_dtype)[:rows]
    else:
        out = _dot_by_blocks(x.astype(jnp.float32), weight, accum_dtype)
    if scale is not None:
        out = out * scale.astype(accum_dtype)
    return out.reshape(*leading, weight.shape[0])


def _dot(x: Array, weight: Array, accum_dtype: DType) -> Array:
    contraction = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, contraction, precision=precision_of(x), preferred_element_type=accum_dtype)


def _dot_by_blocks(x: Array, weight: Array, accum_dtype: DType) -> Array:
    """`x @ weight.T`, converting whole rows of the weights to the dtype of `x`, `_BLOCK` values or fewer at a time."""
    features, width = weight.shape
    block = -(-features // max(2, -(-features * width // _BLOCK)))

    def step(i: Array, out: Array) -> Array:
        # The last block is moved back to end with the matrix; what it overlaps is computed twice, to the same values.
        # Behind the barrier the conversion depends on the step; otherwise XLA may convert all of the weights before the loop.
        source, start = lax.optimization_barrier((weight, jnp.minimum(i * block, features - block)))
        rows = lax.dynamic_slice_in_dim(source, start, block).astype(x.dtype)
        return lax.dynamic_update_slice_in_dim(out, _dot(x, rows, accum_dtype), start, axis=1)

    return lax.fori_loop(0, -(-features // block), step, jnp.zeros((x.shape[0], features), accum_dtype))
