"""int8: the quantiser, products and lookups with what it gives, and loading under the int8 policies from every layout."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_asr_jax.bench.cost import num_parameters, tree_bytes
from qwen_asr_jax.checkpoint.convert import convert
from qwen_asr_jax.checkpoint.key_map import SCALE, leaves
from qwen_asr_jax.checkpoint.load import load_checkpoint
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS, write_random_checkpoint
from qwen_asr_jax.config import read_config
from qwen_asr_jax.errors import CheckpointError
from qwen_asr_jax.ops.embedding import lookup
from qwen_asr_jax.ops.linear import linear
from qwen_asr_jax.ops.quantize import dequantize_rows, quantize_rows
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.policy import PRESETS
from tests.audio_samples import synthetic

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
DTYPES = [F32, np.dtype(np.float16), BF16]
INT8_POLICIES = ["int8", "int8_all"]
Q_PROJ = "thinker.model.layers.1.self_attn.q_proj.weight"


def normal(shape, dtype=F32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def quantized(weight):
    values, scale = jax.jit(quantize_rows)(weight)
    return np.asarray(values), np.asarray(scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_the_nearest_on_each_rows_grid(dtype):
    weight = normal((40, 65), dtype) * np.logspace(-3, 2, 40).astype(dtype)[:, None]
    values, scale = quantized(weight)
    exact = weight.astype(np.float64)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    np.testing.assert_allclose(scale, np.abs(exact).max(axis=1) / 127, rtol=2e-7)
    assert (np.abs(values.astype(int)).max(axis=1) == 127).all()
    assert (np.abs(values * scale[:, None].astype(np.float64) - exact) <= 0.5001 * scale[:, None]).all()


def test_halves_go_to_the_even_neighbour():
    row = np.float32([127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 126.5])
    values, scale = quantized(row[None])
    assert scale.tolist() == [1.0]
    assert values[0].tolist() == [127, 0, 2, 2, 0, -2, -126, 126]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_zeros_stay_zero(dtype):
    values, scale = quantized(np.zeros((2, 9), dtype))
    assert not values.any()
    assert scale.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, width", [(3, 16), (64, 1024)])
def test_a_row_that_is_not_finite_does_not_become_finite(dtype, bad, rows, width):
    weight = normal((rows, width), dtype)
    weight[1, 5] = bad
    values, scale = quantized(weight)
    assert np.isnan(scale).nonzero()[0].tolist() == [1]
    out = np.asarray(linear(jnp.ones((1, width)), jnp.asarray(values), scale=jnp.asarray(scale), accum_dtype=F32))
    assert np.isnan(out[0]).nonzero()[0].tolist() == [1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("features, width", [(7, 5), (1187, 640), (130, 1024)])
def test_linear(dtype, rows, features, width):
    x, bias = normal((rows, width), dtype), normal((features,), seed=2)
    values, scale = quantized(normal((features, width), seed=1))
    out = jax.jit(lambda x, w, s, b: linear(x, w, b, scale=s, accum_dtype=F32))(x, values, scale, bias)
    assert out.dtype == np.float32
    x, values, scale = (a.astype(np.float64) for a in (x, values, scale))
    # Operands are exact in the compute dtype: what is left is float32 rounding of each product, sum, scale and bias. Native
    # kernels round the operands of few rows to 16-bit integers first.
    tolerance = (width + 3) * 2.0**-24 * (np.abs(x) @ np.abs(values).T * scale + np.abs(bias))
    tolerance += 0.5001 / 32767 * np.abs(x).max(axis=1, keepdims=True) * np.abs(values).sum(axis=1) * scale
    assert (np.abs(out - (x @ values.T * scale + bias)) <= tolerance).all()


def test_lookup_scales_the_rows_it_finds():
    values, scale = quantized(normal((50, 6)))
    ids = np.array([[0, 49, 7], [7, 7, 1]], np.int32)
    out = jax.jit(lookup)(values, ids, scale)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, values[ids].astype(np.float32) * scale[ids][..., None])


def params_of(model_dir, policy):
    return load_checkpoint(model_dir, read_config(model_dir), PRESETS[policy]).params


def assert_bit_equal(found, wanted):
    found, wanted = dict(leaves(found)), dict(leaves(wanted))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        assert found[path].dtype == leaf.dtype, path
        assert np.asarray(found[path]).tobytes() == np.asarray(leaf).tobytes(), path


@pytest.mark.parametrize("policy", INT8_POLICIES)
def test_what_is_quantised_and_what_is_not(tiny_original, policy):
    params, whole = params_of(tiny_original, policy), dict(leaves(params_of(tiny_original, "bf16")))
    found = dict(leaves(params))
    assert {path for path in found if path[-1] != SCALE} == set(whole)
    for path, leaf in whole.items():
        head = path[1] == "embed_tokens"
        if leaf.ndim == 2 and (policy == "int8_all" or not head):
            values, scale = quantized(np.asarray(leaf))
            np.testing.assert_array_equal(found[path], values)
            np.testing.assert_array_equal(found[*path[:-1], SCALE], scale)
        else:
            assert found[path].dtype == leaf.dtype, path
            assert path[-1] == "bias" or (*path[:-1], SCALE) not in found
    assert num_parameters(params) == num_parameters(params_of(tiny_original, "bf16"))
    assert tree_bytes(params) == sum(leaf.nbytes for leaf in found.values())


@pytest.mark.parametrize("policy", INT8_POLICIES)
@pytest.mark.parametrize("stored", ["bf16", "fp32", "fp16"])
def test_a_stored_dtype_that_loses_nothing_changes_nothing(tmp_path, tiny_original, stored, policy):
    """The tiny checkpoint's values are bfloat16 ones; float16 drops the last bits of the small ones."""
    convert(tiny_original, tmp_path / "stored", PRESETS[stored])
    found, wanted = params_of(tmp_path / "stored", policy), params_of(tiny_original, policy)
    if stored != "fp16":
        assert_bit_equal(found, wanted)
        return
    found, wanted = dict(leaves(found)), dict(leaves(wanted))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        assert found[path].dtype == leaf.dtype
        assert np.abs(np.asarray(found[path], np.float32) - np.asarray(leaf, np.float32)).max() <= 1, path


