"""The encoder's convolutional front: 100 mel frames to 13 tokens, chunk by chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qwen_asr_jax import kernels, runtime
from qwen_asr_jax.config import AudioConfig
from qwen_asr_jax.kernels.cpu import calls
from qwen_asr_jax.nn.layers import Linear
from qwen_asr_jax.nn.parameters import parameter
from qwen_asr_jax.ops.activations import gelu
from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.ops.conv import conv_stride2
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array

MAX_CHUNKS_AT_ONCE = 64
"""The first convolution's output is 6 MB per chunk in float32; more chunks than this go through in groups."""

_LEAN_CHUNKS = {"float32": 1, "bfloat16": 8, "float16": 8}
"""On a GPU, groups of one clip, by compute dtype. Beside weights and cache nothing is as large as what a chunk needs here, 25
MB or, in half precision, 16; and the 0.6B model with 30 s of audio is to fit 3.3 GB, or 1.8."""

_MANY_CHUNKS = 16
"""On a GPU, groups of a batch; 12,800 rows in the largest product keep any of them busy."""

_FEW_CHUNKS = 2
"""So many are not worth a loop."""


def chunks_at_once(n: int, compute_dtype: str) -> int:
    """Chunks that are convolved together, of `n`."""
    if runtime.platform() == "cpu" or n <= _FEW_CHUNKS:
        return min(n, MAX_CHUNKS_AT_ONCE)
    return min(n, _LEAN_CHUNKS[compute_dtype] if n <= MAX_CHUNKS_AT_ONCE else _MANY_CHUNKS)


class Conv2d(nnx.Module):
    """One strided 3 x 3 convolution and its GELU; the weight is `[3 (time), 3 (freq), c_in, c_out]`."""

    def __init__(self, c_in: int, c_out: int, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.weight = parameter((3, 3, c_in, c_out), policy.param, rngs, fan_in=9 * c_in)
        self.bias = parameter((c_out,), policy.accum, rngs)
        self.policy = policy

    def __call__(self, x: Array) -> Array:
        """`[n, time, freq, c_in]` to `gelu(conv)`, `[n, ceil(time / 2), ceil(freq / 2), c_out]`.

        In the accumulation dtype or, where the native kernels do it, already in the compute dtype.
        """
        if kernels.for_policy(self.policy) == "cpu":
            return calls.conv_gelu(x, self.weight[...], self.bias[...])
        x = narrow(x, self.policy.compute)
        return gelu(conv_stride2(x, self.weight[...], self.bias[...], accum_dtype=self.policy.accum))


class ConvStem(nnx.Module):
    """Three convolutions with GELU, then one linear layer over (channel, frequency)."""

    def __init__(self, config: AudioConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        channels = config.conv_channels
        self.conv2d1 = Conv2d(1, channels, policy=policy, rngs=rngs)
        self.conv2d2 = Conv2d(channels, channels, policy=policy, rngs=rngs)
        self.conv2d3 = Conv2d(channels, channels, policy=policy, rngs=rngs)
        self.conv_out = Linear(channels * config.conv_freq_bins, config.embed_dim, bias=False, policy=policy, rngs=rngs)
        self.policy = policy

    def __call__(self, chunks: Array) -> Array:
        """`[n, chunk_frames, M]` float32 to `[n, chunk_tokens, D]`; every chunk for itself, with zeros at its edges."""
        n = chunks.shape[0]
        at_once = chunks_at_once(n, self.policy.compute_dtype)
        if n <= at_once:
            return self._convolve(chunks)
        groups = -(-n // at_once)
        size = -(-n // groups)
        padded = jnp.pad(chunks, ((0, groups * size - n), (0, 0), (0, 0)))
        out = jax.lax.map(self._convolve, padded.reshape(groups, size, *chunks.shape[1:]))
        return out.reshape(groups * size, *out.shape[2:])[:n]

    def _convolve(self, chunks: Array) -> Array:
        x = chunks[..., None]
        for conv in (self.conv2d1, self.conv2d2, self.conv2d3):
            x = conv(x)
        # The checkpoint's linear layer counts features channel by channel, frequency inside.
        x = jnp.swapaxes(x, 2, 3)
        return self.conv_out(x.reshape(*x.shape[:2], -1))
