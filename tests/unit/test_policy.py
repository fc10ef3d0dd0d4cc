"""Policies and run configs."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.run_config import EngineOptions, from_run_config
from qwen_asr_jax.policy import PRESETS, Policy, get_policy
from tests.audio_samples import synthetic

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def get_config(name: str):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("name", PRESETS)
def test_config_files_are_the_presets(name):
    assert from_run_config(get_config(name)) == (PRESETS[name], EngineOptions())


def test_unknown_fields_are_errors():
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with pytest.raises((AttributeError, flags.Error)):
        values(["x", f"--config={CONFIGS / 'fp32.py'}", "--config.policy.speed=fast"])


def test_unknown_policy_lists_the_presets():
    with pytest.raises(UsageError, match="fp32, bf16, fp16"):
        get_policy("fp8")


@pytest.mark.parametrize(
    "field, value",
    [("cache_dtype", "int4"), ("accum_dtype", "bfloat16"), ("logits_dtype", "float16"), ("compute_dtype", "bfloat16")],
)
def test_impossible_dtypes_are_refused(field, value):
    fields = {name: "float32" for name in PRESETS["fp32"].dtypes() if name != "name"}
    with pytest.raises(UsageError, match=field):
        Policy(name="odd", **fields | {field: value})


@pytest.mark.parametrize(
    "param, compute, cache",
    [("bfloat16", "float32", "float32"), ("float16", "float32", "bfloat16"), ("float32", "float32", "float16")],
)
def test_mixed_policies_run_and_stay_close(tiny_original, model, param, compute, cache):
    """Narrow storage under wide arithmetic: the tiny checkpoint is stored in bfloat16, so nothing at all is lost."""
    policy = Policy("mixed", param, compute, "float32", cache, "float32", param, param)
    mixed = load_model(tiny_original, policy=policy)
    samples = synthetic(3.0, seed=4)
    assert mixed.transcribe(samples, max_new_tokens=12).tokens[:4] == model.transcribe(samples, max_new_tokens=12).tokens[:4]
    assert mixed.engine.checkpoint.params["decoder"]["embed_tokens"]["weight"].dtype == param


@pytest.mark.parametrize("policy", PRESETS)
def test_params_have_the_policy_dtypes(tiny_original, policy):
    params = load_model(tiny_original, policy=policy).engine.checkpoint.params
    layer = params["decoder"]["layers"][0]
    assert layer["mlp"]["gate_proj"]["weight"].dtype == PRESETS[policy].layer
    assert params["decoder"]["embed_tokens"]["weight"].dtype == PRESETS[policy].head
    assert layer["input_layernorm"]["weight"].dtype == PRESETS[policy].accum
    assert params["audio_tower"]["conv_stem"]["conv2d2"]["weight"].dtype == PRESETS[policy].param
