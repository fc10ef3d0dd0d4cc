"""The audio tower: conv stem, sinusoidal positions, windowed transformer, projector."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from qwen_asr_jax.config import AudioConfig
from qwen_asr_jax.models.functional import call_layer
from qwen_asr_jax.nn.conv_stem import ConvStem
from qwen_asr_jax.nn.encoder_layer import EncoderLayer
from qwen_asr_jax.nn.layers import LayerNorm, Linear
from qwen_asr_jax.ops.activations import gelu
from qwen_asr_jax.ops.rope import sinusoids
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array


class AudioEncoder(nnx.Module):
    """Log-mel chunks to audio features in the decoder's embedding space.

    Only a clip's last chunk can be short, so valid tokens are always a prefix and window `w` is exactly chunks `8 w` to
    `8 w + 7`: no gathering or packing is needed, a reshape and a mask do.
    """

    def __init__(self, config: AudioConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.conv_stem = ConvStem(config, policy=policy, rngs=rngs)
        self.layers = nnx.List([EncoderLayer(config, policy=policy, rngs=rngs) for _ in range(config.num_layers)])
        self.ln_post = LayerNorm(config.embed_dim, policy=policy, rngs=rngs)
        self.proj1 = Linear(config.embed_dim, config.embed_dim, bias=True, policy=policy, rngs=rngs)
        self.proj2 = Linear(config.embed_dim, config.output_dim, bias=True, policy=policy, rngs=rngs)
        self.config = config

    def __call__(self, log_mel: Array, num_tokens: Array) -> Array:
        """Encodes a batch of clips, each as if it were alone.

        Args:
          log_mel: `[B, Q * chunk_frames, M]` float32, 0.0 behind each clip's own frames.
          num_tokens: `[B]` int32, audio tokens of each clip (`audio.frames.num_audio_tokens`).

        Returns:
          `[B, Q * chunk_tokens, D]` in the accumulation dtype; rows from `num_tokens[b]` on mean nothing.
        """
        return self.transform(self.convolve(log_mel), num_tokens)

    def convolve(self, log_mel: Array) -> Array:
        """The first half: `[B, Q * chunk_frames, M]` to `[B, Q * chunk_tokens, D]`, chunk by chunk, with positions added."""
        config = self.config
        batch, frames, bins = log_mel.shape
        chunks = frames // config.chunk_frames
        x = self.conv_stem(log_mel.reshape(batch * chunks, config.chunk_frames, bins))
        x = x + sinusoids(config.chunk_tokens, config.embed_dim)  # positions restart in every chunk
        return x.reshape(batch, chunks * config.chunk_tokens, -1)

    def transform(self, x: Array, num_tokens: Array) -> Array:
        """The second half: transformer layers within windows, then the projector."""
        mask = self._window_mask(x.shape[1] // self.config.chunk_tokens, num_tokens)
        for layer in self.layers:
            x = call_layer(layer, x, mask)
        return self.proj2(gelu(self.proj1(self.ln_post(x))))

    def _window_mask(self, chunks: int, num_tokens: Array) -> Array:
        """`[B, W, S]` bool: which tokens of each window are valid. Up to one window long, the window is just the clip."""
        window_chunks = min(chunks, self.config.window_chunks)
        windows = -(-chunks // window_chunks)
        positions = jnp.arange(windows * window_chunks * self.config.chunk_tokens)
        return (positions < num_tokens[:, None]).reshape(num_tokens.shape[0], windows, -1)
