"""Layer norm (encoder) and RMS norm (decoder), in the accumulation dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen_asr_jax.typing import Array


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last axis, with the two-pass variance.

    Args:
      x: `[..., D]` float32.
      weight, bias: `[D]` float32.

    Returns:
      `[..., D]` float32.
    """
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * weight + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis.

    Args:
      x: `[..., D]` float32.
      weight: `[D]` float32.

    Returns:
      `[..., D]` float32.
    """
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight
