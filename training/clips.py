"""Draws clips: one utterance or several joined, disturbed, with their transcript; or no speech at all."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import soundfile

from qwen_asr_jax.audio.frames import SAMPLE_RATE
from training import augment
from training.augment import Conditions
from training.corpus import Corpus

NO_SPEECH = "None"
"""What the model writes for a language where nobody speaks."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
      samples: `[num_samples]` float32, 16 kHz.
      language: as the model names it, or `NO_SPEECH`.
      text: the transcript; empty without speech.
      indices: the utterances of the corpus in it.
      kind: of silence, one of `augment.SILENCES`; "" for speech.
    """

    samples: np.ndarray
    language: str
    text: str
    indices: tuple[int, ...]
    kind: str = ""


class ClipSource:
    """Draws clips from a corpus."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self._lengths = np.array([u.num_samples for u in corpus.utterances])
        languages = np.array([u.sentence.language for u in corpus.utterances])
        # Shortest first, so that "at most so long" is a slice.
        self._by_language = {
            str(name): np.array(sorted(np.flatnonzero(languages == name), key=lambda i: self._lengths[i]))
            for name in np.unique(languages)
        }

    def speech(
        self,
        seconds: float,
        conditions: Conditions,
        rng: np.random.Generator,
        *,
        same_voice: bool = False,
        stop_share: float = 0.1,
    ) -> Clip:
        """A clip of speech of at most `seconds`: one utterance, then more in the same language while they fit.

        Args:
          seconds: longest duration.
          conditions: what is done to it.
          same_voice: all utterances of a clip have the first one's voice (accent and variant).
          stop_share: how likely the clip ends behind each utterance though more would fit.

        Raises:
          ValueError: no utterance is that short.
        """
        limit = int(seconds * SAMPLE_RATE)
        names = list(self._by_language)
        candidates = self._by_language[names[rng.integers(len(names))]]
        pieces: list[np.ndarray] = []
        pauses: list[int] = []
        indices: list[int] = []
        used = 0
        # Longer clips start with a longer silence now and then; two in five start at once.
        pause = 0 if rng.random() < 0.4 else int(rng.uniform(0.0, min(1.0, 0.2 * seconds)) * SAMPLE_RATE)
        while True:
            stretch = 1 / 0.88 if conditions.resampling else 1.0
            room = (limit - used - pause) / stretch
            fitting = candidates[: np.searchsorted(self._lengths[candidates], room, side="right")]
            if same_voice and indices:
                first = self.corpus.utterances[indices[0]].voice.name
                fitting = np.array([i for i in fitting if self.corpus.utterances[i].voice.name == first], int)
            if not len(fitting):
                break
            # The longer half, or clips would fill up with single words.
            index = int(fitting[rng.integers(len(fitting) // 2 if not indices or rng.random() < 0.7 else 0, len(fitting))])
            piece = self.corpus.audio(index)
            if rng.random() < conditions.resampling:
                piece = augment.resampled(piece, rng)
            pieces.append(piece * np.float32(10 ** (rng.uniform(-6, 0) / 20)))
            pauses.append(pause)
            indices.append(index)
            used += pause + len(piece)
            pause = int(rng.uniform(0.1, 1.0) * SAMPLE_RATE)
            if rng.random() < stop_share:
                break
        if not indices:
            raise ValueError(f"no utterance of the corpus fits {seconds} s")
        tail = int(rng.uniform(0.0, 0.5) * SAMPLE_RATE) if rng.random() < 0.7 else 0
        clean = augment.joined(pieces, pauses, max(min(limit, used + tail), used))
        sentences = [self.corpus.utterances[i].sentence for i in indices]
        return Clip(
            samples=augment.disturbed(clean, conditions, rng),
            language=sentences[0].language,
            text=" ".join(s.text for s in sentences),
            indices=tuple(indices),
        )

    def no_speech(self, seconds: float, rng: np.random.Generator, *, noise_bank: int = 0) -> Clip:
        """A clip of silence or noise of at most `seconds`; `noise_bank` as in `Conditions`."""
        count = int(rng.uniform(min(0.5, seconds), seconds) * SAMPLE_RATE)
        kind = augment.SILENCES[rng.integers(len(augment.SILENCES))]
        return Clip(augment.silence(count, kind, rng, noise_bank), NO_SPEECH, "", (), kind)


def write_clip(path: pathlib.Path, clip: Clip) -> None:
    """The clip as 16-bit FLAC."""
    soundfile.write(path, np.clip(clip.samples, -1, 1), SAMPLE_RATE, subtype="PCM_16", format="FLAC")
