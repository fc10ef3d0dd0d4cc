"""One layer of the audio encoder: bidirectional attention inside windows, then an MLP, both pre-norm."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from qwen_asr_jax import kernels
from qwen_asr_jax.config import AudioConfig
from qwen_asr_jax.kernels.cpu import calls
from qwen_asr_jax.nn.layers import LAYER_NORM_EPS, LayerNorm, Linear, Projections
from qwen_asr_jax.ops.activations import gelu
from qwen_asr_jax.ops.attention import attend
from qwen_asr_jax.ops.cast import FP16_LIMIT, narrow, saturate
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array


class WindowedAttention(nnx.Module):
    """Full attention within windows of consecutive tokens, none across."""

    def __init__(self, config: AudioConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        dim = config.embed_dim
        self.qkv = Projections("qkv_proj", (("q_proj", dim), ("k_proj", dim), ("v_proj", dim)))
        self.qkv.add(self, dim, bias=True, policy=policy, rngs=rngs)
        self.out_proj = Linear(dim, dim, bias=True, policy=policy, rngs=rngs)
        self.num_heads = config.num_heads
        self.policy = policy

    def __call__(self, x: Array, window_mask: Array) -> Array:
        """`[B, T, D]` to `[B, T, D]`.

        Args:
          window_mask: `[B, W, S]` bool, valid tokens by window; `W * S >= T`, and the tokens past T are padding.
        """
        batch, time, dim = x.shape
        _, windows, size = window_mask.shape

        def by_window(y: Array) -> Array:
            """`[B, T, D]` to `[B * W, S, N, H]` in the compute dtype."""
            y = jnp.pad(narrow(y, self.policy.compute), ((0, 0), (0, windows * size - time), (0, 0)))
            return y.reshape(batch * windows, size, self.num_heads, -1)

        def by_head(y: Array) -> Array:
            """`[B * W, S, N, H]` to `[B * W * N, S, H]`."""
            return jnp.swapaxes(y, 1, 2).reshape(-1, size, y.shape[-1])

        q, k, v = map(by_window, self.qkv(self, x))
        k, v = by_head(k), by_head(v)
        mask = jnp.broadcast_to(window_mask.reshape(batch * windows, 1, size), (batch * windows, size, size))
        out = attend(q, k, v, mask, accum_dtype=self.policy.accum)
        return self.out_proj(out.reshape(batch, windows * size, dim)[:, :time])


class EncoderLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals; under fp16 the output is clamped as in the reference."""

    def __init__(self, config: AudioConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.self_attn_layer_norm = LayerNorm(config.embed_dim, policy=policy, rngs=rngs)
        self.self_attn = WindowedAttention(config, policy=policy, rngs=rngs)
        self.final_layer_norm = LayerNorm(config.embed_dim, policy=policy, rngs=rngs)
        self.fc1 = Linear(config.embed_dim, config.mlp_dim, bias=True, policy=policy, rngs=rngs)
        self.fc2 = Linear(config.mlp_dim, config.embed_dim, bias=True, policy=policy, rngs=rngs)
        self.clamps = policy.compute_dtype == "float16"
        self.policy = policy

    def __call__(self, x: Array, window_mask: Array) -> Array:
        """`[B, T, D]` in the accumulation dtype to the same; `window_mask` as in `WindowedAttention`."""
        if kernels.for_policy(self.policy) == "cpu":
            return self._native(x, window_mask)
        x = x + self.self_attn(self.self_attn_layer_norm(x), window_mask)
        x = x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))
        return saturate(x) if self.clamps else x

    def _native(self, x: Array, window_mask: Array) -> Array:
        """All of the layer in one call."""
        attention = self.self_attn
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, self.fc1, self.fc2)
        before, after = self.self_attn_layer_norm, self.final_layer_norm
        return calls.encoder_layer(
            x,
            jnp.sum(window_mask, axis=-1, dtype=jnp.int32),
            (before.weight[...], before.bias[...], after.weight[...], after.bias[...]),
            tuple(each.matrix() for each in linears),
            heads=attention.num_heads,
            window=window_mask.shape[-1],
            eps=LAYER_NORM_EPS,
            limit=FP16_LIMIT if self.clamps else 0.0,
        )
