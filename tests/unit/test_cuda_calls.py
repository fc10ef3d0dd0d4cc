"""The CUDA kernels as JAX calls them, on an emulated GPU: results, caches in place, refusals; and lowered for a real one."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax import kernels, runtime
from qwen_asr_jax.bench import cuda_kernels
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.errors import BackendError
from qwen_asr_jax.kernels import gpu
from qwen_asr_jax.kernels.gpu import calls, programs
from qwen_asr_jax.kernels.gpu.calls import DecoderWeights, Matrix
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.policy import PRESETS
from tests.audio_samples import synthetic
from tests.cuda_emulation import emulated
from tests.kernel_cases import BF16, F16, F32, normal

I8, I32 = np.dtype(np.int8), np.dtype(np.int32)
WIDTH, INNER, HEADS, KEY_HEADS, HEAD, SLOTS, VOCAB, EPS = 64, 96, 4, 2, 16, 40, 100, 1e-6
PROJECTED = (HEADS + 2 * KEY_HEADS) * HEAD
PREFIX = r"INVALID_ARGUMENT: qwen_asr_jax CUDA kernel: "
TYPES = [(F32, F32, 2), (BF16, BF16, 1), (I8, F16, 3)]
"""Weights, cache and rows for which tests/native/gpu/shapes.py has emulated programs."""


@pytest.fixture
def here(monkeypatch):
    return emulated(monkeypatch)


def matrix(rows, cols, dtype, seed):
    values = normal((rows, cols), seed=seed) / np.sqrt(cols)
    if dtype != I8:
        return Matrix(jnp.asarray(values.astype(dtype)))
    scale = np.abs(values).max(axis=1) / 127
    return Matrix(jnp.asarray(np.round(values / scale[:, None]).astype(np.int8)), jnp.asarray(scale.astype(F32)))


def layer(dtype, seed=0):
    norms = tuple(jnp.asarray(1 + 0.1 * normal((n,), seed=seed + i)) for i, n in enumerate((WIDTH, WIDTH, HEAD, HEAD)))
    shapes = [(PROJECTED, WIDTH), (WIDTH, HEADS * HEAD), (2 * INNER, WIDTH), (WIDTH, INNER)]
    return DecoderWeights(norms, *(matrix(*shape, dtype, seed + i) for i, shape in enumerate(shapes)))


def operands(rows, cache_dtype, layers):
    angles = normal((rows, 1, HEAD // 2), seed=1)
    caches = [normal((rows * KEY_HEADS, SLOTS, HEAD), seed=i).astype(cache_dtype) for i in range(2 * layers)]
    return {
        "x": jnp.asarray(normal((rows, 1, WIDTH))),
        "rope": (jnp.cos(angles), jnp.sin(angles)),
        "k_cache": tuple(map(jnp.asarray, caches[:layers])),
        "v_cache": tuple(map(jnp.asarray, caches[layers:])),
        "start": jnp.asarray([5, 0, SLOTS - 1][:rows], jnp.int32),
    }


def times(x, m):
    x = x.astype(BF16 if m.weight.dtype == I8 else m.weight.dtype).astype(F32)
    return x @ np.asarray(m.weight, F32).T * (1 if m.scale is None else np.asarray(m.scale))


def rms(x, norm):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * np.asarray(norm)


def reference(x, rope, k_cache, v_cache, start, layers):
    """The same in NumPy."""
    x, start = np.asarray(x)[:, 0], np.asarray(start)
    cos, sin = (np.asarray(each) for each in rope)
    dtype = k_cache[0].dtype
    k_cache, v_cache = ([np.array(each) for each in caches] for caches in (k_cache, v_cache))
    for of_layer, keys, values in zip(layers, k_cache, v_cache, strict=True):
        projected = times(rms(x, of_layer.norms[0]), of_layer.qkv).reshape(len(x), -1, HEAD)
        attended = np.zeros((len(x), HEADS, HEAD), F32)

        def rotated(heads, norm):
            one, two = np.split(rms(heads, norm), 2, axis=-1)
            return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(dtype)

        q = rotated(projected[:, :HEADS], of_layer.norms[2]).astype(F32)
        k = rotated(projected[:, HEADS : HEADS + KEY_HEADS], of_layer.norms[3])
        for row, slot in enumerate(start):
            for head in range(KEY_HEADS):
                at = row * KEY_HEADS + head
                keys[at, slot], values[at, slot] = k[row, head], projected[row, HEADS + KEY_HEADS + head]
                for query in range(head * HEADS // KEY_HEADS, (head + 1) * HEADS // KEY_HEADS):
                    scores = keys[at, : slot + 1].astype(F32) @ q[row, query] / np.sqrt(HEAD)
                    weights = np.exp(scores - scores.max())
                    attended[row, query] = weights / weights.sum() @ values[at, : slot + 1].astype(F32)
        x = x + times(attended.reshape(len(x), -1), of_layer.o)
        gate, up = np.split(times(rms(x, of_layer.norms[1]), of_layer.gate_up), 2, axis=-1)
        x = x + times(gate / (1 + np.exp(-gate)) * up, of_layer.down)
    return x[:, None], k_cache, v_cache


def near(found, wanted, dtype):
    """float32 but for the order of sums; else a rounding of a factor that goes the other way."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert np.abs(found - wanted).max() <= (3e-6 if dtype == F32 else 2.0**-7) * np.abs(wanted).max()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("weights, cache, rows", TYPES)
