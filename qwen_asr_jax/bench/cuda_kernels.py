"""The CUDA kernels by themselves, with random weights: are they right on this GPU, and how fast is a decode step.

Nothing of the engine is in it, so that a kernel can be judged before the models use it. Bandwidth counts what a step cannot do
without: its weights and the valid part of the caches, each once.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_asr_jax.config import TextConfig
from qwen_asr_jax.kernels.gpu import calls
from qwen_asr_jax.kernels.gpu.calls import DecoderWeights, Matrix
from qwen_asr_jax.typing import Array

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Case:
    """What a step computes: geometry, dtypes by name, rows, layers, and the valid slots of each row's cache of `slots`."""

    text: TextConfig
    weights: str
    cache: str
    rows: int
    layers: int
    valid: tuple[int, ...]
    slots: int

    @property
    def start(self) -> Array:
        """`[B]` int32, each row's new slot."""
        return jnp.asarray([self.valid[b % len(self.valid)] - 1 for b in range(self.rows)], jnp.int32)

    def step_bytes(self, layers: Sequence[DecoderWeights], head: Matrix) -> int:
        """Weights and valid cache slots, each once."""
        weights = sum(m.weight.nbytes for layer in layers for m in layer.matrices) + head.weight.nbytes
        slot = 2 * self.text.num_kv_heads * self.text.head_dim * np.dtype(self.cache).itemsize
        return int(weights + slot * len(layers) * int(self.start.sum() + self.rows))


def random_matrix(key: Array, rows: int, cols: int, dtype: str) -> Matrix:
    """Normal values whose products are as large as their operands."""
    values = jax.random.normal(key, (rows, cols), jnp.float32) / np.float32(np.sqrt(cols))
    if dtype != "int8":
        return Matrix(values.astype(dtype))
    scale = jnp.max(jnp.abs(values), axis=1) / 127
    return Matrix(jnp.round(values / scale[:, None]).astype(jnp.int8), scale)


def random_layers(case: Case) -> tuple[list[DecoderWeights], Matrix]:
    """All layers and the head, each with weights of its own."""
    t = case.text
    attended, projected = t.num_heads * t.head_dim, (t.num_heads + 2 * t.num_kv_heads) * t.head_dim
    shapes = [
        (projected, t.embed_dim),
        (t.embed_dim, attended),
        (2 * t.mlp_dim, t.embed_dim),
        (t.embed_dim, t.mlp_dim),
        (t.vocab_size, t.embed_dim),
    ]
    make = [jax.jit(functools.partial(random_matrix, rows=m, cols=n, dtype=case.weights)) for m, n in shapes]
    sizes = (t.embed_dim, t.embed_dim, t.head_dim, t.head_dim)
    layers = []
    for key in jax.random.split(jax.random.key(0), case.layers):
        keys = jax.random.split(key, 8)
        one, two, three, four = (
            1 + 0.1 * jax.random.normal(k, (n,), jnp.float32) for k, n in zip(keys[4:], sizes, strict=True)
        )
        layers.append(DecoderWeights((one, two, three, four), *(f(k) for f, k in zip(make[:4], keys[:4], strict=True))))
    return layers, make[4](jax.random.key(1))