@pytest.fixture(scope="module", params=INT8_POLICIES)
def orbax(request, tiny_original, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / request.param
    convert(tiny_original, path, PRESETS[request.param])
    return path, request.param


def test_an_int8_orbax_directory_says_the_same_tokens(tiny_original, orbax):
    path, policy = orbax
    samples = synthetic(2.0, seed=3)
    models = [load_model(each, policy=policy) for each in (tiny_original, path)]
    assert_bit_equal(*(model.engine.checkpoint.params for model in models))
    found, wanted = (model.transcribe(samples, max_new_tokens=16).tokens for model in models)
    assert found == wanted
    marker = json.loads((path / "qwen_asr_jax.json").read_text())
    assert (marker["policy"], marker["layer_dtype"]) == (policy, "int8")


@pytest.mark.parametrize("policy", ["fp32", "bf16", "fp16", *INT8_POLICIES])
def test_an_int8_orbax_directory_loads_under_any_policy(tiny_original, orbax, policy):
    """Stored int8 gives its own values back; stored bfloat16 under `int8_all` is quantised as from any other layout."""
    path, stored = orbax
    found, kept = dict(leaves(params_of(path, policy))), dict(leaves(params_of(path, stored)))
    assert found.keys() == dict(leaves(params_of(tiny_original, policy))).keys()
    for leaf_path, leaf in found.items():
        scale = kept.get((*leaf_path[:-1], SCALE))
        if leaf_path[-1] == "weight" and leaf.dtype != np.int8 and scale is not None:
            wanted = dequantize_rows(kept[leaf_path], scale, leaf.dtype)
            assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes(), leaf_path
    load_model(path, policy=policy).transcribe(synthetic(0.5), max_new_tokens=2)


def test_an_untied_head_is_quantised_too(tmp_path):
    tiny = MODELS["tiny"]
    untied = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, tie_word_embeddings=False))
    write_random_checkpoint(tmp_path / "untied", untied)
    decoder = params_of(tmp_path / "untied", "int8_all")["decoder"]
    assert all(decoder[name]["weight"].dtype == np.int8 and SCALE in decoder[name] for name in ("embed_tokens", "lm_head"))
    load_model(tmp_path / "untied", policy="int8_all").transcribe(synthetic(0.5), max_new_tokens=2)


def test_a_stored_scale_is_an_unknown_tensor(tmp_path, tiny_original):
    """Scales are derived: in a safetensors file one is as strange as any other."""
    model_dir = shutil.copytree(tiny_original, tmp_path / "copy")
    tensors = load_file(model_dir / "model.safetensors")
    name = Q_PROJ.replace("weight", SCALE)
    save_file(tensors | {name: np.ones(64, np.float32)}, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} is unknown"):
        params_of(model_dir, "int8")


def test_an_orbax_directory_without_a_scale_is_refused(tmp_path, tiny_original, monkeypatch):
    from qwen_asr_jax.checkpoint import orbax_store

    save = orbax_store.save

    def save_without(source, out, params, policy):
        del params["decoder"]["layers"][1]["mlp"]["up_proj"][SCALE]
        save(source, out, params, policy)

    monkeypatch.setattr(orbax_store, "save", save_without)
    convert(tiny_original, tmp_path / "out", PRESETS["int8"])
    for policy in ("int8", "bf16"):
        with pytest.raises(CheckpointError, match=r"decoder\.layers\.1\.mlp\.up_proj\.scale is missing"):
            params_of(tmp_path / "out", policy)


def test_a_matrix_with_a_nan_stops_the_run_and_is_not_said_over(tmp_path, tiny_original):
    model_dir = shutil.copytree(tiny_original, tmp_path / "copy")
    tensors = load_file(model_dir / "model.safetensors")
    tensors[Q_PROJ] = np.where(np.arange(48) == 7, tensors[Q_PROJ].dtype.type(np.nan), tensors[Q_PROJ])
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="overflowed under policy int8"):
        load_model(model_dir, policy="int8").transcribe(synthetic(0.5), max_new_tokens=2)
