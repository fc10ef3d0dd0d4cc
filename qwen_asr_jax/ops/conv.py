"""The stem's strided convolution, as matrix products.

Nine shifted and strided views of the input, each times its own `[c_in, c_out]` matrix, summed in the accumulation dtype. On
CPUs that beats XLA's convolution in bfloat16 by far, and in float32 before jaxlib 0.12; from then on XLA's own is faster, and
three times as fast with its gradient (docs/decisions/conv-stem.md). On GPUs it avoids bfloat16 convolutions, for which cuDNN
often has no algorithm (jax issue 37922).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from qwen_asr_jax import runtime
from qwen_asr_jax.ops.cast import precision_of
from qwen_asr_jax.typing import Array, DType

_THIN = 8
"""Up to so many input channels the nine views are put side by side instead, for one product of a useful depth."""


def conv_stride2(x: Array, weight: Array, bias: Array, *, accum_dtype: DType, implementation: str | None = None) -> Array:
    """3 x 3 convolution with stride 2 and one row of zeros on every side; both axes shrink to `ceil(n / 2)`.

    Args:
      x: `[n, time, freq, c_in]` in the compute dtype.
      weight: `[3 (time), 3 (freq), c_in, c_out]`, of that dtype or a narrower one.
      bias: `[c_out]` in `accum_dtype`.
      accum_dtype: dtype of the sums and of the result.
      implementation: `views`, the nine products; `convolution`, XLA's own; or None for the better one here.

    Returns:
      `[n, ceil(time / 2), ceil(freq / 2), c_out]` in `accum_dtype`.

    Raises:
      NotImplementedError: there is no implementation of that name.
    """
    if implementation is None:
        fast = x.dtype == jnp.float32 and runtime.platform() == "cpu" and jax.__version_info__ >= (0, 12)
        implementation = "convolution" if fast else "views"
    if implementation not in _IMPLEMENTATIONS:
        names = ", ".join(_IMPLEMENTATIONS)
        raise NotImplementedError(f"conv_stride2: no implementation {implementation!r}; there are {names}")
    return _IMPLEMENTATIONS[implementation](x, weight.astype(x.dtype), bias, accum_dtype)


def _by_convolution(x: Array, weight: Array, bias: Array, accum_dtype: DType) -> Array:
    return bias + lax.conv_general_dilated(
        x,
        weight,
        window_strides=(2, 2),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision_of(x),
        preferred_element_type=accum_dtype,
    )


def _by_views(x: Array, weight: Array, bias: Array, accum_dtype: DType) -> Array:
    n, time, freq, channels = x.shape
    time_out, freq_out = -(-time // 2), -(-freq // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [
        lax.slice(padded, (0, i, j, 0), (n, i + 2 * time_out - 1, j + 2 * freq_out - 1, channels), (1, 2, 2, 1))
        for i in range(3)
        for j in range(3)
    ]
    matrices = weight.reshape(9, channels, -1)
    if channels <= _THIN:
        views, matrices = [jnp.concatenate(views, axis=-1)], matrices.reshape(1, 9 * channels, -1)
    out = bias
    for view, matrix in zip(views, matrices, strict=True):
        out = out + lax.dot_general(
            view,
            matrix,
            (((3,), (0,)), ((), ())),
            precision=precision_of(x),
            preferred_element_type=accum_dtype,
        )
    return out


_IMPLEMENTATIONS = {"views": _by_views, "convolution": _by_convolution}
