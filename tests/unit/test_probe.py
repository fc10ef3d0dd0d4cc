"""The probe of the layers: damaged and overlarge weights are named, at load under float16 and behind an overflow."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_asr_jax import demo, runtime
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench.accuracy import measure_accuracy
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS, write_random_checkpoint
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.engine.probe import broken_parameters, probe, probe_clip
from qwen_asr_jax.errors import CheckpointError, QwenASRError
from qwen_asr_jax.ops.cast import FP16_LIMIT, narrow, recording, saturate
from qwen_asr_jax.pipelines import health
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.policy import PRESETS
from tests.audio_samples import synthetic

F16 = np.dtype(np.float16)
TOWER, DECODER = "thinker.audio_tower.", "thinker.model."

POISONED = {
    "conv": (TOWER + "conv2d2.weight", "audio_tower.conv_stem", "conv2d2.weight"),
    "encoder": (TOWER + "layers.1.fc1.weight", "audio_tower.layers.1", "fc1.weight"),
    "encoder's bias": (TOWER + "layers.0.self_attn.v_proj.bias", "audio_tower.layers.0", "self_attn.v_proj.bias"),
    "projector's norm": (TOWER + "ln_post.weight", "audio_tower.ln_post", "weight"),
    "projector": (TOWER + "proj2.weight", "audio_tower.proj2", "weight"),
    "decoder": (DECODER + "layers.1.self_attn.q_proj.weight", "decoder.layers.1", "self_attn.q_proj.weight"),
    "decoder's last": (DECODER + "layers.2.mlp.down_proj.weight", "decoder.layers.2", "mlp.down_proj.weight"),
    "decoder's norm": (DECODER + "norm.weight", "decoder.norm", "weight"),
    "head": (DECODER + "embed_tokens.weight", "decoder.embed_tokens", "weight"),
}
"""Per case: the tensor of which one value is NaN, the layer to be named, and the parameter in it."""


def changed(tmp_path, source, name, change):
    """A copy of the checkpoint in which `change` has been applied to one tensor, in float32."""
    copy = shutil.copytree(source, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    dtype = tensors[name].dtype
    tensors[name] = change(np.array(tensors[name], np.float32)).astype(dtype)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def poison(tensor):
    tensor[-1] = np.where(np.arange(tensor[-1].size).reshape(tensor[-1].shape) == 0, np.nan, tensor[-1])
    return tensor


@pytest.mark.parametrize("case", POISONED)
def test_a_nan_is_named_when_a_float16_model_is_loaded(tmp_path, tiny_original, case):
    tensor, layer, parameter = POISONED[case]
    path = changed(tmp_path, tiny_original, tensor, poison)
    with pytest.raises(CheckpointError) as e:
        load_model(path, policy="fp16")
    assert str(e.value) == (
        f"{path}: {layer} gives NaN or infinity under policy fp16: its weights hold them ({layer}.{parameter}); the checkpoint"
        " is damaged, get it again"
    )


@pytest.mark.parametrize("policy", ["bf16", "int8", "int8_all", "fp32"])
@pytest.mark.parametrize("case", ["encoder", "projector", "decoder", "head"])
def test_a_nan_is_named_when_a_transcription_ends_with_one(tmp_path, tiny_original, case, policy):
    """In the head the poisoned row is that of no token of the prompt: it is chosen, and only then read as an embedding."""
    tensor, layer, parameter = POISONED[case]
    model = load_model(changed(tmp_path, tiny_original, tensor, poison), policy=policy)
    assert model.warnings == ()
    with pytest.raises(QwenASRError, match=f"overflowed under policy {policy}") as e:
        model.transcribe(synthetic(0.5), max_new_tokens=4)
    assert f"from {layer} on): its weights hold them ({layer}.{parameter})" in str(e.value)
    assert "\n" not in str(e.value)


def test_an_overflow_that_the_probe_does_not_see_keeps_the_usual_remedy(model, monkeypatch):
    encode = model.engine.encode

    def poisoned(*args):
        found = encode(*args)
        return dataclasses.replace(found, arrays=(found.arrays[0].at[0].set(np.nan),))

    monkeypatch.setattr(model.engine, "encode", poisoned)
    with pytest.raises(QwenASRError, match=r"activations\); use --policy=bf16 or --policy=fp32$"):
        model.transcribe(synthetic(0.5), max_new_tokens=2)


def test_an_overflow_costs_no_other_clip_its_transcript_where_the_probe_finds_no_memory(model, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(health, "probe", full)
    assert health.overflow_remedy(model.engine, model.tokenizer).endswith("use --policy=bf16 or --policy=fp32")


def test_infinity_that_no_weight_holds_is_put_down_to_float16(tmp_path, tiny_original, monkeypatch):
    monkeypatch.setattr(health, "broken_parameters", lambda engine, name: [])
    path = changed(tmp_path, tiny_original, POISONED["decoder"][0], poison)
    with pytest.raises(QwenASRError, match=r"decoder\.layers\.1 gives NaN or infinity under policy fp16; use --policy=bf16"):
        load_model(path, policy="fp16")


LARGE = {
    "encoder": (TOWER + "layers.1.final_layer_norm.weight", 1e5, "audio_tower.layers.1"),
    "projector": (TOWER + "ln_post.weight", 1e5, "audio_tower.proj1"),
    "decoder's norm": (DECODER + "layers.1.post_attention_layernorm.weight", 1e6, "decoder.layers.1"),
    "decoder's gate": (DECODER + "layers.2.mlp.up_proj.weight", 2e4, "decoder.layers.2"),
    "residuals of the encoder": (TOWER + "layers.0.fc2.bias", 1e6, "audio_tower.layers.0"),
}
"""Per case: the tensor that is scaled, by how much, and the first layer in which float16 is left."""


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_values_that_float16_cuts_off_are_named(tmp_path, tiny_original, case, implementation):
    tensor, factor, layer = LARGE[case]
    path = changed(tmp_path, tiny_original, tensor, lambda values: values * factor)
    (warning,) = load_model(path, policy="fp16", implementation=implementation).warnings
    assert warning.startswith(f"policy fp16: values in {layer} go up to ")
    assert float(warning.split("go up to ")[1].split()[0].rstrip(",;")) > FP16_LIMIT
    assert warning.endswith("use --policy=bf16, which takes the same memory")
    for policy in ("bf16", "fp32"):
        model = load_model(path, policy=policy)
        assert model.warnings == ()
        readings = probe(model.engine, model.tokenizer)
        assert not any(reading.saturated or reading.largest_to_float16 for reading in readings)
        assert all(reading.finite for reading in readings)


def test_a_float16_cache_alone_is_watched_too(tmp_path, tiny_original):
    policy = dataclasses.replace(PRESETS["fp32"], name="mixed", cache_dtype="float16")
    assert load_model(tiny_original, policy=policy).warnings == ()
    path = changed(tmp_path, tiny_original, DECODER + "layers.1.self_attn.v_proj.weight", lambda values: values * 1e5)
    (warning,) = load_model(path, policy=policy).warnings
    assert warning.startswith("policy mixed: values in decoder.layers.1 go up to ")


@pytest.mark.parametrize("path", [demo.MODEL_DIR, "tiny"], ids=["demo", "tiny"])
def test_healthy_models_give_no_warning(tiny_original, path):
    model = load_model(tiny_original if path == "tiny" else path, policy="fp16")
    assert model.warnings == ()
    readings = probe(model.engine, model.tokenizer)
    layers = [*(f"audio_tower.layers.{i}" for i in range(model.engine.config.audio.num_layers))]
    layers += [f"decoder.layers.{i}" for i in range(model.engine.config.text.num_layers)]
    assert set(layers) < {reading.name for reading in readings}
    for reading in readings:
        assert reading.finite
        assert not reading.saturated
        assert reading.name not in layers or 1 < reading.largest < 1000
        assert not broken_parameters(model.engine, reading.name)


@pytest.mark.parametrize("policy", ["fp32", "bf16", "fp16", "int8", "int8_all"])
def test_the_native_kernels_policies_probe_as_plain_xla_does(tiny_original, policy):
    found = [
        probe(m.engine, m.tokenizer) for m in (load_model(tiny_original, policy, implementation=i) for i in ("auto", "xla"))
    ]
    assert found[0] == found[1]


def test_layers_of_one_kind_share_a_program(tmp_path):
    """Widths of its own, so that nothing is compiled yet; the two layer counts differ, the programs do not."""
    tiny = MODELS["tiny"]
    audio = dataclasses.replace(tiny.audio, num_layers=5, mlp_dim=136)
    text = dataclasses.replace(tiny.text, num_layers=7, mlp_dim=104)
    write_random_checkpoint(tmp_path / "deep", dataclasses.replace(tiny, audio=audio, text=text))
    model = load_model(tmp_path / "deep", policy="fp32")
    log = compilations()
    before = log.count
    readings = probe(model.engine, model.tokenizer)
    made = [name for name, _, _ in log.programs[before:] if "_observe" in name]
    assert len(made) == 9  # conv stem, encoder layer, three of the projector, embedding, decoder layer, norm, head
    assert len(readings) == 9 + 4 + 6
    again = log.count
    assert probe(model.engine, model.tokenizer) == readings
    assert log.count == again


def test_models_that_float16_is_not_asked_of_are_not_probed(tiny_original, monkeypatch):
    probed, real = [], health.probe
    monkeypatch.setattr(health, "probe", lambda engine, *rest: probed.append(engine.policy.name) or real(engine, *rest))
    for policy in PRESETS:
        load_model(tiny_original, policy=policy)
    assert probed == ["fp16"]  # start-up time is spent on no other


def test_the_clip_is_always_the_same_and_moves_every_bin(model):
    clip = probe_clip(32_000)
    assert (clip.dtype, clip.shape) == (np.float32, (32_000,))
    assert np.array_equal(clip, probe_clip(32_000))
    assert 0.5 < np.abs(clip).max() <= 1
    log_mel = np.asarray(model.engine.log_mel([clip]))[0]
    assert log_mel.std(axis=0).min() > 0.1


def test_casts_are_recorded_only_while_somebody_listens():
    x = jnp.asarray([-3.0, 2.0, 1e6])

    @jax.jit
    def observed(x):
        with recording() as found:
            narrow(x, F16)
            narrow(x[:2], np.dtype(jnp.bfloat16))
            saturate(x)
        narrow(x, F16)
        dtypes.extend(dtype for dtype, _ in found)
        return [value for _, value in found]

    dtypes: list[np.dtype] = []
    assert [float(value) for value in observed(x)] == [1e6, 3.0, 1e6]
    assert dtypes == [F16, np.dtype(jnp.bfloat16), F16]
    assert float(saturate(x)[2]) == FP16_LIMIT


def test_float16_chooses_as_float32_where_the_choice_is_clear(tmp_path):
    """Wider and deeper than `tiny`: half-precision sums over 32 terms would hide what those over 512 show."""
    tiny = MODELS["tiny"]
    audio = dataclasses.replace(tiny.audio, embed_dim=256, num_heads=4, mlp_dim=512, num_layers=4, output_dim=256)
    text = dataclasses.replace(
        tiny.text, embed_dim=256, mlp_dim=512, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=64, vocab_size=2048
    )
    write_random_checkpoint(tmp_path / "wide", dataclasses.replace(tiny, audio=audio, text=text, head_rows=2048))
    clip = Waveform(name="clip", samples=synthetic(2.0), duration_s=2.0)
    (row,) = measure_accuracy(tmp_path / "wide", clip, ["fp16"], steps=24)
    assert row.clear >= 12
    assert row.clear_agreed >= 0.99 * row.clear
    assert row.mean_error < 0.01 * row.spread


@pytest.mark.parametrize("policy", PRESETS)
def test_a_gpus_programs_are_probed_alike(tiny_original, policy):
    """Fused projections, and convolutions in groups."""
    readings = []
    for platform in ("cpu", "gpu"):
        with runtime.lowering_for(platform):
            model = load_model(tiny_original, policy, implementation="xla")
            assert model.engine.policy.fused == (platform == "gpu")
            readings.append(probe(model.engine, model.tokenizer))
    here, there = readings
    assert [r.name for r in there] == [r.name for r in here]
    assert all(r.finite for r in there)
    np.testing.assert_allclose([r.largest for r in there], [r.largest for r in here], rtol=0.02)
