"""A look at a checkpoint while it is trained: held-out voices, through the engine that users run.

The voices are those of the test set, the sentences are not. Nothing is chosen by it: the last checkpoint is the result.
"""

from __future__ import annotations

import pathlib

import jiwer
import numpy as np

from qwen_asr_jax.pipelines.load import load_model
from training import augment
from training.clips import NO_SPEECH, Clip, ClipSource
from training.corpus import make_corpus

_SENTENCES = 400
_SEED_OFFSET = 1_000_003  # a prime: no other corpus is likely to have such a seed
_CLIPS = {"clean": 48, "noisy": 32, "long": 6, "none": 16}


class Watch:
    """Held-out clips, drawn once: clean and noisy ones of up to 10 s, long ones of 20 to 30 s, and some without speech."""

    def __init__(self, output: pathlib.Path, seed: int):
        corpus = make_corpus(output / "watch_corpus", _SENTENCES, seed + _SEED_OFFSET, held_out=True)
        source, rng = ClipSource(corpus), np.random.default_rng([seed + _SEED_OFFSET, 1])
        self._clips: dict[str, list[Clip]] = {
            "clean": [source.speech(rng.uniform(2, 10), augment.CLEAN, rng) for _ in range(_CLIPS["clean"])],
            "noisy": [source.speech(rng.uniform(2, 10), augment.NOISY, rng) for _ in range(_CLIPS["noisy"])],
            "long": [source.speech(rng.uniform(20, 30), augment.CLEAN, rng) for _ in range(_CLIPS["long"])],
            "none": [source.no_speech(8.0, rng, noise_bank=augment.TEST_NOISE) for _ in range(_CLIPS["none"])],
        }

    def look(self, model_dir: pathlib.Path) -> dict[str, float]:
        """Per cent: word error rate of each kind of speech, wrong languages, and clips without speech that got text."""
        model = load_model(model_dir, policy="fp32")
        result: dict[str, float] = {}
        wrong = 0
        for kind, clips in self._clips.items():
            heard = model.transcribe([clip.samples for clip in clips], batch_size=16)
            wrong += sum((h.language or NO_SPEECH) != clip.language for h, clip in zip(heard, clips, strict=True))
            if kind == "none":
                result["spoken_silence"] = 100 * float(np.mean([bool(h.text) for h in heard]))
            else:
                said = [_words(clip.text) for clip in clips]
                result[kind] = 100 * float(jiwer.wer(said, [_words(h.text) for h in heard]))
        result["wrong_language"] = 100 * wrong / sum(_CLIPS.values())
        return {name: round(value, 2) for name, value in result.items()}


def _words(text: str) -> str:
    return text.lower().replace(".", "")
