"""What happens to clean speech between a mouth and a recording: rooms, telephones, noise, levels."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import soxr

from qwen_asr_jax.audio.frames import SAMPLE_RATE

NOISES = ("white", "pink", "brown", "hum", "babble")

_BANK_S = 60

TEST_NOISE = 1
"""The noise bank of what is not trained on."""

SILENCES = ("digital", "faint", "varying", "steady")
"""Kinds of clips without speech: nothing at all, the faintest noise, noise that comes and goes, and noise that does not."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How likely each disturbance is, and its range. All in one place, so that two sets differ by two of these.

    Attributes:
      resampling: share of utterances played 12 % slower to 14 % faster, which shifts pitch and formants: more voices.
      reverberation, telephone, noise, tilt: share of clips with each.
      snr_db: range of the noise's level below the speech.
      level_db: range of the clip's peak, dBFS.
      noise_bank: which recordings of noise are cut from; a test set has its own.
    """

    resampling: float
    reverberation: float
    telephone: float
    noise: float
    tilt: float
    snr_db: tuple[float, float]
    level_db: tuple[float, float] = (-30.0, 0.0)
    noise_bank: int = 0


TRAINING = Conditions(resampling=0.4, reverberation=0.25, telephone=0.12, noise=0.5, tilt=0.3, snr_db=(2.0, 40.0))
TRAINING_FIRST = Conditions(resampling=0.4, reverberation=0.0, telephone=0.0, noise=0.1, tilt=0.2, snr_db=(20.0, 40.0))
CLEAN = Conditions(resampling=0.0, reverberation=0.0, telephone=0.0, noise=0.0, tilt=0.0, snr_db=(0.0, 0.0))
NOISY = Conditions(
    resampling=0.0, reverberation=0.3, telephone=0.15, noise=1.0, tilt=0.0, snr_db=(5.0, 20.0), noise_bank=TEST_NOISE
)
"""Those of the test sets."""


def resampled(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The utterance played at another speed: `[num_samples]` float32 to `[num_samples / 0.88 to 1.14]`."""
    factor = rng.uniform(0.88, 1.14)
    return soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ").astype(np.float32)


def joined(pieces: list[np.ndarray], pauses: list[int], num_samples: int) -> np.ndarray:
    """The pieces, `[...]` float32 each, with a pause of so many samples before each: `[num_samples]` float32."""
    out = np.zeros(num_samples, np.float32)
    at = 0
    for piece, pause in zip(pieces, pauses, strict=True):
        at += pause
        out[at : at + len(piece)] = piece
        at += len(piece)
    return out


def disturbed(samples: np.ndarray, conditions: Conditions, rng: np.random.Generator) -> np.ndarray:
    """A clip of speech as recorded under such conditions; `[num_samples]` float32 within -1 and 1."""
    if rng.random() < conditions.reverberation:
        samples = _reverberant(samples, rng)
    if rng.random() < conditions.tilt:
        samples = _tilted(samples, rng.uniform(-0.4, 0.6))
    if rng.random() < conditions.noise:
        samples = _with_noise(samples, rng.uniform(*conditions.snr_db), rng, conditions.noise_bank)
    if rng.random() < conditions.telephone:
        samples = _telephone(samples)
    return at_level(samples, rng.uniform(*conditions.level_db))


def at_level(samples: np.ndarray, level_db: float) -> np.ndarray:
    """The clip with its peak at that level, dBFS."""
    peak = float(np.abs(samples).max(initial=0.0))
    return (samples * np.float32(10 ** (level_db / 20) / peak if peak else 1.0)).astype(np.float32)