def random_operands(case: Case) -> dict[str, Any]:
    """`x`, `rope` and caches; slots that are not valid are NaN, which nothing may read."""
    t = case.text
    shape = (case.rows * t.num_kv_heads, case.slots, t.head_dim)
    row = jnp.repeat(case.start, t.num_kv_heads)[:, None, None]
    unused = jnp.arange(case.slots)[None, :, None] >= row

    def cache(seed: int) -> Array:
        return jnp.where(unused, jnp.nan, jax.random.normal(jax.random.key(seed), shape, jnp.float32)).astype(case.cache)

    angles = jax.random.normal(jax.random.key(2), (case.rows, 1, t.head_dim // 2), jnp.float32)
    return {
        "x": jax.random.normal(jax.random.key(3), (case.rows, 1, t.embed_dim), jnp.float32),
        "rope": (jnp.cos(angles), jnp.sin(angles)),
        "k_cache": tuple(cache(10 + i) for i in range(case.layers)),
        "v_cache": tuple(cache(50 + i) for i in range(case.layers)),
    }


def reference(case: Case, given: dict[str, Any], layers: Sequence[DecoderWeights]) -> Array:
    """The hidden states `[B, 1, D]` behind all layers, in plain JAX at full precision."""
    t, rows, group = case.text, case.rows, case.text.num_heads // case.text.num_kv_heads
    x, (cos, sin) = given["x"][:, 0], given["rope"]

    def rotated(heads: Array, norm: Array) -> Array:
        one, two = jnp.split(_rms(heads, norm), 2, axis=-1)
        return _rounded(jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1), case.cache)

    for layer, keys, values in zip(layers, given["k_cache"], given["v_cache"], strict=True):
        projected = _times(_rms(x, layer.norms[0]), layer.qkv).reshape(rows, -1, t.head_dim)
        q, k, v = jnp.split(projected, [t.num_heads, t.num_heads + t.num_kv_heads], axis=1)
        new = [rotated(k, layer.norms[3]), _rounded(v, case.cache)]
        old = [each.reshape(rows, t.num_kv_heads, case.slots, t.head_dim).astype(jnp.float32) for each in (keys, values)]
        at, seen = jnp.arange(case.slots)[None, None, :, None], case.start[:, None, None, None]
        both = [
            jnp.where(at < seen, each, jnp.where(at == seen, more[:, :, None], 0.0))
            for each, more in zip(old, new, strict=True)
        ]
        queries = rotated(q, layer.norms[2]).reshape(rows, t.num_kv_heads, group, t.head_dim)
        scores = jnp.einsum("bkgh,bksh->bkgs", queries, both[0], precision="highest") / np.float32(np.sqrt(t.head_dim))
        weights = jax.nn.softmax(jnp.where(jnp.swapaxes(at, 2, 3) <= seen, scores, -jnp.inf), axis=-1)
        attended = jnp.einsum("bkgs,bksh->bkgh", weights, both[1], precision="highest")
        x = x + _times(attended.reshape(rows, -1), layer.o)
        gate, up = jnp.split(_times(_rms(x, layer.norms[1]), layer.gate_up), 2, axis=-1)
        x = x + _times(jax.nn.silu(gate) * up, layer.down)
    return x[:, None]


def deviation(case: Case, *, overlap: bool) -> float:
    """How far the kernels' hidden states are from the reference's, of the largest value; NaN or the wrong token count as 1."""
    layers, head = random_layers(case)
    given = random_operands(case)
    wanted = jax.jit(lambda given, layers: reference(case, given, layers))(given, layers)
    step = functools.partial(calls.decoder_layers, eps=EPS, overlap=overlap, prefetch=overlap)
    found, _, _ = jax.jit(lambda given, layers: step(**given, start=case.start, layers=layers))(given, layers)
    token, _ = jax.jit(lambda x, head: calls.head(x, head, overlap=overlap))(wanted[:, 0], head)
    logits = np.asarray(jax.jit(_times)(wanted[:, 0], head))
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if not np.isfinite(found).all():
        return 1.0
    near = np.take_along_axis(logits, np.asarray(token)[:, None], 1)[:, 0] >= logits.max(axis=1) - 1e-4
    return float(np.abs(found - wanted).max() / np.abs(wanted).max()) if near.all() else 1.0


def step_ms(case: Case, *, steps: int, repeats: int, overlap: bool, prefetch: bool) -> tuple[float, float]:
    """Milliseconds of a decode step, the best of `repeats` loops of `steps`, and GB/s of what it has to read.

    The loop is one program with a known number of steps, as the engine's; caches are donated and their slots stay the same.
    """
    layers, head = random_layers(case)
    given = random_operands(case)
    caches = (given.pop("k_cache"), given.pop("v_cache"))

    def loop(caches: Any, x: Array, rope: Any, layers: Any, head: Matrix) -> Any:
        def body(_: Array, carry: Any) -> Any:
            x, k, v, tokens = carry
            x, k, v = calls.decoder_layers(x, rope, k, v, case.start, layers, EPS, overlap=overlap, prefetch=prefetch)
            token, _top = calls.head(x[:, 0], head, overlap=overlap)
            return _rms(x, jnp.ones(x.shape[-1:], jnp.float32)), k, v, tokens + token

        start = (x, *caches, jnp.zeros(case.rows, jnp.int32))
        return jax.lax.fori_loop(0, steps, body, start)

    compiled = jax.jit(loop, donate_argnums=0)
    seconds = []
    for _ in range(repeats + 1):  # the first one compiles
        begin = time.perf_counter()
        _, *caches_out, _ = jax.block_until_ready(compiled(caches, given["x"], given["rope"], layers, head))
        seconds.append(time.perf_counter() - begin)
        caches = tuple(caches_out)
    best = min(seconds[1:]) / steps
    return best * 1e3, case.step_bytes(layers, head) / best / 1e9


def _rms(x: Array, norm: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + np.float32(EPS)) * norm


def _rounded(x: Array, dtype: str) -> Array:
    return x.astype(dtype).astype(jnp.float32)


def _times(x: Array, matrix: Matrix) -> Array:
    dtype = matrix.weight.dtype
    x = _rounded(x, "bfloat16" if dtype == jnp.int8 else dtype.name)
    out = jnp.einsum("bd,fd->bf", x, matrix.weight.astype(jnp.float32), precision="highest")
    return out if matrix.scale is None else out * matrix.scale
