"""Log-mel: published golden values, exact silence, lengths, and independence from padding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax.audio.frames import num_audio_tokens, num_chunks, num_frames
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.ops.mel import log_mel, mel_filters, padded_samples, reflect_pad
from tests.audio_samples import synthetic

AUDIO = MODELS["0.6b"].audio


def run(samples: np.ndarray, padded_frames: int | None = None) -> np.ndarray:
    frames = num_frames(len(samples))
    total = padded_frames or frames
    return np.asarray(log_mel(jnp.asarray(reflect_pad([samples], total, 1)), jnp.asarray([frames], jnp.int32), 128))[0]


def float64_reference(x: np.ndarray) -> np.ndarray:
    """The recipe in float64 with an FFT: frames of 400 around every 160th sample, power, filters, logarithm, floor."""
    padded = np.pad(x.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[t : t + 400] for t in range(0, len(x) // 160 * 160, 160)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    logs = np.log10(np.maximum(power @ mel_filters(128).astype(np.float64), 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


def test_golden_chirp():
    t = np.arange(24100) / 16000
    mel = run((0.5 * np.sin(2 * np.pi * (200 * t + 2800 * t * t / 3))).astype(np.float32))
    assert mel.shape == (150, 128)
    figures = [mel.mean(), mel.std(), mel.max(), mel.min(), mel[0, 0], mel[0, 5], mel[40, 30], mel[75, 20], mel[149, 64]]
    published = [-0.350463, 0.398234, 1.499841, -0.500159, 1.09213, 1.25883, 0.09515, -0.50016, -0.50016]
    np.testing.assert_allclose(figures, published, atol=2e-5)
    np.testing.assert_allclose([mel[0].sum(), mel[149].sum()], [39.8489, -53.2588], atol=2e-3)


def test_filterbank():
    filters = mel_filters(128)
    assert np.count_nonzero(filters) == 394
    assert filters.max() == pytest.approx(0.0416817, abs=1e-7)
    assert filters.sum() == pytest.approx(3.1909855, abs=1e-6)
    assert np.flatnonzero(filters[:, 0]).tolist() == [1]
    assert filters[1, 0] == pytest.approx(0.01237399, abs=1e-8)
    assert np.flatnonzero(filters[:, 127]).tolist() == list(range(191, 200))


def test_silence_is_exact():
    assert np.unique(run(np.zeros(16000, np.float32))).tolist() == [-1.5]


@pytest.mark.parametrize("samples", [8000, 15999, 16000, 16001, 16039, 16040, 16159, 16160, 57000])
def test_close_to_float64(samples):
    x = synthetic(4.0)[:samples]
    np.testing.assert_allclose(run(x), float64_reference(x), atol=1e-4)


def test_padding_frames_change_nothing_and_are_zero():
    x = synthetic(2.5)
    alone, padded = run(x), run(x, 400)
    np.testing.assert_allclose(padded[:250], alone, atol=2e-6)
    assert not padded[250:].any()


def test_level_of_a_loud_neighbour_does_not_leak():
    quiet, loud = 1e-3 * synthetic(1.0, seed=1), synthetic(1.0, seed=2)
    both = reflect_pad([quiet, loud], 100, 2)
    batch = np.asarray(log_mel(jnp.asarray(both), jnp.asarray([100, 100], jnp.int32), 128))
    np.testing.assert_allclose(batch[0], run(quiet), atol=2e-6)


@pytest.mark.parametrize("num_samples", [201, 8000, 15_999, 16_000, 16_159])
def test_clips_are_mirrored_at_both_ends(num_samples):
    """The last of a clip's samples may lie beyond its frames: there are as many as whole hops."""
    clips = [synthetic(2.0)[:num_samples], synthetic(2.0, seed=1)[:300]]
    padded = reflect_pad(clips, 100, 4)
    assert padded.shape == (4, padded_samples(100))
    for row, clip in zip(padded, clips, strict=False):
        mirrored = np.pad(clip, 200, mode="reflect")[: len(row)]
        np.testing.assert_array_equal(row[: len(mirrored)], mirrored)
        assert not row[len(mirrored) :].any()
    assert not padded[2:].any()


def test_token_arithmetic_matches_three_strided_convolutions():
    for frames in range(1001):
        full, rest = divmod(frames, 100)
        for _ in range(3):
            rest = -(-rest // 2)
        assert num_audio_tokens(frames, AUDIO) == 13 * full + rest


@pytest.mark.parametrize("frames, tokens", [(1700, 221), (800, 104), (801, 105), (50, 7), (1, 1), (100, 13), (101, 14)])
def test_token_counts(frames, tokens):
    assert num_audio_tokens(frames, AUDIO) == tokens


def test_chunks():
    assert [num_chunks(n, AUDIO) for n in (1, 100, 101, 800)] == [1, 1, 2, 8]
