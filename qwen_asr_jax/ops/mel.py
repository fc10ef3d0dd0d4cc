"""Log-mel spectrogram on the device, in float32.

The Fourier transform is two matrix products with constant tables, which every backend runs well and can fuse. Adding and
subtracting the mirrored halves of a frame first (cosines are even, sines odd around its middle) halves the work and, because
the sums get shorter, makes the result as exact as an FFT in float32: on speech 3.0e-5 at most from float64, against 1.3e-4
without the folding (docs/decisions/log-mel.md).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax.audio.frames import HOP_LENGTH, N_FFT, SAMPLE_RATE
from qwen_asr_jax.typing import Array

_BINS = N_FFT // 2 + 1
_FLOOR = 1e-10
_DYNAMIC_RANGE = 8.0  # decades below the clip's own maximum


@functools.cache
def mel_filters(num_mel_bins: int) -> np.ndarray:
    """Slaney filterbank with area normalisation from 0 to 8000 Hz, computed in float64.

    The scale is linear (3 mel per 200 Hz) below 1000 Hz and logarithmic (27 mel per factor 6.4) above; triangle m spans
    points m - 1 to m + 1 of `num_mel_bins + 2` equally spaced mels and is scaled by `2 / width in Hz`.

    Returns:
      `[201, num_mel_bins]` float32.
    """
    knee_mel, log_step = 15.0, np.log(6.4) / 27.0
    top_mel = knee_mel + np.log(SAMPLE_RATE / 2 / 1000.0) / log_step
    mels = np.linspace(0.0, top_mel, num_mel_bins + 2)
    hertz = np.where(mels < knee_mel, 200.0 * mels / 3.0, 1000.0 * np.exp((mels - knee_mel) * log_step))
    low, centre, high = hertz[:-2], hertz[1:-1], hertz[2:]
    f = np.linspace(0.0, SAMPLE_RATE / 2, _BINS)[:, None]
    triangles = np.maximum(0.0, np.minimum((f - low) / (centre - low), (high - f) / (high - centre)))
    return (triangles * 2.0 / (high - low)).astype(np.float32)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Periodic Hann window `[400]`, cosines `[201, 201]` and sines `[199, 201]` of the folded transform."""
    n = np.arange(N_FFT)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)
    phase = 2 * np.pi * ((n[:, None] * np.arange(_BINS)) % N_FFT) / N_FFT
    half = N_FFT // 2
    return window.astype(np.float32), np.cos(phase[: half + 1]).astype(np.float32), np.sin(phase[1:half]).astype(np.float32)


def padded_samples(num_frames: int) -> int:
    """Samples that `log_mel` needs for `num_frames` frames: whole hops that cover the last window."""
    return (num_frames + -(-N_FFT // HOP_LENGTH) - 1) * HOP_LENGTH


def reflect_pad(clips: Sequence[np.ndarray], num_frames: int, rows: int) -> np.ndarray:
    """Clips as `log_mel` wants them: 200 samples mirrored at both ends, then zeros up to `padded_samples(num_frames)`.

    Done on the host, where the clips' true lengths are known; on the device only the bucket's is. Every sample is copied once:
    a large batch of half a gigabyte would otherwise wait longer for this than for its encoder.

    Args:
      clips: `[num_samples]` float32 each, more than 200 samples.
      num_frames: frames of the bucket, at least those of the longest clip.
      rows: rows of the batch, at least one per clip; the others are zeros.

    Returns:
      `[rows, padded_samples(num_frames)]` float32.
    """
    half, width = N_FFT // 2, padded_samples(num_frames)
    padded = np.zeros((rows, width), np.float32)
    for row, samples in zip(padded, clips, strict=False):
        end = half + len(samples)  # what lies beyond the bucket is in none of its frames
        row[:half] = samples[half:0:-1]
        row[half:end] = samples[: width - half]
        row[end : end + half] = samples[-2 : -half - 2 : -1][: max(0, width - end)]
    return padded


def log_mel(samples: Array, num_frames: Array, num_mel_bins: int) -> Array:
    """Whisper's log-mel with this family's constants: power spectrum, no global cut, no length limit.

    Args:
      samples: `[B, padded_samples(A)]` float32, every row from `reflect_pad`.
      num_frames: `[B]` int32, valid frames per row; the floor is 8 decades below the maximum over these only.

    Returns:
      `[B, A, M]` float32, `(max(log10 p, max - 8) + 4) / 4`; frames past `num_frames` are 0.0, as the encoder wants them.
    """
    window, cosines, sines = _tables()
    hops = samples.reshape(samples.shape[0], -1, HOP_LENGTH)
    frames = jnp.concatenate([hops[:, :-2], hops[:, 1:-1], hops[:, 2:, : N_FFT - 2 * HOP_LENGTH]], axis=-1) * window
    half = N_FFT // 2
    left, right = frames[..., 1:half], frames[..., :half:-1]
    even = jnp.concatenate([frames[..., :1], left + right, frames[..., half : half + 1]], axis=-1)
    real = jnp.matmul(even, cosines, precision=lax.Precision.HIGHEST)
    imaginary = jnp.matmul(left - right, sines, precision=lax.Precision.HIGHEST)
    power = real * real + imaginary * imaginary
    mel = jnp.matmul(power, mel_filters(num_mel_bins), precision=lax.Precision.HIGHEST)
    logs = jnp.log10(jnp.maximum(mel, _FLOOR))
    valid = (jnp.arange(logs.shape[1]) < num_frames[:, None])[..., None]
    top = jnp.max(jnp.where(valid, logs, -jnp.inf), axis=(1, 2), keepdims=True)
    return jnp.where(valid, (jnp.maximum(logs, top - _DYNAMIC_RANGE) + 4.0) / 4.0, 0.0)
