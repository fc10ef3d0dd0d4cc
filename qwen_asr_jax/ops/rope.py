"""Rotary position embedding, the half-split (NeoX) form, and the encoder's fixed sinusoids."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from qwen_asr_jax.typing import Array


def rope_tables(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines of the rotary angles.

    The checkpoints configure interleaved multi-axis rotary embedding, but its three position rows are always equal here, so
    it is this plain form.

    Args:
      positions: `[B, T]` int32.

    Returns:
      `(cos, sin)`, each `[B, T, H / 2]` float32: angle `position * theta ** (-2 k / H)`.
    """
    # float32 throughout, as in the reference: at position 16000 a float64 frequency would differ visibly.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inv_freq = (np.float32(1.0) / np.float32(theta) ** exponent).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * inv_freq
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs `(x[k], x[k + H / 2])` of every head.

    Args:
      x: `[B, T, N, H]` float32.
      cos, sin: `[B, T, H / 2]` float32.

    Returns:
      `[B, T, N, H]` float32.
    """
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Whisper's position table: sines in the first half of the features, cosines in the second.

    Returns:
      `[length, width]` float32; row p is `sin(p w_k), cos(p w_k)` with `w_k = exp(-k ln(10000) / (width / 2 - 1))`.
    """
    step = np.log(10000.0) / (width // 2 - 1)
    frequencies = np.exp(-step * np.arange(width // 2, dtype=np.float32)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
