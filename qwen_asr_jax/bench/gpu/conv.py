"""The conv stem by its implementations: nine strided views, or XLA's own convolution."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from qwen_asr_jax.bench.cost import conv_stem_flops
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.bench.roofline import seconds_per_call
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.config import AudioConfig
from qwen_asr_jax.ops.activations import gelu
from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.ops.conv import conv_stride2
from qwen_asr_jax.typing import Array

IMPLEMENTATIONS = ("views", "convolution")


def run(sheet: Sheet) -> None:
    """Measures the three convolutions and their GELUs; `settings`: `preset`."""
    preset = sheet.settings["preset"]
    dtypes = ("bfloat16",) if sheet.quick else ("bfloat16", "float32", "float16")
    for dtype in dtypes:
        for chunks in (2,) if sheet.quick else (16, 64, 4):
            for implementation in IMPLEMENTATIONS:
                settings = {"preset": preset, "dtype": dtype, "chunks": chunks, "implementation": implementation}
                measure = functools.partial(stem_time, MODELS[preset].audio, dtype, chunks, implementation)
                sheet.measure("stem", settings, measure, needs_s=5)


def stem_time(audio: AudioConfig, dtype: str, chunks: int, implementation: str) -> dict[str, float]:
    """Milliseconds of the three convolutions over so many chunks of a second, and their rate."""
    channels = audio.conv_channels
    keys = jax.random.split(jax.random.key(chunks), 4)
    x = jax.random.normal(keys[0], (chunks, audio.chunk_frames, audio.num_mel_bins, 1), jnp.float32)
    weights = [
        jax.random.uniform(key, (3, 3, c_in, channels), jnp.float32, -1.0, 1.0).astype(dtype) / jnp.asarray(9 * c_in, dtype)
        for key, c_in in zip(keys[1:], (1, channels, channels), strict=True)
    ]
    bias = jnp.zeros(channels, jnp.float32)
    jax.block_until_ready(_stem(x, weights, bias, implementation))
    ms = min(seconds_per_call(_stem, x, weights, bias, implementation) for _ in range(3)) * 1e3
    linear_flops = 2 * chunks * audio.chunk_tokens * channels * audio.conv_freq_bins * audio.embed_dim
    return {"ms": ms, "gflop_s": (conv_stem_flops(audio, chunks * audio.chunk_frames) - linear_flops) / ms / 1e6}


@functools.partial(jax.jit, static_argnums=3)
def _stem(x: Array, weights: list[Array], bias: Array, implementation: str) -> Array:
    for weight in weights:
        x = narrow(x, weight.dtype)
        x = gelu(conv_stride2(x, weight, bias, accum_dtype=jnp.float32, implementation=implementation))
    return x
