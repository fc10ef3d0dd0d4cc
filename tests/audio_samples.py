"""Audio for tests, made by formula: deterministic, speech-like enough to move every mel bin, and free of any file."""

from __future__ import annotations

import os
import pathlib

import numpy as np

RATE = 16_000

SHARED_AUDIO = pathlib.Path(os.environ.get("QWEN_ASR_TEST_AUDIO", pathlib.Path(__file__).parents[2] / "shared" / "audio"))
SHARED_TOKENIZER = pathlib.Path(
    os.environ.get("QWEN_ASR_TEST_TOKENIZER", pathlib.Path(__file__).parents[2] / "shared" / "tokenizer")
)


def synthetic(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A harmonic voice with a wandering pitch, syllable-like loudness and a little noise; float32 within [-1, 1]."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 130 + 40 * np.sin(2 * np.pi * 0.7 * t + seed) + 15 * np.sin(2 * np.pi * 2.3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase + k * seed) / k ** (0.7 + 0.5 * np.sin(2 * np.pi * 0.9 * t)) for k in range(1, 24))
    loudness = np.clip(np.sin(2 * np.pi * 2.1 * t + seed), 0, 1) ** 0.5
    x = 0.12 * voice * loudness + 0.003 * rng.standard_normal(len(t))
    return np.clip(x, -1, 1).astype(np.float32)
