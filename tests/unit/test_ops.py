"""Linear and attention against plain NumPy in float64: one case table for every implementation there is."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qwen_asr_jax.ops import linear as linear_module
from qwen_asr_jax.ops.attention import attend
from qwen_asr_jax.ops.cast import FP16_LIMIT, narrow
from qwen_asr_jax.ops.conv import conv_stride2
from qwen_asr_jax.ops.embedding import lookup
from qwen_asr_jax.ops.kv_cache import write
from qwen_asr_jax.ops.linear import linear
from qwen_asr_jax.ops.rope import apply_rope, rope_tables, sinusoids

F32 = np.dtype(np.float32)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def normal(shape, dtype=F32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def exact(x):
    return x.astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, features, width", [(1, 7, 5), (1, 1, 1), (1, 1187, 640), (3, 130, 33), (17, 64, 48), (2, 4100, 1024)]
)
def test_linear(dtype, rows, features, width):
    x, weight = normal((rows, width), dtype), normal((features, width), dtype, seed=1)
    bias = normal((features,), seed=2)
    out = jax.jit(lambda *a: linear(*a, accum_dtype=F32))(x, weight, bias)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact(x) @ exact(weight).T + bias, rtol=1e-5, atol=2e-5 * np.sqrt(width))


@pytest.mark.parametrize("implementation", [None, "views", "convolution"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("time, freq, c_in, c_out", [(100, 16, 1, 5), (7, 9, 12, 3), (1, 1, 2, 4), (8, 6, 9, 2)])
def test_convolution(dtype, time, freq, c_in, c_out, implementation):
    x, weight, bias = normal((2, time, freq, c_in), dtype), normal((3, 3, c_in, c_out), dtype, 1), normal((c_out,), seed=2)
    padded = np.pad(exact(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("ntfcij,ijcd->ntfd", windows, exact(weight)) + bias
    out = jax.jit(lambda *a: conv_stride2(*a, accum_dtype=F32, implementation=implementation))(x, weight, bias)
    assert out.dtype == F32
    assert out.shape == (2, -(-time // 2), -(-freq // 2), c_out)
    np.testing.assert_allclose(out, expected, atol=3e-5)


def test_an_unknown_convolution_names_those_that_there_are():
    x, weight, bias = normal((1, 4, 4, 1)), normal((3, 3, 1, 2)), normal((2,))
    with pytest.raises(NotImplementedError, match="there are views, convolution"):
        conv_stride2(x, weight, bias, accum_dtype=F32, implementation="cudnn")


@pytest.mark.parametrize("stored", DTYPES[1:], ids=str)
def test_linear_with_weights_narrower_than_the_operands(stored):
    x, weight = normal((2, 3, 64)), normal((50, 64), stored)
    out = jax.jit(lambda *a: linear(*a, accum_dtype=F32))(x, weight)
    assert out.shape == (2, 3, 50)
    np.testing.assert_allclose(out, exact(x) @ exact(weight).T, rtol=1e-5, atol=1e-5)


def test_linear_propagates_nan_to_its_row_only():
    x = normal((2, 8))
    x[0, 3] = np.nan
    out = np.asarray(linear(jnp.asarray(x), jnp.asarray(normal((5, 8))), accum_dtype=F32))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


def test_unknown_implementation_says_what_there_is():
    x = jnp.ones((1, 4))
    with pytest.raises(NotImplementedError, match="xla"):
        linear(x, x, accum_dtype=F32, implementation="abacus")
    with pytest.raises(NotImplementedError, match="xla"):
        attend(x[None, None], x[None], x[None], jnp.ones((1, 1, 1), bool), accum_dtype=F32, implementation="abacus")
    assert set(linear_module._IMPLEMENTATIONS) >= {"xla"}


def attention_reference(q, k, v, mask):
    batch, time, heads, width = q.shape
    k, v = (exact(y).reshape(batch, -1, *y.shape[1:]) for y in (k, v))
    out = np.zeros((batch, time, heads, width))
    for b, t, n in itertools.product(range(batch), range(time), range(heads)):
        kv = n // (heads // k.shape[1])
        scores = k[b, kv] @ exact(q[b, t, n]) / np.sqrt(width)
        weights = np.where(mask[b, t], np.exp(scores - scores[mask[b, t]].max()), 0)
        out[b, t, n] = weights / weights.sum() @ v[b, kv]
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "batch, time, heads, kv_heads, slots", [(1, 1, 4, 2, 33), (2, 1, 3, 3, 16), (2, 20, 6, 2, 20), (1, 5, 8, 1, 64)]
)
def test_attention(dtype, batch, time, heads, kv_heads, slots):
    q, k, v = (
        normal((batch, time, heads, 16)),
        normal((batch * kv_heads, slots, 16), dtype, 1),
        normal((batch * kv_heads, slots, 16), dtype, 2),
    )
    mask = np.random.default_rng(3).random((batch, time, slots)) < 0.6
    mask[..., 0] = True
    out = jax.jit(lambda *a: attend(*a, accum_dtype=F32))(q, k, v, mask)
    tolerance = {4: 1e-5, 2: 2e-2 if dtype != np.float16 else 3e-3}[dtype.itemsize]
    np.testing.assert_allclose(out, attention_reference(q, k, v, mask), atol=tolerance)


def test_hidden_keys_are_never_read():
    q, k, v = normal((1, 1, 2, 8)), normal((2, 9, 8), seed=1), normal((2, 9, 8), seed=2)
    mask = np.arange(9)[None, None] < 4
    clean = attend(*map(jnp.asarray, (q, k, v, mask)), accum_dtype=F32)
    k[:, 4:], v[:, 4:] = 1e9, -1e9
    np.testing.assert_array_equal(attend(*map(jnp.asarray, (q, k, v, mask)), accum_dtype=F32), clean)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cache_write_touches_its_slots_only(dtype):
    cache, new = normal((3 * 2, 10, 4), dtype), normal((3, 2, 2, 4), dtype, 1)
    start = np.array([0, 5, 8], np.int32)
    out = np.asarray(jax.jit(write)(cache, new, start))
    expected = cache.reshape(3, 2, 10, 4).copy()
    for b, s in enumerate(start):
        expected[b, :, s : s + 2] = new[b]
    np.testing.assert_array_equal(out, expected.reshape(cache.shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_lookup_is_exact(dtype):
    table = normal((50, 6), dtype)
    ids = np.array([[0, 49, 7], [7, 7, 1]], np.int32)
    np.testing.assert_array_equal(jax.jit(lookup)(table, ids), table[ids])


def test_fp16_casts_saturate():
    x = jnp.asarray([1e9, -1e9, 65504.0, 1.5, jnp.inf], jnp.float32)
    assert np.asarray(narrow(x, np.dtype(np.float16))).tolist() == [
        *np.float16([FP16_LIMIT, -FP16_LIMIT, FP16_LIMIT, 1.5, FP16_LIMIT])
    ]
    assert np.isinf(np.asarray(narrow(x, F32))[4])


def test_rope_rotates_half_split_pairs():
    x = normal((1, 3, 2, 8))
    cos, sin = rope_tables(jnp.asarray([[0, 1, 1000]]), 8, 1e6)
    out = np.asarray(apply_rope(jnp.asarray(x), cos, sin))
    np.testing.assert_allclose(out[0, 0], x[0, 0], atol=1e-7)
    for k in range(4):
        angle = 1000 * 1e6 ** (-2 * k / 8)
        pair = x[0, 2, 1, k] + 1j * x[0, 2, 1, k + 4]
        turned = pair * np.exp(1j * angle)
        np.testing.assert_allclose([out[0, 2, 1, k], out[0, 2, 1, k + 4]], [turned.real, turned.imag], atol=2e-4)


def test_sinusoids():
    table = sinusoids(13, 1024)
    np.testing.assert_allclose(table[1, :3], [0.841471, 0.831686, 0.821818], atol=1e-6)
    np.testing.assert_allclose(table[1, 512:514], [0.540302, 0.555246], atol=1e-6)
    assert table[0, 0] == 0
    assert table[0, 512] == 1
