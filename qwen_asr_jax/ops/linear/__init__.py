"""The one dispatch point for matrix products with stored weights.

`linear(x, weight)` picks the best implementation for the platform, the dtypes and the number of rows; a named
implementation runs or raises `NotImplementedError` saying why it cannot. `xla` is the reference that every other one is
tested against.
"""

from __future__ import annotations

from collections.abc import Callable

from qwen_asr_jax import kernels
from qwen_asr_jax.ops.linear import cpu, xla
from qwen_asr_jax.typing import Array, DType

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"xla": xla.linear, "cpu": cpu.linear}


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    scale: Array | None = None,
    accum_dtype: DType,
    implementation: str | None = None,
) -> Array:
    """`x @ weight.T * scale + bias`.

    Args:
      x: `[..., D]` in the compute dtype.
      weight: `[F, D]`, the checkpoint's layout; its dtype is that of `x`, a narrower one, or int8.
      bias: `[F]` in `accum_dtype`, or None.
      scale: `[F]` float32, of int8 weights (`ops.quantize`); None for others.
      accum_dtype: dtype of the sums and of the result.
      implementation: a name, or None or `auto` for the best one available.

    Returns:
      `[..., F]` in `accum_dtype`.

    Raises:
      NotImplementedError: there is no implementation of that name here, or it cannot multiply these dtypes.
    """
    name = kernels.choose(implementation or "auto")
    if name not in _IMPLEMENTATIONS or (implementation in (None, "auto") and not cpu.fits(x, weight)):
        name = "xla"
    out = _IMPLEMENTATIONS[name](x, weight, scale=scale, accum_dtype=accum_dtype)
    return out if bias is None else out + bias


__all__ = ["linear"]
