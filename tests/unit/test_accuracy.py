"""The comparison of policies with float32, on the tiny model."""

from __future__ import annotations

from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench.accuracy import HEADERS, measure_accuracy
from tests.audio_samples import synthetic


def test_policies_against_float32(tiny_original):
    clip = Waveform(name="clip", samples=synthetic(1.5), duration_s=1.5)
    same, bf16, int8 = rows = measure_accuracy(tiny_original, clip, ["fp32", "bf16", "int8"], steps=8)
    assert (same.policy, same.agreed, same.prefix) == ("fp32", 8, 8)
    assert same.max_error < 1e-4  # the reference is XLA's
    assert 0 < bf16.mean_error < int8.mean_error < int8.max_error < 1
    assert int8.weight_bytes < bf16.weight_bytes < same.weight_bytes
    assert all(row.clear_agreed <= row.clear <= row.steps == 8 and len(row.cells()) == len(HEADERS) for row in rows)
