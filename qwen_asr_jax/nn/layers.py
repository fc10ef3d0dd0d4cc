"""Linear, embedding and norm layers."""

from __future__ import annotations

from flax import nnx

from qwen_asr_jax import kernels
from qwen_asr_jax.nn.parameters import matrix, ones, parameter
from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.ops.embedding import lookup
from qwen_asr_jax.ops.linear import implementations, linear
from qwen_asr_jax.ops.norms import layer_norm, rms_norm
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array

LAYER_NORM_EPS = 1e-5
"""PyTorch's default, which the encoder uses; it is in no config file. Flax's default (1e-6) shifts outputs by 2.6e-5."""


def linear_implementation(policy: Policy) -> str:
    """The implementation of `linear` that the policy's choice comes to; XLA's where the chosen kernels have none."""
    name = kernels.choose(policy.implementation)
    return name if name in implementations() else "xla"


class Linear(nnx.Module):
    """`x @ weight.T + bias` with the checkpoint's `[out, in]` weight; an int8 weight has a `scale` per output."""

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool, policy: Policy, rngs: nnx.Rngs | None = None):
        self.weight, self.scale = matrix((out_dim, in_dim), policy.layer, rngs)
        self.bias = parameter((out_dim,), policy.accum, rngs) if bias else None
        self.policy = policy

    def __call__(self, x: Array) -> Array:
        """`[..., in]` of any dtype to `[..., out]` in the accumulation dtype."""
        return linear(
            narrow(x, self.policy.compute),
            self.weight[...],
            None if self.bias is None else self.bias[...],
            scale=None if self.scale is None else self.scale[...],
            accum_dtype=self.policy.accum,
            implementation=linear_implementation(self.policy),
        )


class Embedding(nnx.Module):
    """Token embedding, which is also the output head where the checkpoint ties the two; in int8 with a `scale` per row."""

    def __init__(self, num_embeddings: int, embed_dim: int, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.weight, self.scale = matrix((num_embeddings, embed_dim), policy.head, rngs)
        self.policy = policy

    def __call__(self, ids: Array) -> Array:
        """`[B, T]` int32 to `[B, T, D]` in the accumulation dtype."""
        scale = None if self.scale is None else self.scale[...]
        return lookup(self.weight[...], ids, scale).astype(self.policy.accum)

    def attend(self, x: Array) -> Array:
        """Logits: `[..., D]` to `[..., V]` in the logits dtype."""
        return linear(
            narrow(x, self.policy.compute),
            self.weight[...],
            scale=None if self.scale is None else self.scale[...],
            accum_dtype=self.policy.logits,
            implementation=linear_implementation(self.policy),
        )


class LayerNorm(nnx.Module):
    """Layer norm with weight and bias, in the accumulation dtype."""

    def __init__(self, dim: int, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.weight = ones((dim,), policy.accum, rngs)
        self.bias = parameter((dim,), policy.accum, rngs)

    def __call__(self, x: Array) -> Array:
        """`[..., D]` to `[..., D]`."""
        return layer_norm(x, self.weight[...], self.bias[...], LAYER_NORM_EPS)


class RMSNorm(nnx.Module):
    """RMS norm with weight, in the accumulation dtype."""

    def __init__(self, dim: int, eps: float, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.weight = ones((dim,), policy.accum, rngs)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """`[..., D]` to `[..., D]`."""
        return rms_norm(x, self.weight[...], self.eps)
