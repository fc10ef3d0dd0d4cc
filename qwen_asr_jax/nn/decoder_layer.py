"""One layer of the Qwen3 decoder: causal grouped-query attention over the cache, then a gated MLP, both pre-norm."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from qwen_asr_jax import kernels
from qwen_asr_jax.config import TextConfig
from qwen_asr_jax.kernels.cpu import calls
from qwen_asr_jax.kernels.cpu.calls import DecoderWeights
from qwen_asr_jax.kernels.gpu import calls as cuda
from qwen_asr_jax.nn.layers import Linear, Projections, RMSNorm
from qwen_asr_jax.ops import kv_cache
from qwen_asr_jax.ops.activations import swiglu
from qwen_asr_jax.ops.attention import attend
from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.ops.rope import apply_rope
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array


class CausalAttention(nnx.Module):
    """Grouped-query attention with RMS-normed queries and keys and rotary positions, reading and writing one cache."""

    def __init__(self, config: TextConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv = Projections("qkv_proj", (("q_proj", q_dim), ("k_proj", kv_dim), ("v_proj", kv_dim)))
        self.qkv.add(self, config.embed_dim, bias=False, policy=policy, rngs=rngs)
        self.o_proj = Linear(q_dim, config.embed_dim, bias=False, policy=policy, rngs=rngs)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps, policy=policy, rngs=rngs)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps, policy=policy, rngs=rngs)
        self.head_dim = config.head_dim
        self.policy = policy

    def __call__(
        self, x: Array, rope: tuple[Array, Array], k_cache: Array, v_cache: Array, start: Array | None, mask: Array
    ) -> tuple[Array, Array, Array]:
        """Attends from T new tokens; see `DecoderLayer`."""
        batch, time, _ = x.shape

        def heads(y: Array) -> Array:
            return y.reshape(batch, time, -1, self.head_dim)

        q, k, v = map(heads, self.qkv(self, x))
        q = apply_rope(self.q_norm(q), *rope)
        k = apply_rope(self.k_norm(k), *rope)
        k = jnp.swapaxes(narrow(k, self.policy.cache), 1, 2)
        v = jnp.swapaxes(narrow(v, self.policy.cache), 1, 2)
        # Write first, then read the updated cache only: the order that lets XLA update the donated buffer in place.
        k_cache = kv_cache.write(k_cache, k, start)
        v_cache = kv_cache.write(v_cache, v, start)
        keys, values = (y.reshape(-1, time, self.head_dim) for y in (k, v)) if start is None else (k_cache, v_cache)
        out = attend(q, keys, values, mask, accum_dtype=self.policy.accum)
        return self.o_proj(out.reshape(batch, time, -1)), k_cache, v_cache


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: TextConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.gate_up = Projections("gate_up_proj", (("gate_proj", config.mlp_dim), ("up_proj", config.mlp_dim)))
        self.gate_up.add(self, config.embed_dim, bias=False, policy=policy, rngs=rngs)
        self.down_proj = Linear(config.mlp_dim, config.embed_dim, bias=False, policy=policy, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[B, T, D]` to `[B, T, D]`."""
        return self.down_proj(swiglu(*self.gate_up(self, x)))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: TextConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.input_layernorm = RMSNorm(config.embed_dim, config.norm_eps, policy=policy, rngs=rngs)
        self.self_attn = CausalAttention(config, policy=policy, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.embed_dim, config.norm_eps, policy=policy, rngs=rngs)
        self.mlp = GatedMLP(config, policy=policy, rngs=rngs)
        self.policy = policy

    def __call__(
        self, x: Array, rope: tuple[Array, Array], k_cache: Array, v_cache: Array, start: Array | None, mask: Array
    ) -> tuple[Array, Array, Array]:
        """Runs T new tokens through the layer and appends their keys and values to its cache.

        Args:
          x: `[B, T, D]` in the accumulation dtype.
          rope: cosines and sines of the tokens' positions, each `[B, T, H / 2]` float32.
          k_cache, v_cache: `[B * K, S, H]` in the cache dtype.
          start: `[B]` int32, the slot of each row's first new token; None where nothing came before them. They then take the
            first slots and attend to each other, which saves reading the cache.
          mask: `[B, T, S]` bool over the cache; without a `start`, `[B, T, T]` over the new tokens.

        Returns:
          `(x, k_cache, v_cache)`, shapes and dtypes as given.
        """
        if kernels.for_policy(self.policy) == "cpu":
            start = jnp.zeros(x.shape[0], jnp.int32) if start is None else start
            x, (k_cache,), (v_cache,) = calls.decoder_layers(
                x, rope, (k_cache,), (v_cache,), start, (self.weights(),), self.input_layernorm.eps
            )
            return x, k_cache, v_cache
        attended, k_cache, v_cache = self.self_attn(self.input_layernorm(x), rope, k_cache, v_cache, start, mask)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), k_cache, v_cache

    def fused_weights(self) -> cuda.DecoderWeights:
        """The parameters, of fused projections, as the CUDA kernels take them: all layers in one call, like those for CPUs."""
        attention, mlp = self.self_attn, self.mlp
        norms = (self.input_layernorm, self.post_attention_layernorm, attention.q_norm, attention.k_norm)
        linears = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        matrices = (cuda.Matrix(m.weight, m.scale) for m in (each.matrix() for each in linears))
        return cuda.DecoderWeights(tuple(norm.weight[...] for norm in norms), *matrices)

    def weights(self) -> DecoderWeights:
        """The parameters as the native kernels take them; these run all layers in one call (`models.text_decoder`)."""
        attention, mlp = self.self_attn, self.mlp
        norms = (self.input_layernorm, self.post_attention_layernorm, attention.q_norm, attention.k_norm)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        matrices = tuple(each.matrix() for each in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        return DecoderWeights(tuple(norm.weight[...] for norm in norms), matrices)
