"""Fused projections: the same numbers from one matrix, from every kind of checkpoint, with no part left behind."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from qwen_asr_jax.checkpoint.convert import convert
from qwen_asr_jax.checkpoint.fuse import FUSED, fuse
from qwen_asr_jax.checkpoint.key_map import leaves
from qwen_asr_jax.checkpoint.load import abstract_model, load_checkpoint
from qwen_asr_jax.config import read_config
from qwen_asr_jax.errors import BackendError, UsageError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.policy import PRESETS, Policy
from tests.audio_samples import synthetic


def with_projections(policy: str, projections: str) -> Policy:
    return dataclasses.replace(PRESETS[policy], implementation="xla", projections=projections)


@pytest.fixture(scope="module")
def tiny_orbax(tiny_original, tmp_path_factory):
    path = tmp_path_factory.mktemp("fused") / "orbax"
    convert(tiny_original, path, PRESETS["bf16"])
    return path


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("layout", ["tiny_original", "tiny_native", "tiny_orbax"])
def test_parts_are_put_together(request, layout, policy):
    path = request.getfixturevalue(layout)
    config = read_config(path)
    fused_policy = with_projections(policy, "fused")
    fused = load_checkpoint(path, config, fused_policy).params
    separate = load_checkpoint(path, config, with_projections(policy, "separate")).params
    abstract = abstract_model(config, fused_policy)[2]
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in leaves(fused)} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in leaves(abstract)
    }
    parts = [part for names in FUSED.values() for part in names]
    assert not [path for path, _ in leaves(fused) if set(path) & set(parts)]
    for name, keys in (("qkv_proj", ("audio_tower", 0, "self_attn")), ("gate_up_proj", ("decoder", 1, "mlp"))):
        tower, layer, module = keys
        whole, apart = (tree[tower]["layers"][layer][module] for tree in (fused, separate))
        for leaf, values in whole[name].items():
            wanted = np.concatenate([np.asarray(apart[part][leaf]) for part in FUSED[name]])
            np.testing.assert_array_equal(np.asarray(values), wanted)


@pytest.mark.parametrize("policy", PRESETS)
def test_tokens_are_the_same(tiny_original, policy):
    clips = [synthetic(2.3, 5), synthetic(9.4, 6)]
    found = []
    for projections in ("separate", "fused"):
        model = load_model(tiny_original, with_projections(policy, projections))
        assert model.engine.policy.fused == (projections == "fused")
        found.append([result.tokens for result in model.transcribe(clips, max_new_tokens=24)])
    assert found[0] == found[1]


def test_nothing_is_fused_before_all_is_there():
    abstract = {"qkv_proj": {"weight": None, "bias": None}}
    part = {"weight": jax.numpy.zeros((2, 3)), "bias": jax.numpy.zeros(2)}
    module = {"q_proj": dict(part), "k_proj": dict(part), "v_proj": {"weight": part["weight"]}}
    fuse(module, abstract)
    assert set(module) == {"q_proj", "k_proj", "v_proj"}
    module["v_proj"]["bias"] = part["bias"]
    fuse(module, abstract)
    assert set(module) == {"qkv_proj"}
    assert module["qkv_proj"]["weight"].shape == (6, 3)
    assert module["qkv_proj"]["bias"].shape == (6,)


def test_a_cpu_keeps_them_apart_and_its_kernels_refuse_fused_ones(tiny_original):
    assert load_model(tiny_original).engine.policy.projections == "separate"
    fused = dataclasses.replace(PRESETS["bf16"], projections="fused")
    assert load_model(tiny_original, fused).engine.policy.implementation == "xla"
    with pytest.raises(BackendError):
        load_model(tiny_original, fused, implementation="cpu")


def test_unknown_projections_are_refused():
    with pytest.raises(UsageError, match="projections='half' is not one of auto, separate, fused"):
        dataclasses.replace(PRESETS["bf16"], projections="half")
