"""The CPU kernels as functions of arrays: what `src/handlers.cc` offers, callable inside `jit` and loops.

Operands come in float32 and are rounded inside as the weights ask: to their dtype, or to bfloat16 for int8 weights (up to
8 rows of them: to 16-bit integers with a scale per row, which is finer). Sums are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_asr_jax.kernels import cpu
from qwen_asr_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight matrix as the kernels take it.

    Attributes:
      weight: `[out, in]` in float32, bfloat16, float16 or int8.
      scale: `[out]` float32, of int8 weights; None for others.
      bias: `[out]` float32, or None.
    """

    weight: Array
    scale: Array | None = None
    bias: Array | None = None


def linear(x: Array, matrix: Matrix) -> Array:
    """`x @ weight.T * scale + bias`: `[R, in]` float32 to `[R, out]` float32."""
    out = jax.ShapeDtypeStruct((x.shape[0], matrix.weight.shape[0]), jnp.float32)
    return _call("qwen_asr_linear", out)(x, matrix.weight, _vector(matrix.scale), _vector(matrix.bias))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Screen:
    """A head in int8, with which to find the few rows that can hold the largest logit.

    Attributes:
      weight: `[V, D]` int8.
      scale: `[V]` float32.
      error: `[V]` float32, at least the length of each row's difference between the head and this.
    """

    weight: Array
    scale: Array
    error: Array


def head(x: Array, matrix: Matrix, screen: Screen | None = None) -> tuple[Array, Array, Array]:
    """The largest logit of each row, without the logits.

    Args:
      x: `[B, D]` float32, normed hidden states.
      matrix: `[V, D]`, without bias.
      screen: the same in int8: token and logit stay those of `matrix`, the sum is of the logits in int8.

    Returns:
      `(token, top, log_sum)`, each `[B]`: int32, the first of the largest logits (the first NaN, if there is one); float32,
      that logit; float32, the logarithm of the sum of the exponentials of all logits.
    """
    rows = x.shape[:1]
    out = (
        jax.ShapeDtypeStruct(rows, jnp.int32),
        jax.ShapeDtypeStruct(rows, jnp.float32),
        jax.ShapeDtypeStruct(rows, jnp.float32),
    )
    none = jnp.zeros((0, 0), jnp.int8)
    given = (none, _vector(None), _vector(None)) if screen is None else (screen.weight, screen.scale, screen.error)
    token, top, log_sum = _call("qwen_asr_head", out)(x, matrix.weight, _vector(matrix.scale), *given)
    return token, top, log_sum


@dataclasses.dataclass(frozen=True)
class DecoderWeights:
    """The weights of one decoder layer.

    Attributes:
      norms: input, post-attention `[D]`, query, key `[H]`; float32.
      matrices: q, k, v, o, gate, up, down; all of one dtype, without biases.
    """

    norms: tuple[Array, Array, Array, Array]
    matrices: tuple[Matrix, ...]


def decoder_layers(
    x: Array,
    rope: tuple[Array, Array],
    k_cache: Sequence[Array],
    v_cache: Sequence[Array],
    start: Array,
    layers: Sequence[DecoderWeights],
    eps: float,
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Decoder layers, one behind the other; caches are updated in place.

    Args:
      x: `[B, T, D]` float32.
      rope: cosines and sines, each `[B, T, H / 2]` float32.
      k_cache, v_cache: per layer `[B * K, S, H]` in a floating dtype.
      start: `[B]` int32, slot of each row's first new token; every new token sees the slots up to its own.
      layers: all of one shape.
      eps: of the norms.

    Returns:
      `(x, k_cache, v_cache)`, shapes and dtypes as given.
    """
    given: list[Array] = [x, *rope, start]
    out = [jax.ShapeDtypeStruct(x.shape, jnp.float32)]
    aliases = {}
    for k, v, layer in zip(k_cache, v_cache, layers, strict=True):
        for cache in (k, v):
            aliases[len(given)] = len(out)
            given.append(cache)
            out.append(jax.ShapeDtypeStruct(cache.shape, cache.dtype))
        scales = [m.scale for m in layer.matrices if m.scale is not None]
        given += [*layer.norms, *(m.weight for m in layer.matrices), *scales]
    call = _call("qwen_asr_decoder_layers", out, input_output_aliases=aliases)
    x, *caches = call(*given, eps=np.float32(eps))
    return x, tuple(caches[::2]), tuple(caches[1::2])


def encoder_layer(
    x: Array,
    valid: Array,
    norms: tuple[Array, Array, Array, Array],
    matrices: tuple[Matrix, ...],
    *,
    heads: int,
    window: int,
    eps: float,
    limit: float,
) -> Array:
    """One layer of the audio encoder.

    Args:
      x: `[B, T, D]` float32.
      valid: `[B, W]` int32, valid tokens of each window; they come first in it.
      norms: weight and bias of the attention's norm, weight and bias of the MLP's; `[D]` float32.
      matrices: q, k, v, out, fc1, fc2; all of one dtype, with biases.
      heads: attention heads.
      window: tokens per window; `W * window >= T`.
      eps: of the norms.
      limit: outputs are clamped to it; 0 for no limit.

    Returns:
      `[B, T, D]` float32.
    """
    weights, scales, biases = (
        [f(m) for m in matrices] for f in (_weight, lambda m: _vector(m.scale), lambda m: _vector(m.bias))
    )
    call = _call("qwen_asr_encoder_layer", jax.ShapeDtypeStruct(x.shape, jnp.float32))
    settings = {"heads": np.int32(heads), "window": np.int32(window), "eps": np.float32(eps), "limit": np.float32(limit)}
    return call(x, valid, *norms, *weights, *scales, *biases, **settings)


def conv_gelu(x: Array, weight: Array, bias: Array) -> Array:
    """`gelu(conv(x))` with a 3 x 3 filter, stride 2 and a row of zeros on every side.

    Args:
      x: `[n, time, freq, c_in]` in float32 or the filter's dtype.
      weight: `[3 (time), 3 (freq), c_in, c_out]` in float32, bfloat16 or float16.
      bias: `[c_out]` float32.

    Returns:
      `[n, ceil(time / 2), ceil(freq / 2), c_out]` in the filter's dtype.
    """
    n, time, freq, _ = x.shape
    out = jax.ShapeDtypeStruct((n, -(-time // 2), -(-freq // 2), weight.shape[-1]), weight.dtype)
    return _call("qwen_asr_conv_gelu", out)(x, weight, bias)


def _call(handler: str, out: Any, **kwargs: Any) -> Callable[..., Any]:
    return jax.ffi.ffi_call(cpu.target(handler), out, **kwargs)


def _weight(matrix: Matrix) -> Array:
    return matrix.weight


def _vector(vector: Array | None) -> Array:
    """The kernels take an empty vector for none."""
    return jnp.zeros((0,), jnp.float32) if vector is None else vector
