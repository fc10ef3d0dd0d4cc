"""What the native handlers say to calls that the package never makes, and that they update caches in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax.checkpoint.load import load_checkpoint
from qwen_asr_jax.config import read_config
from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.state import new_state
from qwen_asr_jax.kernels import cpu
from qwen_asr_jax.policy import PRESETS
from tests.kernel_cases import BF16, F16, F32, IMPLEMENTATIONS, needs_kernels, normal, under

I8, I32 = np.dtype(np.int8), np.dtype(np.int32)
NONE = np.zeros(0, F32)
PREFIX = r"INVALID_ARGUMENT: qwen_asr_jax CPU kernel: "


def call(handler, out, *operands, aliases=None, **attributes):
    """One native call; what it returns, or raises."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in out]
    native = jax.ffi.ffi_call(cpu.target(handler), shapes, input_output_aliases=aliases or {})
    return jax.block_until_ready(jax.jit(lambda *a: native(*a, **attributes))(*operands))


def assert_refused(message, *args, **kwargs):
    with pytest.raises(Exception, match=PREFIX + message) as e:
        call(*args, **kwargs)
    assert isinstance(e.value, RuntimeError | ValueError)
    assert str(e.value).strip().count("\n") == 0


def array(shape, dtype=F32):
    return np.zeros(shape, dtype)


@needs_kernels
@pytest.mark.parametrize(
    "message, x, weight, scale, bias",
    [
        ("operand and weights do not fit", array((2, 9)), array((4, 8)), NONE, NONE),
        ("operand and weights do not fit", array(8), array((4, 8)), NONE, NONE),
        ("a weight is not a matrix", array((2, 8)), array((4, 8, 1)), NONE, NONE),
        ("no such weight type", array((2, 8)), array((4, 8), I32), NONE, NONE),
        ("int8 weights need a scale per row", array((2, 8)), array((4, 8), I8), NONE, NONE),
        ("int8 weights need a scale per row", array((2, 8)), array((4, 8), I8), array(3), NONE),
        ("a vector does not fit", array((2, 8)), array((4, 8)), NONE, array(5)),
    ],
)
def test_linear_refuses(message, x, weight, scale, bias):
    assert_refused(message, "qwen_asr_linear", [((2, 4), F32)], x, weight, scale, bias)


@needs_kernels
@pytest.mark.parametrize(
    "message, changes",
    [
        ("operand and weights do not fit", {0: array((2, 9))}),
        ("no such weight type", {1: array((40, 8), I32)}),
        ("int8 weights need no screen", {1: array((40, 8), I8), 2: array(40)}),
        ("weights of different types", {3: array((40, 8), BF16)}),
        ("the screen does not fit", {3: array((39, 8), I8), 4: array(39)}),
        ("the screen does not fit", {3: array((40, 9), I8)}),
        ("int8 weights need a scale per row", {4: array(39)}),
        ("a screen needs an error per row", {5: array(39)}),
    ],
)
def test_head_refuses(message, changes):
    operands = [array((2, 8)), array((40, 8)), NONE, array((40, 8), I8), array(40), array(40)]
    for i, value in changes.items():
        operands[i] = value
    assert_refused(message, "qwen_asr_head", [((2,), I32), ((2,), F32), ((2,), F32)], *operands)


BATCH, TIME, WIDTH, KEY_HEADS, GROUPS, HEAD, SLOTS, INNER = 2, 3, 10, 2, 2, 4, 16, 12
KV = KEY_HEADS * HEAD
CACHE = (BATCH * KEY_HEADS, SLOTS, HEAD)
OUT = [((BATCH, TIME, WIDTH), F32), (CACHE, F32), (CACHE, F32)]
ALIASES = {4: 1, 5: 2}
Q, K, V, OUT_PROJ, GATE, UP, DOWN = range(10, 17)


