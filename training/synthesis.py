"""Speech from espeak-ng, and which voices and speeds are kept for testing."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import numpy as np
import soxr

from qwen_asr_jax.audio.frames import SAMPLE_RATE
from qwen_asr_jax.errors import UsageError

ACCENTS = {
    "English": ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"),
    "German": ("de",),
}
"""espeak-ng's voices of each language."""

TRAINING_VARIANTS = (
    *("m1", "m2", "m4", "m5", "m6", "m7", "m8", "f1", "f3", "f4", "f5"),
    *("adam", "Alicia", "Andy", "Annie", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "Denis"),
    *("Diogo", "ed", "edward", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "max", "michel", "miguel", "Mike"),
    *("pablo", "paul", "pedro", "quincy", "rob", "sandro", "steph", "travis", "victor", "zac", "anika", "shelby", "norbert"),
)
"""Timbres (espeak-ng's variants) of the training data."""

HELD_OUT_VARIANTS = ("m3", "f2", "Andrea", "Michael", "Alex", "linda", "robert", "steph2")
"""Timbres of the test set alone: four of men, four of women."""

TRAINING_SPEEDS = ((110, 140), (150, 190), (200, 231))
HELD_OUT_SPEEDS = ((140, 150), (190, 200))
"""The synthesiser's words per minute, half-open intervals: the test set's settings are never trained on (resampled training
speech may come out as fast)."""

_AUDIBLE = 0.005


@dataclasses.dataclass(frozen=True)
class Voice:
    """How something is said: espeak-ng's voice and variant, words per minute, pitch (0 to 99), pause between words (10 ms)."""

    accent: str
    variant: str
    speed: int
    pitch: int
    gap: int

    @property
    def name(self) -> str:
        """Voice and variant as espeak-ng takes them."""
        return f"{self.accent}+{self.variant}"


def draw_voice(rng: np.random.Generator, language: str, *, held_out: bool) -> Voice:
    """A voice of that language: from the training set's, or from those kept for testing."""
    variants = HELD_OUT_VARIANTS if held_out else TRAINING_VARIANTS
    intervals = HELD_OUT_SPEEDS if held_out else TRAINING_SPEEDS
    speeds = [speed for low, high in intervals for speed in range(low, high)]
    return Voice(
        accent=ACCENTS[language][rng.integers(len(ACCENTS[language]))],
        variant=variants[rng.integers(len(variants))],
        speed=int(speeds[rng.integers(len(speeds))]),
        pitch=int(rng.integers(30, 71)),
        gap=int(rng.choice([0, 0, 0, 2, 5])),
    )


def require_espeak() -> None:
    """Makes sure that espeak-ng can speak with every voice: for one that it lacks it silently takes another.

    Raises:
      UsageError: it is not installed, or lacks voices.
    """
    if shutil.which("espeak-ng") is None:
        raise UsageError("espeak-ng is not installed; on Debian: apt-get install espeak-ng")

    def listed(kind: str) -> set[str]:
        done = subprocess.run(["espeak-ng", f"--voices{kind}"], capture_output=True, text=True, check=True)
        return {word for line in done.stdout.splitlines() for word in line.split()}

    variants = {name.removeprefix("!v/") for name in listed("=variant")}
    missing = {*TRAINING_VARIANTS, *HELD_OUT_VARIANTS} - variants
    missing |= {accent for accents in ACCENTS.values() for accent in accents} - listed("")
    if missing:
        raise UsageError(f"espeak-ng lacks the voices {', '.join(sorted(missing))}; version 1.51 has them")


def speak(text: str, voice: Voice) -> np.ndarray:
    """`[num_samples]` float32 at 16 kHz, peak 1, without the silence around it.

    Raises:
      RuntimeError: espeak-ng failed, or said nothing.
    """
    command = ["espeak-ng", "--stdin", "--stdout", "-v", voice.name]
    command += ["-s", str(voice.speed), "-p", str(voice.pitch), "-g", str(voice.gap)]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if done.returncode or done.stderr:
        raise RuntimeError(f"espeak-ng failed for {voice.name}: {done.stderr.decode(errors='replace').strip()}")
    # A stream's header cannot know its length: the samples are what follows it.
    header = done.stdout.index(b"data") + 8
    rate = int.from_bytes(done.stdout[24:28], "little")
    samples = np.frombuffer(done.stdout[header:], np.int16).astype(np.float32) / 32768
    samples = soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)
    peak = float(np.abs(samples).max(initial=0.0))
    audible = np.flatnonzero(np.abs(samples) > _AUDIBLE * peak)
    if not len(audible):
        raise RuntimeError(f"espeak-ng said nothing for {text!r} with {voice.name}")
    return samples[audible[0] : audible[-1] + 1] / peak
