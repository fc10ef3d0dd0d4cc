"""The stem's strided convolution."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax.typing import Array, DType


def conv_stride2(x: Array, weight: Array, bias: Array, *, accum_dtype: DType) -> Array:
    """3 x 3 convolution with stride 2 and one row of zeros on every side; both axes shrink to `ceil(n / 2)`.

    Args:
      x: `[n, time, freq, c_in]` in the compute dtype.
      weight: `[3 (time), 3 (freq), c_in, c_out]` in the compute dtype.
      bias: `[c_out]` in `accum_dtype`.

    Returns:
      `[n, ceil(time / 2), ceil(freq / 2), c_out]` in `accum_dtype`.
    """
    out = lax.conv_general_dilated(
        x,
        weight.astype(x.dtype),
        window_strides=(2, 2),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST if x.dtype == np.float32 else lax.Precision.DEFAULT,
        preferred_element_type=accum_dtype,
    )
    return out + bias.astype(jnp.dtype(accum_dtype))