def layer_operands():
    """Those of `qwen_asr_decoder_layers`, for one layer."""
    shapes = [(GROUPS * KV, WIDTH), (KV, WIDTH), (KV, WIDTH), (WIDTH, GROUPS * KV), *[(INNER, WIDTH)] * 2, (WIDTH, INNER)]
    rotation = array((BATCH, TIME, HEAD // 2))
    operands = [normal((BATCH, TIME, WIDTH)), rotation, rotation, np.asarray([0, SLOTS - TIME], I32)]
    operands += [array(CACHE), array(CACHE), *(np.ones(n, F32) for n in (WIDTH, WIDTH, HEAD, HEAD))]
    operands += [normal(shape) for shape in shapes]
    return operands


def replaced(changes):
    operands = layer_operands()
    for i, value in changes.items():
        operands[i] = value
    return operands


@needs_kernels
@pytest.mark.parametrize(
    "message, changes",
    [
        ("a row starts outside of its cache", {3: np.asarray([0, SLOTS - TIME + 1], I32)}),
        ("a row starts outside of its cache", {3: np.asarray([-1, 0], I32)}),
        ("a row starts outside of its cache", {3: np.asarray([0, SLOTS], I32)}),
        ("a start and a rotation are needed per row", {3: array(3, I32)}),
        ("a start and a rotation are needed per row", {1: array((BATCH, TIME, HEAD))}),
        (r"x is \[B, T, D\]", {0: array((BATCH * TIME, WIDTH))}),
        ("no such type of weights or cache", {Q: array((GROUPS * KV, WIDTH), I32)}),
        ("weights of different types", {UP: array((INNER, WIDTH), BF16)}),
        ("weights of different types", {Q: array((GROUPS * KV, WIDTH), F16)}),
        ("a weight is not a matrix", {GATE: array(INNER * WIDTH)}),
        ("int8 weights, and no others, have scales", {Q: array((GROUPS * KV, WIDTH), I8)}),
        *(
            ("the layer's matrices do not fit each other", {i: array(shape)})
            for i, shape in [
                (Q, (GROUPS * KV + 1, WIDTH)),
                (Q, (GROUPS * KV, WIDTH + 1)),
                (K, (KV + 1, WIDTH)),
                (V, (KV, WIDTH - 1)),
                (OUT_PROJ, (WIDTH, KV)),
                (GATE, (INNER + 1, WIDTH)),
                (UP, (INNER, WIDTH + 1)),
                (DOWN, (WIDTH, INNER + 1)),
                (DOWN, (INNER, WIDTH)),
            ]
        ),
    ],
)
def test_decoder_layer_refuses(message, changes):
    assert_refused(message, "qwen_asr_decoder_layers", OUT, *replaced(changes), aliases=ALIASES, eps=np.float32(1e-6))


@needs_kernels
@pytest.mark.parametrize(
    "message, operands",
    [
        ("every layer brings 13 arguments, or 20 with scales", layer_operands()[:-1]),
        ("int8 weights, and no others, have scales", layer_operands() + [array(WIDTH)] * 7),
    ],
)
def test_decoder_layers_bring_all_that_they_have(message, operands):
    assert_refused(message, "qwen_asr_decoder_layers", OUT, *operands, aliases=ALIASES, eps=np.float32(1e-6))


@needs_kernels
def test_decoder_layers_are_of_one_shape():
    one, two = layer_operands(), layer_operands()[4:]
    two[GATE - 4], two[UP - 4], two[DOWN - 4] = (
        array((INNER + 1, WIDTH)),
        array((INNER + 1, WIDTH)),
        array((WIDTH, INNER + 1)),
    )
    aliases = {4: 1, 5: 2, 17: 3, 18: 4}
    out = [*OUT, *OUT[1:]]
    assert_refused(
        "layers of different shapes", "qwen_asr_decoder_layers", out, *one, *two, aliases=aliases, eps=np.float32(1e-6)
    )


@needs_kernels
def test_decoder_layer_refuses_caches_of_integers():
    operands = replaced({4: array(CACHE, I32), 5: array(CACHE, I32)})
    out = [OUT[0], (CACHE, I32), (CACHE, I32)]
    assert_refused("no such type", "qwen_asr_decoder_layers", out, *operands, aliases=ALIASES, eps=np.float32(1e-6))


@needs_kernels
def test_decoder_layer_refuses_caches_that_are_not_aliased():
    assert_refused(
        "the caches are not updated in place", "qwen_asr_decoder_layers", OUT, *layer_operands(), eps=np.float32(1e-6)
    )


@needs_kernels
def test_caches_that_were_not_donated_stay_as_they_were():
    """XLA copies them before the call."""
    operands = [jnp.asarray(each) for each in layer_operands()]
    found = call("qwen_asr_decoder_layers", OUT, *operands, aliases=ALIASES, eps=np.float32(1e-6))
    assert not np.asarray(operands[5]).any()
    written = np.asarray(found[2]).reshape(BATCH, KEY_HEADS, SLOTS, HEAD)
    assert written[0, :, :TIME].any()
    assert not written[0, :, TIME:].any()


def encoder_operands():
    width, inner = 12, 20
    vectors = [array(width) for _ in range(4)]
    shapes = [(width, width)] * 4 + [(inner, width), (width, inner)]
    return [array((2, 9, width)), array((2, 2), I32), *vectors, *(array(s) for s in shapes), *[NONE] * 12]


@needs_kernels
@pytest.mark.parametrize(
    "message, changes, settings",
    [
        ("the layer's matrices do not fit each other", {}, {"heads": 5}),
        ("the layer's matrices do not fit each other", {}, {"heads": 0}),
        ("the layer's matrices do not fit each other", {}, {"window": 4}),
        ("the layer's matrices do not fit each other", {6: array((12, 11))}, {}),
        ("the layer's matrices do not fit each other", {11: array((12, 21))}, {}),
        ("weights of different types", {10: array((20, 12), BF16)}, {}),
        (r"x is \[B, T, D\], valid is \[B, W\]", {1: array((3, 2), I32)}, {}),
        (r"x is \[B, T, D\], valid is \[B, W\]", {1: array(2, I32)}, {}),
        ("a vector does not fit", {18: array(11)}, {}),
        ("no such weight type", {6: array((12, 12), I32)}, {}),
    ],
)
def test_encoder_layer_refuses(message, changes, settings):
    operands = encoder_operands()
    for i, value in changes.items():
        operands[i] = value
    sizes = {name: np.int32(value) for name, value in ({"heads": 3, "window": 5} | settings).items()}
    out = [((2, 9, 12), F32)]
    assert_refused(message, "qwen_asr_encoder_layer", out, *operands, **sizes, eps=np.float32(1e-5), limit=np.float32(0))


@needs_kernels
@pytest.mark.parametrize(
    "message, x, weight, bias, out",
    [
        ("no such types", array((1, 4, 6, 2), BF16), array((3, 3, 2, 5)), array(5), ((1, 2, 3, 5), F32)),
        ("no such types", array((1, 4, 6, 2)), array((3, 3, 2, 5), I8), array(5), ((1, 2, 3, 5), I8)),
        ("no such types", array((1, 4, 6, 2)), array((3, 3, 2, 5), BF16), array(5), ((1, 2, 3, 5), F32)),
        (r"x is \[n, time", array((1, 4, 6, 2)), array((3, 3, 4, 5)), array(5), ((1, 2, 3, 5), F32)),
        (r"x is \[n, time", array((1, 4, 6, 2)), array((2, 3, 2, 5)), array(5), ((1, 2, 3, 5), F32)),
        (r"x is \[n, time", array((4, 6, 2)), array((3, 3, 2, 5)), array(5), ((1, 2, 3, 5), F32)),
        ("bias or result do not fit", array((1, 4, 6, 2)), array((3, 3, 2, 5)), array(4), ((1, 2, 3, 5), F32)),
        ("bias or result do not fit", array((1, 4, 6, 2)), array((3, 3, 2, 5)), array(5), ((1, 2, 2, 5), F32)),
    ],
)
def test_convolution_refuses(message, x, weight, bias, out):
    assert_refused(message, "qwen_asr_conv_gelu", [out], x, weight, bias)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_the_verbs_update_donated_caches_in_place(tiny_original, policy, implementation, rows):
    """One prompt block and twenty steps, and every cache is where it was."""
    policy = under(PRESETS[policy], implementation)
    config = read_config(tiny_original)
    checkpoint = load_checkpoint(tiny_original, config, policy)
    decoder, params = checkpoint.decoder, checkpoint.params["decoder"]
    state = new_state(config.text, policy, rows, 64)
    where = [each.unsafe_buffer_pointer() for each in (*state.k_cache, *state.v_cache)]
    never, tokens = jnp.asarray([-1, -1]), jnp.full(rows, 16)
    embeddings = jnp.asarray(normal((rows, 16, config.text.embed_dim)))
    state = verbs.prefill(decoder, params, state, embeddings, tokens, jnp.full(rows, 30), never, first=True)
    state, chosen = verbs.decode(decoder, params, state, never, jnp.int32(20), chunk=32)
    assert [each.unsafe_buffer_pointer() for each in (*state.k_cache, *state.v_cache)] == where
    assert state.length.tolist() == [36] * rows
    assert (np.asarray(chosen.tokens)[:, :20] >= 0).all()
    filled = np.asarray(state.k_cache[0], np.float32)
    assert filled[:, :36].any(axis=-1).all()
    assert not filled[:, 36:].any()