def test_decoder_layers_agree(here, weights, cache, rows, overlap):
    layers = [layer(weights, seed) for seed in (0, 10, 20)]
    given = operands(rows, cache, len(layers))
    wanted = reference(**given, layers=layers)

    def step(given, layers):
        return calls.decoder_layers(**given, layers=layers, eps=EPS, overlap=overlap, prefetch=overlap)

    x, k_cache, v_cache = jax.jit(lambda given: step(given, layers))(given)
    near(x, wanted[0], weights)
    assert (x.dtype, x.shape) == (F32, (rows, 1, WIDTH))
    for found, want in zip([*k_cache, *v_cache], [*wanted[1], *wanted[2]], strict=True):
        assert found.dtype == cache
        near(found, want, cache)
    assert [p.shape for p in here.loaded] == [
        (*(programs.TYPES.index(d.name) for d in (weights, cache)), rows, 64, 96, 4, 2, 16)
    ]


@pytest.mark.parametrize("weights, cache, rows", TYPES)
def test_a_loop_updates_donated_caches_in_place(here, weights, cache, rows):
    layers = [layer(weights), layer(weights, 10)]
    given = operands(rows, cache, len(layers)) | {"start": jnp.asarray([3, 0, 7][:rows], jnp.int32)}
    wanted, steps = dict(given), 4
    for _ in range(steps):
        x, k_cache, v_cache = reference(**wanted, layers=layers)
        wanted |= {"x": x, "k_cache": k_cache, "v_cache": v_cache, "start": np.asarray(wanted["start"]) + 1}

    def loop(k_cache, v_cache, x, rope, start):
        def body(_, carry):
            x, k_cache, v_cache, start = carry
            x, k_cache, v_cache = calls.decoder_layers(x, rope, k_cache, v_cache, start, layers, EPS)
            return x, k_cache, v_cache, start + 1

        return jax.lax.fori_loop(0, steps, body, (x, k_cache, v_cache, start))

    compiled = jax.jit(loop, donate_argnums=(0, 1))
    where = [each.unsafe_buffer_pointer() for each in (*given["k_cache"], *given["v_cache"])]
    x, k_cache, v_cache, _ = compiled(*(given[name] for name in ("k_cache", "v_cache", "x", "rope", "start")))
    assert [each.unsafe_buffer_pointer() for each in (*k_cache, *v_cache)] == where
    near(x, wanted["x"], BF16)  # errors of four steps
    for found, want in zip(k_cache, wanted["k_cache"], strict=True):
        near(found, want, BF16)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dtype, _, rows", TYPES)
def test_the_head_agrees(here, dtype, _, rows, overlap):
    x, weights = jnp.asarray(normal((rows, WIDTH))), matrix(VOCAB, WIDTH, dtype, 3)
    token, top = jax.jit(lambda x: calls.head(x, weights, overlap=overlap))(x)
    logits = times(np.asarray(x), weights)
    assert token.tolist() == logits.argmax(axis=-1).tolist()
    assert (token.dtype, top.dtype) == (I32, F32)
    near(top, logits.max(axis=-1), F32)


