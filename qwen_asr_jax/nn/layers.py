"""Linear, embedding and norm layers."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from qwen_asr_jax import kernels
from qwen_asr_jax.kernels.cpu import calls
from qwen_asr_jax.kernels.cpu.calls import Matrix, Screen
from qwen_asr_jax.kernels.gpu import calls as cuda
from qwen_asr_jax.nn.parameters import matrix, ones, parameter
from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.ops.embedding import lookup
from qwen_asr_jax.ops.linear import linear
from qwen_asr_jax.ops.norms import layer_norm, rms_norm
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array

LAYER_NORM_EPS = 1e-5
"""PyTorch's default, which the encoder uses; it is in no config file. Flax's default (1e-6) shifts outputs by 2.6e-5."""


_FEW_ROWS = 16
"""Up to so many rows the head's kernel reads the weights once; for more, packing them for a product is faster."""


def _value(parameter: nnx.Param[Array] | None) -> Array | None:
    return None if parameter is None else parameter[...]


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
            _value(self.bias),
            scale=_value(self.scale),
            accum_dtype=self.policy.accum,
            implementation=kernels.for_policy(self.policy),
        )

    def matrix(self) -> Matrix:
        """The parameters as the native kernels take them."""
        return Matrix(self.weight[...], _value(self.scale), _value(self.bias))


@dataclasses.dataclass(frozen=True)  # equal ones must be equal: layers are traced once for all that are
class Projections:
    """Linear layers that multiply one input, as attributes of a module: one for each or, under a fusing policy, one for all.

    Fused, the input is read and the product launched once; outputs are the same numbers. Parts keep the checkpoint's names, so
    the loader can put them together (`checkpoint.fuse`).

    Attributes:
      fused: name of the one layer.
      parts: names and output widths of the layers that it stands for, in the order of its rows.
    """

    fused: str
    parts: tuple[tuple[str, int], ...]

    def add(self, module: nnx.Module, in_dim: int, *, bias: bool, policy: Policy, rngs: nnx.Rngs | None) -> None:
        """Makes the layers and sets them as attributes of the module."""
        widths = ((self.fused, sum(width for _, width in self.parts)),) if policy.fused else self.parts
        for name, width in widths:
            setattr(module, name, Linear(in_dim, width, bias=bias, policy=policy, rngs=rngs))

    def __call__(self, module: nnx.Module, x: Array) -> list[Array]:
        """`[..., in]` to the `[..., width]` of every part, in the accumulation dtype."""
        if not hasattr(module, self.fused):
            return [getattr(module, name)(x) for name, _ in self.parts]
        ends = list(itertools.accumulate(width for _, width in self.parts))
        return jnp.split(getattr(module, self.fused)(x), ends[:-1], axis=-1)


class Embedding(nnx.Module):
    """Token embedding, which is also the output head where the checkpoint ties the two; in int8 with a `scale` per row."""

    def __init__(self, num_embeddings: int, embed_dim: int, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.weight, self.scale = matrix((num_embeddings, embed_dim), policy.head, rngs)
        self.policy = policy

    def __call__(self, ids: Array) -> Array:
        """`[B, T]` int32 to `[B, T, D]` in the accumulation dtype."""
        return lookup(self.weight[...], ids, _value(self.scale)).astype(self.policy.accum)

    def attend(self, x: Array) -> Array:
        """Logits: `[..., D]` to `[..., V]` in the logits dtype."""
        return linear(
            narrow(x, self.policy.compute),
            self.weight[...],
            scale=_value(self.scale),
            accum_dtype=self.policy.logits,
            implementation=kernels.for_policy(self.policy),
        )

    def greedy(self, x: Array, screen: Screen | None = None) -> tuple[Array, Array]:
        """The largest logit of each row: `[B, D]` to `(token [B] int32, its log-probability [B] float32)`.

        The native kernels take it without ever storing the logits.

        Args:
          screen: of this weight, for the native kernels: the same token from fewer bytes (`ops.screen`); others ignore it. The
            log-probability is then that of logits in int8.
        """
        name = kernels.for_policy(self.policy)
        if name == "cpu" and x.shape[0] <= _FEW_ROWS:
            token, top, log_sum = calls.head(x, Matrix(self.weight[...], _value(self.scale)), screen)
            return token, top - log_sum
        logits = self.attend(x)  # removed by the compiler where only the token is used, and that comes from a kernel
        if name == "cuda":
            matrix = cuda.Matrix(self.weight[...], _value(self.scale))
            if cuda.fits(cuda.head_program(x, matrix)) is None:
                token, top = cuda.head(x, matrix)
                return token, top - jax.nn.logsumexp(logits, axis=-1)
        top = jnp.max(logits, axis=-1)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), top - jax.nn.logsumexp(logits, axis=-1)


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
