"""Linear and head: one case table for every implementation, against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax import kernels
from qwen_asr_jax.kernels.cpu import calls
from qwen_asr_jax.models.functional import split
from qwen_asr_jax.nn.layers import Embedding
from qwen_asr_jax.ops.linear import linear
from qwen_asr_jax.ops.quantize import dequantize_rows, quantize_rows
from qwen_asr_jax.ops.screen import screen_of
from qwen_asr_jax.policy import PRESETS
from tests.kernel_cases import (
    BF16,
    F16,
    F32,
    IMPLEMENTATIONS,
    MIXED_POLICIES,
    needs_kernels,
    normal,
    under,
)

I8 = np.dtype(np.int8)
WEIGHTS = [F32, BF16, F16, I8]
ROWS = [1, 2, 3, 7, 8, 9, 13, 158]
SMALLEST = 2.0**-126
"""The smallest normal float32 and bfloat16: below it, XLA and some instructions take and give zero."""


def operand_dtype(dtype):
    return BF16 if dtype == I8 else dtype


def weights(shape, dtype, seed=1):
    """`(weight, scale)`."""
    if dtype != I8:
        return normal(shape, dtype, seed), None
    return tuple(np.asarray(x) for x in jax.jit(quantize_rows)(normal(shape, seed=seed)))


def run(implementation, x, weight, scale=None, bias=None):
    def call(x, weight, scale, bias):
        return linear(x, weight, bias, scale=scale, accum_dtype=F32, implementation=implementation)

    out = jax.jit(call)(x, weight, scale, bias)
    assert out.dtype == np.float32
    return np.asarray(out)


def reference(x, weight, scale=None, bias=None):
    """The result in float64, and what float32 may be away from it."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    scale = 1.0 if scale is None else scale.astype(np.float64)
    bias = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
    width = weight.shape[1]
    # Rounding of every sum, scale and bias; where denormals count as zero, all that they would have given.
    bound = (width + 3) * 2.0**-24 * (np.abs(x) @ np.abs(weight).T * scale + np.abs(bias))
    bound += np.where(np.abs(x) < SMALLEST, np.abs(x), 0) @ np.abs(weight).T * scale + SMALLEST * (width + 1)
    bound += np.abs(x) @ np.where(np.abs(weight) < SMALLEST, np.abs(weight), 0).T * scale
    return x @ weight.T * scale + bias, bound


def integer_rounding(x, weight, scale):
    """What native kernels lose on the operands of int8 weights, which they round to 16-bit integers for few rows."""
    if scale is None or x.shape[0] > 8:
        return 0.0
    steps = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True) / 32767
    return 0.5001 * steps * np.abs(weight.astype(np.float64)).sum(axis=1) * scale


def assert_product(implementation, x, weight, scale=None, bias=None):
    out = run(implementation, x, weight, scale, bias)
    wanted, bound = reference(x, weight, scale, bias)
    if implementation == "cpu":
        bound = bound + integer_rounding(x, weight, scale)
    wrong = np.abs(out - wanted) - bound
    assert (wrong <= 0).all(), f"{wrong.max()} at {np.unravel_index(wrong.argmax(), wrong.shape)}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
