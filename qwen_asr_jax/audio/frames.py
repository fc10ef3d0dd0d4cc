"""How many frames, chunks and tokens a number of samples makes. Plain integers; no arrays.

16000 samples = 100 frames = 1 chunk = 13 tokens, from the published front end: hop 160, chunks of 2 * n_window frames,
three stride-2 convolutions.
"""

from __future__ import annotations

from qwen_asr_jax.config import AudioConfig

SAMPLE_RATE = 16_000
"""Samples per second of everything behind `qwen_asr_jax.audio.read`."""

N_FFT = 400
"""STFT window, samples (25 ms)."""

HOP_LENGTH = 160
"""STFT hop, samples (10 ms)."""

MIN_SAMPLES = 8_000
"""Shorter clips are padded with zeros to this length (0.5 s), as the feature extractor of transformers does."""


def num_frames(num_samples: int) -> int:
    """Mel frames of a clip: the centred STFT's last frame is dropped, so `floor(samples / 160)`."""
    return num_samples // HOP_LENGTH


def num_chunks(frames: int, config: AudioConfig) -> int:
    """Encoder chunks that hold `frames` mel frames; the last one may be partly empty."""
    return -(-frames // config.chunk_frames)


def num_audio_tokens(frames: int, config: AudioConfig) -> int:
    """Audio tokens that `frames` mel frames become: `chunk_tokens` per full chunk, `ceil(rest / 8)` for the tail."""
    full, rest = divmod(frames, config.chunk_frames)
    return full * config.chunk_tokens + -(-rest // 8)