def silence(num_samples: int, kind: str, rng: np.random.Generator, bank: int = 0) -> np.ndarray:
    """A clip without speech, of one of the kinds in `SILENCES`: `[num_samples]` float32 within -1 and 1."""
    if kind == "digital":
        return np.zeros(num_samples, np.float32)
    out = noise(num_samples, rng, NOISES[:-1], bank)
    if kind == "faint":
        return at_level(out, rng.uniform(-90, -50))
    if kind == "varying":
        knots = np.interp(np.arange(num_samples), np.linspace(0, num_samples, 6), rng.uniform(0.05, 1.0, 6))
        out = out * knots.astype(np.float32)
    if rng.random() < 0.3:  # knocks
        for at in rng.integers(0, num_samples, 3):
            knock = np.exp(-np.arange(min(400, num_samples - at)) / rng.uniform(20, 120)) * rng.uniform(2, 8)
            out[at : at + len(knock)] += (knock * rng.standard_normal(len(knock))).astype(np.float32)
    return at_level(out, rng.uniform(-50, 0))


def noise(num_samples: int, rng: np.random.Generator, kinds: tuple[str, ...] = NOISES, bank: int = 0) -> np.ndarray:
    """Noise of one of the kinds, with an RMS of 1: `[num_samples]` float32.

    Args:
      bank: which recording it is cut from.
    """
    recording = _recording(kinds[rng.integers(len(kinds))], bank)
    start = rng.integers(len(recording) - num_samples + 1) if num_samples <= len(recording) else 0
    out = np.resize(recording[start:], num_samples)
    return (out / (np.sqrt(np.mean(out**2)) + 1e-9)).astype(np.float32)


@functools.cache
def _recording(kind: str, bank: int) -> np.ndarray:
    """A minute of one kind of noise, `[num_samples]` float32."""
    seed = int.from_bytes(kind.encode()[:8], "little")  # Python's own hash differs from run to run
    rng = np.random.default_rng([seed, bank] if bank else [seed])
    count = _BANK_S * SAMPLE_RATE
    if kind == "hum":
        t = np.arange(count) / SAMPLE_RATE
        tones = sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in range(1, 12))
        return (tones + 0.05 * rng.standard_normal(count)).astype(np.float32)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0, "babble": 0.5}[kind]
    f = np.maximum(np.arange(len(spectrum)) / _BANK_S, 20.0)
    out = np.fft.irfft(spectrum / f**slope, count)
    if kind == "babble":  # noise of speech's spectrum and rhythm: syllables from several talkers
        out = np.fft.irfft(np.fft.rfft(out) * np.exp(-(((f - 600) / 900) ** 2)), count)
        knots = np.interp(np.arange(count), np.arange(0, count, 2000), rng.gamma(2.0, 0.5, -(-count // 2000)))
        out = out * knots
    return (out / np.sqrt(np.mean(out**2))).astype(np.float32)


def _with_noise(samples: np.ndarray, snr_db: float, rng: np.random.Generator, bank: int) -> np.ndarray:
    # Against the level of speech, not of the pauses around it.
    loud = np.abs(samples) > 0.02 * np.abs(samples).max(initial=0.0)
    speech = np.sqrt(np.mean(samples[loud] ** 2)) if loud.any() else 0.0
    return samples + noise(len(samples), rng, bank=bank) * np.float32(speech * 10 ** (-snr_db / 20))


def _reverberant(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With the tail of a room: noise that decays by 60 dB in 0.1 to 0.5 s, 3 to 15 dB below the direct sound."""
    decay_s = rng.uniform(0.1, 0.5)
    count = int(decay_s * SAMPLE_RATE)
    tail = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    tail *= 10 ** (-rng.uniform(3, 15) / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = 1 << (len(samples) + count).bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return wet[: len(samples)].astype(np.float32)


def _tilted(samples: np.ndarray, amount: float) -> np.ndarray:
    """Darker (negative) or brighter: a first-order filter."""
    out = samples.copy()
    out[1:] -= np.float32(amount) * samples[:-1]
    return out


def _telephone(samples: np.ndarray) -> np.ndarray:
    """Through 8 kHz: nothing above 4 kHz is left."""
    narrow = soxr.resample(samples, SAMPLE_RATE, 8000, quality="MQ")
    wide = soxr.resample(narrow, 8000, SAMPLE_RATE, quality="MQ").astype(np.float32)
    return np.resize(wide, len(samples)) if len(wide) >= len(samples) else np.pad(wide, (0, len(samples) - len(wide)))
