"""Creating parameters, as values or as mere shapes."""

from __future__ import annotations

import math

import jax
import numpy as np
from flax import nnx

from qwen_asr_jax.ops.quantize import quantize_rows
from qwen_asr_jax.typing import DType


def parameter(shape: tuple[int, ...], dtype: DType, rngs: nnx.Rngs | None, fan_in: int | None = None) -> nnx.Param:
    """A parameter of that shape: random when there are `rngs`, abstract (shape and dtype only) when there are none.

    Abstract modules cost nothing to make and carry what loading, converting and compiling need; the loader fills them.

    Args:
      fan_in: inputs per output; values are then normal with variance `1 / fan_in`. None gives zeros.
    """
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    if fan_in is None:
        return nnx.Param(jax.numpy.zeros(shape, dtype))
    return nnx.Param((jax.random.normal(rngs.params(), shape) / math.sqrt(fan_in)).astype(dtype))


def matrix(
    shape: tuple[int, int], dtype: DType, rngs: nnx.Rngs | None
) -> tuple[nnx.Param[jax.Array], nnx.Param[jax.Array] | None]:
    """A `[out, in]` matrix as `parameter` makes it, and its scales, `[out]` float32, if the dtype is int8 (else None)."""
    if dtype != np.int8:
        return parameter(shape, dtype, rngs, fan_in=shape[1]), None
    if rngs is None:
        return parameter(shape, dtype, None), parameter(shape[:1], np.dtype(np.float32), None)
    values, scale = quantize_rows(jax.random.normal(rngs.params(), shape) / math.sqrt(shape[1]))
    return nnx.Param(values), nnx.Param(scale)


def ones(shape: tuple[int, ...], dtype: DType, rngs: nnx.Rngs | None) -> nnx.Param:
    """A parameter that starts at one (norm weights); abstract when there are no `rngs`."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype) if rngs is None else jax.numpy.ones(shape, dtype))