class TestLinear:
    @pytest.mark.parametrize("rows", ROWS)
    def test_products(self, implementation, dtype, rows):
        for features, width in ((1, 1), (7, 5), (33, 257), (300, 96)):
            weight, scale = weights((features, width), dtype)
            bias = normal((features,), seed=2) if features % 2 else None
            assert_product(implementation, normal((rows, width), operand_dtype(dtype)), weight, scale, bias)

    @pytest.mark.parametrize("rows", [1, 4, 20])
    def test_wide_products(self, implementation, dtype, rows):
        """Several pieces of work, several blocks of depth."""
        weight, scale = weights((517, 3001), dtype)
        assert_product(implementation, normal((rows, 3001), operand_dtype(dtype)), weight, scale)

    @pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 11)])
    def test_leading_axes(self, implementation, dtype, shape):
        weight, scale = weights((12, 16), dtype)
        x = normal((*shape, 16), operand_dtype(dtype))
        out = run(implementation, x, weight, scale)
        assert out.shape == (*shape, 12)
        flat = run(implementation, x.reshape(-1, 16), weight, scale)
        np.testing.assert_array_equal(out.reshape(-1, 12), flat)

    @pytest.mark.parametrize("rows", [1, 3, 9, 40])
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_stays_so_in_its_row(self, implementation, dtype, rows, bad):
        weight, scale = weights((37, 50), dtype)
        x = normal((rows, 50), operand_dtype(dtype))
        x[rows // 2, 44] = bad
        if dtype == F16 and not np.isnan(bad):
            return  # the modules' casts saturate before this, so nobody relies on it
        out = run(implementation, x, weight, scale)
        assert not np.isfinite(out[rows // 2]).any()
        assert np.isfinite(np.delete(out, rows // 2, axis=0)).all()

    @pytest.mark.parametrize("rows", [1, 2, 8, 9, 20])
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_weight_that_is_not_finite_spoils_its_output(self, implementation, dtype, rows, bad):
        weight, scale = weights((37, 50), dtype)
        if dtype == I8:
            scale = scale.copy()
            scale[31] = np.nan  # as `quantize_rows` says it
        else:
            weight[31, 7] = bad
        out = run(implementation, normal((rows, 50), operand_dtype(dtype)), weight, scale)
        assert not np.isfinite(out[:, 31]).any()
        assert np.isfinite(np.delete(out, 31, axis=1)).all()

    @pytest.mark.parametrize("rows", [1, 3, 9])
    def test_denormals(self, implementation, dtype, rows):
        """Those of float16 are normal float32 values, and exact; of the others, some instructions take zero."""
        weight, scale = weights((19, 70), dtype)
        x = normal((rows, 70), operand_dtype(dtype))
        tiny = operand_dtype(dtype).type(2.0**-20 if dtype == F16 else 2.0**-130)
        x[:, ::3] = tiny
        if dtype != I8:
            weight[::2, ::5] = tiny
        assert_product(implementation, x, weight, scale)
        assert_product(implementation, np.full_like(x, tiny), weight, scale)

    @pytest.mark.parametrize("rows", [1, 3, 9])
    def test_zeros(self, implementation, dtype, rows):
        weight, scale = weights((19, 70), dtype)
        x = np.zeros((rows, 70), operand_dtype(dtype))
        assert not run(implementation, x, weight, scale).any()
        x = normal(x.shape, x.dtype)
        no_scale = None if scale is None else np.zeros_like(scale)
        assert not run(implementation, x, np.zeros_like(weight), no_scale).any()

    def test_large_values(self, implementation, dtype):
        weight, scale = weights((19, 70), dtype)
        x = normal((3, 70)) * np.float32([[1e-6], [1e3], [0]])
        x[2, 3] = 6e4
        assert_product(implementation, x.astype(operand_dtype(dtype)), weight, scale)

    def test_no_rows(self, implementation, dtype):
        weight, scale = weights((19, 70), dtype)
        assert run(implementation, np.zeros((0, 70), operand_dtype(dtype)), weight, scale).shape == (0, 19)


@needs_kernels
@pytest.mark.parametrize(
    "operand, stored", [(F32, BF16), (F32, F16), (F32, I8), (F16, I8), (BF16, F32), (F16, BF16)], ids=str
)
def test_a_mixture_that_the_kernels_lack_says_so(operand, stored):
    weight, scale = weights((6, 8), stored)
    x = normal((2, 8), operand)
    with pytest.raises(NotImplementedError, match=f"linear: the native kernels do not multiply {operand} by {stored}"):
        run("cpu", x, weight, scale)
    if operand.itemsize >= stored.itemsize:
        np.testing.assert_array_equal(run("auto", x, weight, scale), run("xla", x, weight, scale))


@needs_kernels
@pytest.mark.parametrize("policy", MIXED_POLICIES, ids=lambda policy: policy.name)
def test_a_policy_that_the_kernels_lack_says_so(policy):
    assert kernels.for_policy(policy) == "xla"
    with pytest.raises(NotImplementedError, match=rf"cannot compute \w+=\w+ with compute_dtype={policy.compute_dtype}"):
        kernels.for_policy(under(policy, "cpu"))


VOCABULARY, WIDTH = 1037, 80
"""Several pieces of work even in int8, and a last one that is not full."""

HEADS = [PRESETS[name] for name in ("fp32", "bf16", "fp16", "int8_all")]


def greedy(policy, implementation, table, x, screened=False):
    """`(tokens, log-probabilities, logits in float64)` of a head with these values."""
    definition, _ = split(Embedding(*table.shape, policy=under(policy, implementation)))
    weight, scale = jnp.asarray(table).astype(policy.compute), None
    exact = np.asarray(weight)
    if policy.head == I8:
        weight, scale = quantize_rows(weight)
        exact = np.asarray(dequantize_rows(weight, scale, F32))
    params = {"weight": weight} | ({} if scale is None else {"scale": scale})
    screen = screen_of(weight) if screened else None
    token, log_probability = jax.jit(lambda p, s, x: definition.bind(p).greedy(x, s))(params, screen, x)
    assert (token.dtype, log_probability.dtype) == (np.int32, np.float32)
    if policy.head != I8 or implementation == "xla" or x.shape[0] > 16:  # else the operands are rounded to 16-bit integers
        x = x.astype(policy.compute)
    return np.asarray(token), np.asarray(log_probability), x.astype(float) @ exact.astype(float).T


def log_probabilities(logits):
    top = logits.max(axis=1, keepdims=True)
    return -np.log(np.exp(logits - top).sum(axis=1))


WAYS = [
    *(pytest.param(policy, "xla", False, id=f"{policy.name}-xla") for policy in HEADS),
    *(pytest.param(policy, "cpu", False, id=f"{policy.name}-cpu", marks=needs_kernels) for policy in HEADS),
    *(
        pytest.param(policy, "cpu", True, id=f"{policy.name}-screened", marks=needs_kernels)
        for policy in HEADS
        if policy.head != I8
    ),
]


@pytest.mark.parametrize("policy, implementation, screened", WAYS)
class TestGreedy:
    @pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 16, 17])
    def test_the_largest_logit(self, policy, implementation, screened, rows):
        table, x = 0.1 * normal((VOCABULARY, WIDTH)), normal((rows, WIDTH), seed=rows)
        token, log_probability, logits = greedy(policy, implementation, table, x, screened)
        by_size = np.sort(logits, axis=1)
        clear = by_size[:, -1] - by_size[:, -2] > 1e-4 * np.abs(logits).max()
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(token[clear], logits.argmax(axis=1)[clear])
        # The sum of a screened head is that of logits in int8.
        error = np.asarray(screen_of(jnp.asarray(table)).error) if screened else np.zeros(1)
        allowed = error.max() * np.linalg.norm(x, axis=1) + (1e-3 if policy.head == I8 else 2e-5)
        assert (np.abs(log_probability - log_probabilities(logits)) <= allowed).all()

    @pytest.mark.parametrize("rows", [1, 3, 16])
    def test_of_equals_the_first_wins(self, policy, implementation, screened, rows):
        table, x = 0.1 * normal((VOCABULARY, WIDTH)), normal((rows, WIDTH), seed=rows)
        table[[1036, 700, 411, 5]] = 0.3 * x[0]
        token, _, logits = greedy(policy, implementation, table, x, screened)
        assert logits[0].argmax() == 5
        assert token[0] == 5

    def test_one_value_for_all(self, policy, implementation, screened):
        token, log_probability, _ = greedy(
            policy, implementation, np.zeros((VOCABULARY, WIDTH), F32), normal((2, WIDTH)), screened
        )
        assert token.tolist() == [0, 0]
        np.testing.assert_allclose(log_probability, -np.log(VOCABULARY), rtol=1e-6)

    @pytest.mark.parametrize("rows", [1, 5, 16])
    def test_a_nan_in_a_row_of_the_head_is_chosen(self, policy, implementation, screened, rows):
        """As by `argmax`: what is broken must show, not lose."""
        table, x = 0.1 * normal((VOCABULARY, WIDTH)), normal((rows, WIDTH))
        table[[1001, 830], 4] = np.nan
        token, log_probability, _ = greedy(policy, implementation, table, x, screened)
        assert (token == 830).all()
        assert np.isnan(log_probability).all()

    def test_a_nan_in_an_operand_stays_in_its_row(self, policy, implementation, screened):
        table, x = 0.1 * normal((VOCABULARY, WIDTH)), normal((3, WIDTH))
        x[1, 7] = np.nan
        token, log_probability, logits = greedy(policy, implementation, table, x, screened)
        assert token.tolist() == [logits[0].argmax(), 0, logits[2].argmax()]
        assert np.isnan(log_probability).tolist() == [False, True, False]


def head(x, weight, screen):
    return jax.jit(lambda x, weight, screen: calls.head(x, calls.Matrix(weight), screen))(x, weight, screen)


@needs_kernels
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_a_screen_finds_what_int8_cannot_tell_apart(dtype):
    """Rows that differ by a unit in the last place of one value, all of one quantised row: the exact logits decide."""
    x = normal((8, WIDTH))
    base = normal((WIDTH,), dtype)
    table = np.tile(base, (VOCABULARY, 1))
    at = np.abs(base.astype(float)).argsort()[WIDTH // 2]
    steps = np.random.default_rng(0).permutation(VOCABULARY).astype(float) % 7
    table[:, at] = (base[at].astype(float) * (1 + steps * float(jnp.finfo(dtype).eps))).astype(dtype)
    table[900] = base
    table[900, at] = (base[at].astype(float) * (1 + (64 if dtype == F32 else 8) * float(jnp.finfo(dtype).eps))).astype(dtype)
    x[:, at] = 30 * np.sign(base[at].astype(float))
    weight, screen = jnp.asarray(table), screen_of(jnp.asarray(table))
    plain, screened = head(x, weight, None), head(x, weight, screen)
    np.testing.assert_array_equal(screened[0], plain[0])
    np.testing.assert_allclose(screened[1], plain[1], rtol=1e-6)


@needs_kernels
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_screened_tokens_are_those_of_the_whole_head(dtype, seed):
    """Heads whose rows have very different sizes, and hidden states that meet many of them almost alike."""
    table = normal((VOCABULARY, WIDTH), seed=seed) * np.logspace(-3, 0, VOCABULARY)[:, None]
    weight = jnp.asarray(table.astype(dtype))
    x = normal((8, WIDTH), seed=seed) * np.logspace(-4, 4, 8).astype(F32)[:, None]
    plain, screened = head(x, weight, None), head(x, weight, screen_of(weight))
    np.testing.assert_array_equal(screened[0], plain[0])
    np.testing.assert_allclose(screened[1], plain[1], rtol=1e-6)