@pytest.mark.parametrize("weights, cache, rows", TYPES)
def test_the_check_of_a_real_gpu_finds_nothing_wrong_here(here, weights, cache, rows):
    text = dataclasses.replace(
        MODELS["tiny"].text,
        vocab_size=VOCAB,
        embed_dim=WIDTH,
        mlp_dim=INNER,
        num_heads=HEADS,
        num_kv_heads=KEY_HEADS,
        head_dim=HEAD,
    )
    case = cuda_kernels.Case(text, weights.name, cache.name, rows, 2, (1, 33, 40), SLOTS)
    assert cuda_kernels.deviation(case, overlap=True) < (1e-5 if weights == F32 else 2.0**-7)
    ms, rate = cuda_kernels.step_ms(case, steps=2, repeats=1, overlap=False, prefetch=True)
    layers, head = cuda_kernels.random_layers(case)
    assert rate * ms == pytest.approx(case.step_bytes(layers, head) / 1e6)


def raw(here, changes, aliases=None, **attributes):
    """A call whose operands are not the package's."""
    one = layer(F32)
    given = operands(2, F32, 1)
    flat = [given["x"], *given["rope"], given["start"], *given["k_cache"], *given["v_cache"], *one.norms]
    flat += [m.weight for m in one.matrices]
    for i, value in changes.items():
        flat[i] = jnp.asarray(value)
    cache = jax.ShapeDtypeStruct(flat[4].shape, flat[4].dtype)
    scratch = jax.ShapeDtypeStruct((attributes.pop("scratch", 1 << 16),), jnp.uint8)
    out = [jax.ShapeDtypeStruct(flat[0].shape, jnp.float32), scratch, cache, cache]
    settings = {"eps": np.float32(EPS), "overlap": False, "prefetch": False}
    target = gpu.target("qwen_asr_cuda_decoder_layers")
    native = jax.ffi.ffi_call(target, out, input_output_aliases={4: 2, 5: 3} if aliases is None else aliases)
    return jax.block_until_ready(jax.jit(lambda *a: native(*a, **settings))(*flat))


@pytest.mark.parametrize(
    "message, changes, more",
    [
        ("x is", {0: np.zeros((2, 2, WIDTH), F32)}, {}),
        ("a start and a rotation are needed per row", {3: np.zeros(3, I32)}, {}),
        ("a start and a rotation are needed per row", {1: np.zeros((2, 1, HEAD), F32)}, {}),
        ("the caches are not updated in place", {}, {"aliases": {}}),
        ("the caches are not alike", {5: np.zeros((4, SLOTS + 1, HEAD), F32)}, {"aliases": {4: 2}}),
        ("a layer's norm is missing, not float32 or of another size", {8: np.zeros(HEAD + 1, F32)}, {}),
        (r"a weight is not \[128, 64\]", {10: np.zeros((PROJECTED + 1, WIDTH), F32)}, {}),
        (r"a weight is not \[192, 64\]", {12: np.zeros((INNER, WIDTH), F32)}, {}),
        ("weights of different types", {12: np.zeros((2 * INNER, WIDTH), BF16)}, {}),
        ("int8 weights, and no others, have scales", {10: np.zeros((PROJECTED, WIDTH), I8)}, {}),
        ("the MLP's width must be a multiple of 16", {13: np.zeros((WIDTH, 100), F32)}, {}),
        ("too little scratch memory", {}, {"scratch": 100}),
    ],
)
def test_handlers_refuse(here, message, changes, more):
    with pytest.raises(Exception, match=PREFIX + message):
        raw(here, changes, **more)


def test_a_shape_that_nobody_loaded_is_named(here):
    more = operands(2, F16, 1)
    with pytest.raises(Exception, match=PREFIX + "not compiled for this shape in this process"):
        raw(here, {4: more["k_cache"][0], 5: more["v_cache"][0]})


@pytest.mark.parametrize(
    "message, rows, change",
    [
        ("at most 8 rows, got 9", 9, {}),
        ("none for int32, only for", 1, {"cache": I32}),
        ("heads must be 16, 32, 64 or 128 wide, got 24", 1, {"head": 24}),
        ("none for float64, only for float32, bfloat16, float16, int8", 1, {"weights": np.dtype(np.float64)}),
    ],
)
def test_what_does_not_fit_is_refused_when_traced(here, message, rows, change):
    head, dtype = change.get("head", HEAD), change.get("weights", F32)
    shapes = [((HEADS + 2 * KEY_HEADS) * head, WIDTH), (WIDTH, HEADS * head), (2 * INNER, WIDTH), (WIDTH, INNER)]
    weights = DecoderWeights((), *(Matrix(jax.ShapeDtypeStruct(shape, dtype)) for shape in shapes))
    x = jax.ShapeDtypeStruct((rows, 1, WIDTH), F32)
    cache = jax.ShapeDtypeStruct((rows * KEY_HEADS, SLOTS, head), change.get("cache", F32))
    with pytest.raises(NotImplementedError, match=f"implementation 'cuda'.*({message})"):
        calls.decoder_layers(x, (x, x), [cache], [cache], x, [weights], EPS)
    assert not here.loaded


