"""Clips made by formula, for machines without recordings: the same samples everywhere, with something in every mel bin."""

from __future__ import annotations

import numpy as np

from qwen_asr_jax.audio.frames import SAMPLE_RATE
from qwen_asr_jax.audio.read import Waveform

_SYLLABLE_S = 0.19


def clip(seconds: float, seed: int = 0) -> Waveform:
    """So many seconds of something like a voice: gliding harmonics in syllables, a pause now and then, hiss between them."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE)
    num_syllables = int(seconds / _SYLLABLE_S) + 2
    at = np.arange(num_samples, dtype=np.float32) / np.float32(SAMPLE_RATE * _SYLLABLE_S)
    knots = np.arange(num_syllables)
    pitch_hz = np.interp(at, knots, rng.uniform(90, 220, num_syllables))
    loud = np.interp(at, knots, np.where(rng.random(num_syllables) < 0.2, 0.0, rng.uniform(0.3, 1.0, num_syllables)))
    phase = np.cumsum(2 * np.pi * pitch_hz / SAMPLE_RATE)
    tilt = rng.uniform(0.6, 1.4)
    voiced = np.zeros(num_samples)
    for harmonic in range(1, 16):
        voiced += np.sin(harmonic * phase) / harmonic**tilt
    x = 0.1 * loud * voiced + rng.normal(0, 0.004, num_samples) * (1.2 - loud)
    return Waveform(f"sound {seconds:g} s", np.clip(x, -1, 1).astype(np.float32), num_samples / SAMPLE_RATE)
