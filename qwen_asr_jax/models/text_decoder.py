"""The causal decoder: embeddings, layers over the KV cache, head."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from qwen_asr_jax import kernels
from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.kernels.cpu import calls
from qwen_asr_jax.kernels.cpu.calls import Screen
from qwen_asr_jax.kernels.gpu import calls as cuda
from qwen_asr_jax.models.functional import call_layer
from qwen_asr_jax.nn.decoder_layer import DecoderLayer
from qwen_asr_jax.nn.layers import Embedding, RMSNorm
from qwen_asr_jax.ops.rope import rope_tables
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array


class TextDecoder(nnx.Module):
    """Qwen3 with a tied head (transcription) or a head of its own (aligner).

    The 28 layers are unrolled, with one pytree of weights and one pair of cache arrays each: scanning over stacked arrays
    slices, and so copies, every weight in every step (docs/decisions/unrolled-layers.md).
    """

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        text = config.text
        self.embed_tokens = Embedding(text.vocab_size, text.embed_dim, policy=policy, rngs=rngs)
        self.layers = nnx.List([DecoderLayer(text, policy=policy, rngs=rngs) for _ in range(text.num_layers)])
        self.norm = RMSNorm(text.embed_dim, text.norm_eps, policy=policy, rngs=rngs)
        tied = text.tie_word_embeddings
        self.lm_head = None if tied else Embedding(config.head_rows, text.embed_dim, policy=policy, rngs=rngs)
        self.config = text
        self.policy = policy

    def embed(self, ids: Array) -> Array:
        """`[B, T]` int32 to `[B, T, D]` in the accumulation dtype."""
        return self.embed_tokens(ids)

    def __call__(
        self,
        x: Array,
        k_cache: tuple[Array, ...],
        v_cache: tuple[Array, ...],
        start: Array,
        over_cache: bool,
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Runs T new tokens per row behind the `start[b]` tokens that the cache already holds.

        Args:
          x: `[B, T, D]` embeddings in the accumulation dtype.
          k_cache, v_cache: one `[B * K, S, H]` per layer, in the cache dtype.
          start: `[B]` int32, valid tokens before the new ones: their positions and slots start there.
          over_cache: attend to the cache. False promises that it is empty (`start` is all 0): the new tokens then attend
            to each other alone.

        Returns:
          `(x, k_cache, v_cache)`: `[B, T, D]` normed hidden states, and the caches with the new tokens in them.
        """
        time = x.shape[1]
        new = jnp.arange(time)
        positions = start[:, None] + new
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        name = kernels.for_policy(self.policy)
        if name == "cpu":
            layers = [layer.weights() for layer in self.layers]
            x, k_cache, v_cache = calls.decoder_layers(x, rope, k_cache, v_cache, start, layers, self.config.norm_eps)
            return self.norm(x), k_cache, v_cache
        if name == "cuda" and over_cache and time == 1:
            fused = [layer.fused_weights() for layer in self.layers]
            if cuda.fits(cuda.decoder_program(x, k_cache[0], fused[0])) is None:
                x, k_cache, v_cache = cuda.decoder_layers(x, rope, k_cache, v_cache, start, fused, self.config.norm_eps)
                return self.norm(x), k_cache, v_cache
        if over_cache:
            mask = jnp.arange(k_cache[0].shape[1]) <= positions[..., None]
        else:
            mask = jnp.broadcast_to(new <= new[:, None], (x.shape[0], time, time))
        keys, values = [], []
        for layer, k, v in zip(self.layers, k_cache, v_cache, strict=True):
            x, k, v = call_layer(layer, x, rope, k, v, start if over_cache else None, mask)
            keys.append(k)
            values.append(v)
        return self.norm(x), tuple(keys), tuple(values)

    def logits(self, hidden: Array) -> Array:
        """`[..., D]` normed hidden states to `[..., V]` (or the aligner's classes) in the logits dtype."""
        return self._head().attend(hidden)

    def greedy(self, hidden: Array, screen: Screen | None = None) -> tuple[Array, Array]:
        """`[B, D]` normed hidden states to each row's likeliest token, `[B]` int32, and its log-probability, `[B]` float32.

        Args:
          screen: of the head's weight; see `nn.layers.Embedding.greedy`.
        """
        return self._head().greedy(hidden, screen)

    def _head(self) -> Embedding:
        return self.embed_tokens if self.lm_head is None else self.lm_head
