"""The CUDA kernels as functions of arrays: what `src/handlers.cc` offers, callable inside `jit` and loops.

For one new token per row, up to 8 rows. Operands come in float32 and are rounded inside as the weights ask: to their dtype, or
to bfloat16 for int8 weights. Sums are float32. The kernels for a shape are compiled when a call of it is traced, if there is a
GPU; without one a call can still be lowered for the platform `cuda`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_asr_jax.kernels import gpu
from qwen_asr_jax.kernels.gpu import programs
from qwen_asr_jax.kernels.gpu.programs import TYPES, Program
from qwen_asr_jax.typing import Array

HEAD_BLOCKS = 1024
"""kMaxHeadBlocks of `src/geometry.h`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight matrix as the kernels take it.

    Attributes:
      weight: `[out, in]` in float32, bfloat16, float16 or int8.
      scale: `[out]` float32, of int8 weights; None for others.
    """

    weight: Array
    scale: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderWeights:
    """The weights of one decoder layer, all matrices of one dtype.

    Attributes:
      norms: input, post-attention `[D]`, query, key `[H]`; float32.
      qkv: queries, keys and values on top of each other, `[(N + 2 K) H, D]`.
      o: `[D, N H]`.
      gate_up: gate on top of up, `[2 F, D]`.
      down: `[D, F]`.
    """

    norms: tuple[Array, Array, Array, Array]
    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """In the order of the handler's arguments."""
        return self.qkv, self.o, self.gate_up, self.down


def decoder_program(x: Array, cache: Array, layer: DecoderWeights) -> Program:
    """What `decoder_layers` needs for such operands: `x` `[B, 1, D]`, a cache `[B * K, S, H]`; arrays or their shapes.

    Raises:
      NotImplementedError: see `fits`.
    """
    weights, head_dim = layer.qkv.weight.dtype, cache.shape[2]
    shape = (
        *(_type(dtype) for dtype in (weights, cache.dtype)),
        x.shape[0],
        x.shape[2],
        layer.down.weight.shape[1],
        layer.o.weight.shape[1] // head_dim,
        cache.shape[0] // x.shape[0],
        head_dim,
    )
    return Program("decoder", shape)


def head_program(x: Array, matrix: Matrix) -> Program:
    """What `head` needs for such operands, arrays or their shapes.

    Raises:
      NotImplementedError: see `fits`.
    """
    return Program("head", (_type(matrix.weight.dtype), *x.shape, matrix.weight.shape[0]))


def fits(program: Program) -> str | None:
    """Why there are no kernels for such shapes and dtypes, in one line; None if there are.

    They want at most 8 rows, `D` and `F` multiples of 16, heads of 16, 32, 64 or 128, 1 to 8 query heads per key head, and
    `B * D` operands that fit into 99 KB of shared memory.
    """
    return programs.why_not(program)


def decoder_layers(
    x: Array,
    rope: tuple[Array, Array],
    k_cache: Sequence[Array],
    v_cache: Sequence[Array],
    start: Array,
    layers: Sequence[DecoderWeights],
    eps: float,
    *,
    overlap: bool = False,
    prefetch: bool = False,
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Decoder layers for one new token per row, one behind the other; caches are updated in place.

    Args:
      x: `[B, 1, D]` float32.
      rope: cosines and sines, each `[B, 1, H / 2]` float32.
      k_cache, v_cache: per layer `[B * K, S, H]` in a floating dtype.
      start: `[B]` int32, slot of each row's new token, which sees the slots up to its own. Outside of the cache it counts as
        the nearest slot that there is.
      layers: all of one shape.
      eps: of the norms.
      overlap: let a kernel start, and fetch its weights, before the one in front of it has ended; from compute capability 9.0
        on, and without effect before.
      prefetch: bring the output projection into the second cache during attention, which needs little of the memory.

    Returns:
      `(x, k_cache, v_cache)`, shapes and dtypes as given.

    Raises:
      NotImplementedError: there are no kernels for these shapes or dtypes.
      BackendError: the kernels cannot be compiled or loaded.
    """
    program = _ready(decoder_program(x, k_cache[0], layers[0]))
    given: list[Array] = [x, *rope, start]
    scratch = jax.ShapeDtypeStruct((programs.scratch_bytes(program),), jnp.uint8)
    out = [jax.ShapeDtypeStruct(x.shape, jnp.float32), scratch]
    aliases = {}
    for k, v, layer in zip(k_cache, v_cache, layers, strict=True):
        for cache in (k, v):
            aliases[len(given)] = len(out)
            given.append(cache)
            out.append(jax.ShapeDtypeStruct(cache.shape, cache.dtype))
        scales = [m.scale for m in layer.matrices if m.scale is not None]
        given += [*layer.norms, *(m.weight for m in layer.matrices), *scales]
    call = _call("qwen_asr_cuda_decoder_layers", out, input_output_aliases=aliases)
    x, _, *caches = call(*given, eps=np.float32(eps), overlap=overlap, prefetch=prefetch)
    return x, tuple(caches[::2]), tuple(caches[1::2])


def head(x: Array, matrix: Matrix, *, overlap: bool = False) -> tuple[Array, Array]:
    """The largest logit of each row, without the logits.

    Args:
      x: `[B, D]` float32, normed hidden states.
      matrix: `[V, D]`.
      overlap: as in `decoder_layers`.

    Returns:
      `(token, top)`, each `[B]`: int32, the first of the largest logits (the first NaN, if there is one); float32, that logit.

    Raises:
      NotImplementedError: there are no kernels for these shapes or dtypes.
      BackendError: the kernels cannot be compiled or loaded.
    """
    _ready(head_program(x, matrix))
    rows, partial = x.shape[:1], (HEAD_BLOCKS, x.shape[0])
    out = [
        jax.ShapeDtypeStruct(rows, jnp.int32),
        jax.ShapeDtypeStruct(rows, jnp.float32),
        jax.ShapeDtypeStruct(partial, jnp.int32),
        jax.ShapeDtypeStruct(partial, jnp.float32),
    ]
    # The kernels take an empty vector for none.
    scale = jnp.zeros((0,), jnp.float32) if matrix.scale is None else matrix.scale
    token, top, _, _ = _call("qwen_asr_cuda_head", out)(x, matrix.weight, scale, overlap=overlap)
    return token, top


def _ready(program: Program) -> Program:
    """The program, compiled and loaded where there is a GPU for it."""
    if reason := fits(program):
        raise NotImplementedError(f"implementation 'cuda' (native kernels): {reason}")
    if gpu.unavailable() is None:
        programs.load(program)
    return program


def _type(dtype: Any) -> int:
    name = np.dtype(dtype).name
    if name not in TYPES:
        raise NotImplementedError(f"implementation 'cuda' (native kernels): none for {name}, only for {', '.join(TYPES)}")
    return TYPES.index(name)


def _call(handler: str, out: Any, **kwargs: Any) -> Callable[..., Any]:
    return jax.ffi.ffi_call(gpu.target(handler), out, **kwargs)