@pytest.mark.parametrize("weights, cache, rows", TYPES)
def test_lowering_for_a_gpu_needs_none(weights, cache, rows):
    if (reason := calls.fits(programs.Program("head", (0, 1, 64, 100)))) is not None:
        pytest.skip(reason)
    assert gpu.unavailable() == "they are for NVIDIA GPUs"
    layers = [layer(weights), layer(weights, 10)]
    given = operands(rows, cache, len(layers))

    def step(k_cache, v_cache, rest):
        x, k_cache, v_cache = calls.decoder_layers(**rest, k_cache=k_cache, v_cache=v_cache, layers=layers, eps=EPS)
        return calls.head(x[:, 0], matrix(VOCAB, WIDTH, weights, 3)), k_cache, v_cache

    rest = {name: given[name] for name in ("x", "rope", "start")}
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(given["k_cache"], given["v_cache"], rest)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    targets = re.findall(r"stablehlo\.custom_call @(qwen_asr_cuda\w+)\(", text)
    assert targets == [f"{handler}_v{gpu.ABI}" for handler in gpu.HANDLERS]
    per_layer = 14 if weights == I8 else 10
    first, second = 4, 4 + per_layer
    for result, operand in [(2, first), (3, first + 1), (4, second), (5, second + 1)]:
        assert re.search(rf"output_tuple_indices = \[{result}\],\s*operand_index = {operand},", text), (result, operand)
    assert "overlap = false" in text
    assert "prefetch = false" in text
    aliased = re.findall(r"tf\.aliasing_output = (\d+)", text)
    assert len(aliased) == 4


@pytest.mark.parametrize("policy", ["fp32", "bf16", "int8"])
def test_the_engine_decodes_with_them(here, tiny_original, policy):
    """The whole way: a model under `implementation=cuda` says what plain XLA says, alone and in batches."""
    clips = [synthetic(1.0 + i, i) for i in range(2)]
    with runtime.lowering_for("gpu"):
        xla = load_model(tiny_original, policy, implementation="xla")
        cuda = load_model(tiny_original, policy, implementation="cuda")
        assert kernels.describe(cuda.engine.policy) == "cuda"
        for each in (clips[:1], clips):
            found = [result.tokens for result in cuda.transcribe(each, max_new_tokens=20)]
            assert found == [result.tokens for result in xla.transcribe(each, max_new_tokens=20)]
    kinds = {(program.kind, program.shape[0], program.shape[-1]) for program in here.loaded}
    assert {kind for kind, _, _ in kinds} == {"decoder", "head"}


def test_shapes_without_kernels_are_xlas(here, tiny_original):
    """More rows than they take at once, and prompts."""
    with runtime.lowering_for("gpu"):
        model = load_model(tiny_original, "fp32", implementation="cuda")
        results = model.transcribe([synthetic(1.0, i) for i in range(9)], max_new_tokens=6)
        assert len({len(r.tokens) for r in results}) >= 1
        assert not [program for program in here.loaded if program.shape[2 if program.kind == "decoder" else 1] > 8]
        xla = load_model(tiny_original, "fp32", implementation="xla")
        assert [r.tokens for r in results] == [
            r.tokens for r in xla.transcribe([synthetic(1.0, i) for i in range(9)], max_new_tokens=6)
        ]


def test_they_are_never_chosen_unasked_and_want_fused_projections(here):
    with runtime.lowering_for("gpu"):
        assert kernels.choose("auto") == "xla"
        assert kernels.choose("cuda") == "cuda"
        separate = dataclasses.replace(PRESETS["bf16"], implementation="cuda", projections="separate")
        with pytest.raises(NotImplementedError, match="wants projections=fused"):
            kernels.for_policy(separate)


def test_without_an_nvidia_gpu_they_are_refused_by_name(tiny_original):
    with pytest.raises(BackendError, match=r"implementation 'cuda' .* is not available: they are for NVIDIA GPUs"):
        load_model(tiny_original, "bf16", implementation="cuda")
