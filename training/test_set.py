"""Makes the held-out test set: voices and speeds that training never hears, other sentences, as FLAC files with a manifest.

    python -m training.test_set --output=demo_test_set

The manifest is what `scripts/evaluate.py` reads; its fields `set` (clean, noisy, long, silence) and `voice` can be grouped by.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

from qwen_asr_jax.audio.frames import SAMPLE_RATE
from qwen_asr_jax.files import new_directory
from training import augment
from training.clips import NO_SPEECH, Clip, ClipSource, write_clip
from training.corpus import Corpus, make_corpus

flags.DEFINE_string("output", "demo_test_set", "Directory to make.")
flags.DEFINE_integer("seed", 2000, "Not the training's.")
flags.DEFINE_integer("corpus_size", 6000, "Sentences to speak and choose from.", lower_bound=100)
FLAGS = flags.FLAGS

SETS: dict[str, tuple[int, Callable[[ClipSource, np.random.Generator], Clip]]] = {
    "clean": (400, lambda source, rng: source.speech(rng.uniform(1.5, 12), augment.CLEAN, rng, same_voice=True)),
    "noisy": (400, lambda source, rng: source.speech(rng.uniform(1.5, 12), augment.NOISY, rng, same_voice=True)),
    "long": (
        60,
        lambda source, rng: source.speech(rng.uniform(20, 30), augment.CLEAN, rng, same_voice=True, stop_share=0.0),
    ),
    "silence": (200, lambda source, rng: source.no_speech(10.0, rng)),
}
"""Clips of each set, and how one is drawn."""


def make_test_set(directory: pathlib.Path, corpus: Corpus, seed: int) -> None:
    """Writes every set's clips, 16 kHz 16-bit FLAC, and `manifest.jsonl`.

    Raises:
      OutputError: the directory is taken or cannot be written.
    """
    source = ClipSource(corpus)
    with new_directory(directory) as partial:
        lines = []
        for number, (name, (count, draw)) in enumerate(SETS.items()):
            rng = np.random.default_rng([seed, number])
            for i in range(count):
                clip = draw(source, rng)
                file_name = f"{name}-{i:03d}.flac"
                write_clip(partial / file_name, clip)
                voice = corpus.utterances[clip.indices[0]].voice if clip.indices else None
                lines.append(
                    {
                        "audio": file_name,
                        "text": clip.text,
                        **({} if clip.language == NO_SPEECH else {"language": clip.language}),
                        "duration": round(len(clip.samples) / SAMPLE_RATE, 3),
                        "set": name,
                        "voice": voice.variant if voice else "none",
                        "accent": voice.accent if voice else "none",
                    }
                )
        manifest = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (partial / "manifest.jsonl").write_text(manifest, encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    """Speaks a corpus of held-out voices beside the output and draws the sets from it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    output = pathlib.Path(FLAGS.output)
    corpus = make_corpus(output.with_name(output.name + "_corpus"), FLAGS.corpus_size, FLAGS.seed, held_out=True)
    make_test_set(output, corpus, FLAGS.seed)
    print(f"{sum(count for count, _ in SETS.values())} clips in {output}")


if __name__ == "__main__":
    app.run(main)
