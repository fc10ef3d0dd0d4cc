"""The corpus: sentences spoken once each, clean; everything else is done to them when batches are drawn.

A directory of two files: `audio.i16`, all samples one after the other, and `index.jsonl`, one line per utterance.
Utterance `i` depends on the seed and on `i` alone.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib

import numpy as np
from tqdm import tqdm

from qwen_asr_jax.files import new_directory
from training.sentences import Sentence, draw_sentence
from training.synthesis import Voice, draw_voice, require_espeak, speak

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


def _utterance(line: dict) -> Utterance:
    return Utterance(Sentence(**line["sentence"]), Voice(**line["voice"]), line["start"], line["num_samples"])


def draw_utterance(seed: int, index: int, *, held_out: bool) -> tuple[Sentence, Voice, np.ndarray]:
    """Sentence `index` of the corpus with this seed, its voice and its samples, `[num_samples]` float32."""
    rng = np.random.default_rng([seed, index])
    sentence = draw_sentence(rng)
    voice = draw_voice(rng, sentence.language, held_out=held_out)
    return sentence, voice, speak(sentence.spoken, voice)


def _drawn(seed: int, held_out: bool, index: int) -> tuple[dict, dict, bytes]:
    sentence, voice, samples = draw_utterance(seed, index, held_out=held_out)
    return dataclasses.asdict(sentence), dataclasses.asdict(voice), (samples * _FULL_SCALE).astype(np.int16).tobytes()


def make_corpus(directory: pathlib.Path, size: int, seed: int, *, held_out: bool = False) -> Corpus:
    """The corpus of that seed, made now unless the directory is there.

    Args:
      size: utterances.
      held_out: the voices and speeds that training never hears.

    Raises:
      SystemExit: espeak-ng is missing, or the directory holds another corpus.
    """
    made_as = {"size": size, "seed": seed, "held_out": held_out}
    stamp = directory / "made_as.json"
    if directory.exists():
        if json.loads(stamp.read_text()) != made_as:
            raise SystemExit(f"error: {directory} holds another corpus ({stamp.read_text().strip()}); remove it")
        return Corpus(directory)
    require_espeak()
    with new_directory(directory) as partial, (partial / "audio.i16").open("wb") as audio:
        with (partial / "index.jsonl").open("w", encoding="utf-8") as index:
            start = 0
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                drawn = pool.map(functools.partial(_drawn, seed, held_out), range(size))
                for sentence, voice, samples in tqdm(drawn, total=size, desc="speaking", unit="sentence"):
                    line = {"sentence": sentence, "voice": voice, "start": start, "num_samples": len(samples) // 2}
                    index.write(json.dumps(line, ensure_ascii=False) + "\n")
                    audio.write(samples)
                    start += len(samples) // 2
        (partial / "made_as.json").write_text(json.dumps(made_as) + "\n")
    return Corpus(directory)
