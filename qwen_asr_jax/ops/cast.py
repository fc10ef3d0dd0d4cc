"""The one way in which values enter a narrower dtype, and the precision that a dtype asks of products."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax.typing import Array, DType

FP16_LIMIT = 65504.0 - 1000.0
"""Where the reference clamps float16 encoder activations: `finfo(float16).max - 1000`."""

_casts: contextvars.ContextVar[list[tuple[DType, Array]] | None] = contextvars.ContextVar("casts", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[DType, Array]]]:
    """While it is open, everything that `narrow` and `saturate` are given in this thread is measured.

    For use while tracing one function: what is found are values of its trace. So nothing inside may call `narrow` within a
    nested trace (a `jit` of its own, `lax.map`, a loop), whose values cannot leave it.

    Yields:
      A list that fills with `(dtype, largest)`: the dtype that is cast to, and the largest |value| before, a float32 scalar;
      NaN where there is one.
    """
    found: list[tuple[DType, Array]] = []
    token = _casts.set(found)
    try:
        yield found
    finally:
        _casts.reset(token)


def _record(x: Array, dtype: DType) -> None:
    found = _casts.get()
    if found is not None:
        found.append((np.dtype(dtype), jnp.max(jnp.abs(x)).astype(jnp.float32)))


def narrow(x: Array, dtype: DType) -> Array:
    """`x` (any shape, floating) as `dtype`; into float16, values saturate at +-`FP16_LIMIT` instead of becoming infinite.

    Large activations in a few channels are normal in this family, and one infinity in a matrix product makes every later
    token garbage. The other dtypes hold all of float32's range, so nothing is done for them.
    """
    if dtype == np.float16 and x.dtype != np.float16:
        return saturate(x).astype(dtype)
    _record(x, dtype)
    return x.astype(dtype)


def saturate(x: Array) -> Array:
    """`x` (any shape, wider than float16) within +-`FP16_LIMIT`, in its own dtype."""
    _record(x, np.dtype(np.float16))
    return jnp.clip(x, -FP16_LIMIT, FP16_LIMIT)


def precision_of(operand: Array) -> lax.Precision:
    """The precision for products of such operands: float32 means float32, not the TF32 that recent GPUs would take."""
    return lax.Precision.HIGHEST if operand.dtype == np.float32 else lax.Precision.DEFAULT
