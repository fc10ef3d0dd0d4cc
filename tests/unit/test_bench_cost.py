"""The cost model against figures worked out by hand from the published geometries."""

from __future__ import annotations

import jax
import pytest

from qwen_asr_jax.bench.cost import (
    Cost,
    Limits,
    bytes_by_dtype,
    conv_stem_flops,
    decode_cost,
    encoder_cost,
    num_parameters,
    prefill_cost,
    tree_bytes,
)
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.policy import PRESETS

BF16, FP32 = PRESETS["bf16"], PRESETS["fp32"]


class Shapes:
    """The parameter tree of a preset: `jax.ShapeDtypeStruct` has no `nbytes`, so zero-sized stand-ins that do."""

    def __init__(self, shape, dtype):
        self.size = shape.size
        self.dtype = dtype
        self.nbytes = shape.size * dtype.itemsize


def params(preset, policy):
    tree = abstract_model(MODELS[preset], policy)[2]
    return jax.tree.map(lambda leaf: Shapes(leaf, leaf.dtype), tree)


# MAC per second of audio: conv1 13.8 M, conv2 1658.9 M, conv3 431.3 M, conv_out, layers, window attention, projector.
@pytest.mark.parametrize(
    "preset, stem, rest",
    [
        ("0.6b", 13.8 + 1658.9 + 431.3 + 89.5, 2254.3 + 43.6 + 22.4),
        ("1.7b", 13.8 + 1658.9 + 431.3 + 102.2, 3925.9 + 66.5 + 40.9),
    ],
)
def test_encoder_per_audio_second(preset, stem, rest):
    config = MODELS[preset].audio
    seconds = 8  # one attention window
    assert conv_stem_flops(config, 100 * seconds) / seconds / 2e6 == pytest.approx(stem, rel=1e-3)
    cost = encoder_cost(config, params(preset, BF16)["audio_tower"], 100 * seconds)
    assert cost.flops / seconds / 2e6 == pytest.approx(stem + rest, rel=1e-3)
    assert cost.bytes == pytest.approx({"0.6b": 373e6, "1.7b": 635e6}[preset], rel=5e-3)


@pytest.mark.parametrize("preset, weights", [("0.6b", 1.192e9), ("1.7b", 3.441e9)])
def test_decode_step(preset, weights):
    config = MODELS[preset]
    none = decode_cost(config, params(preset, BF16), BF16, 0)
    assert none.bytes == pytest.approx(weights, rel=1e-3)
    assert none.flops == pytest.approx(weights, rel=1e-3)  # bf16: two bytes and two operations per weight
    assert decode_cost(config, params(preset, FP32), FP32, 0).bytes == pytest.approx(2 * weights, rel=1e-3)
    full = decode_cost(config, params(preset, BF16), BF16, 1000)
    assert full.bytes - none.bytes == 1000 * 114_688
    assert full.flops - none.flops == 1000 * 229_376
    rows = decode_cost(config, params(preset, BF16), BF16, 1000, rows=4)
    assert rows.bytes - none.bytes == 4 * 1000 * 114_688
    assert rows.flops == 4 * full.flops


@pytest.mark.parametrize("preset, layers", [("0.6b", 0.881e9), ("1.7b", 2.819e9)])
def test_prefill(preset, layers):
    config = MODELS[preset]
    cost = prefill_cost(config, params(preset, BF16), BF16, 158)
    head = 2 * 151_936 * config.text.embed_dim
    attention = sum(229_376 * (i + 1) for i in range(158))
    assert cost.flops == pytest.approx(158 * layers + head + attention, rel=1e-3)
    assert cost.bytes - decode_cost(config, params(preset, BF16), BF16, 0).bytes == 158 * 114_688


def test_a_head_of_its_own_takes_the_place_of_the_embedding():
    aligner = params("aligner-0.6b", BF16)
    config = MODELS["aligner-0.6b"]
    embedding = 2 * config.text.vocab_size * config.text.embed_dim
    assert decode_cost(config, aligner, BF16, 0).bytes == tree_bytes(aligner["decoder"]) - embedding


def test_short_clips_are_rounded_up_chunk_by_chunk():
    config = MODELS["0.6b"].audio
    one, rest = conv_stem_flops(config, 100), conv_stem_flops(config, 50)
    assert conv_stem_flops(config, 150) == one + rest
    assert one / 2 < rest < one


def test_sizes_of_trees():
    tree = params("0.6b", BF16)
    assert set(bytes_by_dtype(tree)) == {"bfloat16", "float32"}
    assert sum(bytes_by_dtype(tree).values()) == tree_bytes(tree)
    assert num_parameters(tree) == pytest.approx(782e6, rel=5e-3)


def test_floor_is_the_slower_of_memory_and_arithmetic():
    limits = Limits(read_gb_s=10.0, f32_gflop_s=100.0, bf16_gflop_s=200.0, date="")
    assert limits.floor(Cost(flops=1e9, bytes=1e9), BF16) == (100.0, "bytes")
    assert limits.floor(Cost(flops=100e9, bytes=1e9), BF16) == (500.0, "flops")
    assert limits.floor(Cost(flops=100e9, bytes=1e9), FP32) == (1000.0, "flops")
    assert limits.floor(Cost(flops=100e9, bytes=1e9), PRESETS["fp16"]) == (500.0, "flops")
