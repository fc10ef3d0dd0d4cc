"""Attention, behind one dispatch point like `linear`.

`attend` is the whole family: the encoder's windows (a key mask), the decoder's prompt (causal) and its single-token steps
(the valid part of the cache) differ only in the mask.
"""

from __future__ import annotations

from collections.abc import Callable

from qwen_asr_jax.ops.attention import xla
from qwen_asr_jax.typing import Array, DType

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"xla": xla.attend}


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    *,
    accum_dtype: DType,
    implementation: str | None = None,
) -> Array:
    """`softmax(q k^T / sqrt(H)) v`, grouped: query head `n` uses key head `n // G`.

    Args:
      q: `[B, T, N, H]` in the compute dtype.
      k, v: `[B * K, S, H]` in the cache dtype; `N = K * G`.
      mask: `[B, T, S]` bool; False hides a key. A query that sees no key gives finite nonsense.
      accum_dtype: dtype of scores, softmax and result.
      implementation: a name, or None for the best one available.

    Returns:
      `[B, T, N, H]` in `accum_dtype`.

    Raises:
      NotImplementedError: there is no implementation of that name here.
    """
    name = implementation or "xla"
    if name not in _IMPLEMENTATIONS:
        raise NotImplementedError(f"attend: no implementation {name!r}; there are {', '.join(_IMPLEMENTATIONS)}")
    return _IMPLEMENTATIONS[name](q, k, v, mask, accum_dtype=accum_dtype)


__all__ = ["attend"]
