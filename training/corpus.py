"""The corpus: sentences spoken once each, clean; everything else is done to them when batches are drawn.

A directory of two files: `audio.i16`, all samples one after the other, and `index.jsonl`, one line per utterance.
Utterance `i` depends on the seed and on `i` alone.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.files import new_directory
from training.sentences import Sentence, draw_sentence
from training.synthesis import (
    ACCENTS,
    HELD_OUT_SPEEDS,
    HELD_OUT_VARIANTS,
    TRAINING_SPEEDS,
    TRAINING_VARIANTS,
    Voice,
    draw_voice,
    require_espeak,
    speak,
)

_FULL_SCALE = 32767


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One sentence in one voice, and where its samples lie."""

    sentence: Sentence
    voice: Voice
    start: int
    num_samples: int


class Corpus:
    """A corpus on disk.

    Attributes:
      utterances: all of them, in order.
    """

    def __init__(self, directory: pathlib.Path):
        lines = (directory / "index.jsonl").read_text(encoding="utf-8").splitlines()
        self.utterances = [_utterance(json.loads(line)) for line in lines]
        self._audio = np.memmap(directory / "audio.i16", np.int16, mode="r")

    def audio(self, index: int) -> np.ndarray:
        """`[num_samples]` float32, peak 1."""
        one = self.utterances[index]
        return self._audio[one.start : one.start + one.num_samples].astype(np.float32) / _FULL_SCALE


def _texts_sha256(size: int, seed: int, unlike: Callable[[Sentence], bool] | None) -> str:
    """Over some of the sentences and all voices: a changed lexicon or list makes another corpus."""
    sentences = [sentence_of(seed, index) for index in range(0, size, max(1, size // 500))]
    texts = [(s.spoken, unlike is not None and unlike(s)) for s in sentences]
    voices = ACCENTS, TRAINING_VARIANTS, HELD_OUT_VARIANTS, TRAINING_SPEEDS, HELD_OUT_SPEEDS
    return hashlib.sha256(json.dumps([texts, voices]).encode()).hexdigest()[:12]


def _utterance(line: dict[str, Any]) -> Utterance:
    return Utterance(Sentence(**line["sentence"]), Voice(**line["voice"]), line["start"], line["num_samples"])


def sentence_of(seed: int, index: int) -> Sentence:
    """Sentence `index` of the corpus with this seed, unless another one had to be drawn for it."""
    return draw_sentence(np.random.default_rng([seed, index]))


def _drawn(
    seed: int, held_out: bool, unlike: Callable[[Sentence], bool] | None, index: int
) -> tuple[dict[str, str], dict[str, object], bytes]:
    rng = np.random.default_rng([seed, index])
    sentence = draw_sentence(rng)
    while unlike is not None and unlike(sentence):
        sentence = draw_sentence(rng)
    voice = draw_voice(rng, sentence.language, held_out=held_out)
    samples = speak(sentence.spoken, voice)
    return dataclasses.asdict(sentence), dataclasses.asdict(voice), (samples * _FULL_SCALE).astype(np.int16).tobytes()


def make_corpus(
    directory: pathlib.Path,
    size: int,
    seed: int,
    *,
    held_out: bool = False,
    unlike: Callable[[Sentence], bool] | None = None,
) -> Corpus:
    """The corpus of that seed, made now unless the directory is there.

    Args:
      size: utterances.
      held_out: the voices and speeds that training never hears.
      unlike: says which sentences to draw again.

    Raises:
      UsageError: espeak-ng or one of its voices is missing, or the directory holds another corpus.
      OutputError: the directory cannot be written.
    """
    made_as = {"size": size, "seed": seed, "held_out": held_out, "texts": _texts_sha256(size, seed, unlike)}
    stamp = directory / "made_as.json"
    if directory.exists():
        found = stamp.read_text().strip() if stamp.exists() else "unfinished or none of ours"
        if found != json.dumps(made_as):
            raise UsageError(f"{directory} holds another corpus ({found}); remove it, or choose another --output")
        return Corpus(directory)
    require_espeak()
    with new_directory(directory) as partial, (partial / "audio.i16").open("wb") as audio:
        with (partial / "index.jsonl").open("w", encoding="utf-8") as index:
            start = 0
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                drawn = pool.map(functools.partial(_drawn, seed, held_out, unlike), range(size))
                for sentence, voice, samples in tqdm(drawn, total=size, desc="speaking", unit="sentence"):
                    line = {"sentence": sentence, "voice": voice, "start": start, "num_samples": len(samples) // 2}
                    index.write(json.dumps(line, ensure_ascii=False) + "\n")
                    audio.write(samples)
                    start += len(samples) // 2
        (partial / "made_as.json").write_text(json.dumps(made_as) + "\n")
    return Corpus(directory)
