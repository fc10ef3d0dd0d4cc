"""Makes the held-out test set: voices, speeds, noise and sentences that training never hears, as FLAC files with a manifest.

    python -m training.test_set --output=demo_test_set

Sentences of one and two words cannot all be new and may recur; longer ones are not in the training's corpus. Within the
test sets, sentences recur in other clips. The manifest is what `scripts/evaluate.py` reads; it can group by `set` (clean,
noisy, long, silence), `voice`, `accent`, and `kind` (of silence).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.audio.frames import SAMPLE_RATE
from qwen_asr_jax.errors import OutputError, UsageError
from qwen_asr_jax.files import new_directory
from training import augment
from training.clips import NO_SPEECH, Clip, ClipSource, write_clip
from training.corpus import Corpus, make_corpus, sentence_of
from training.sentences import Sentence

flags.DEFINE_string("output", "demo_test_set", "Directory to make.")
flags.DEFINE_integer("seed", 2000, "Seed of the test set; must differ from the training's.", lower_bound=0)
flags.DEFINE_integer("training_seed", 0, "Seed of the training corpus whose sentences are left out.", lower_bound=0)
flags.DEFINE_integer("training_corpus_size", 40000, "Sentences in that training corpus.", lower_bound=0)
flags.DEFINE_integer("corpus_size", 6000, "Sentences to speak and choose from.", lower_bound=100)
FLAGS = flags.FLAGS

SETS: dict[str, tuple[int, Callable[[ClipSource, np.random.Generator], Clip]]] = {
    "clean": (400, lambda source, rng: source.speech(rng.uniform(1.5, 12), augment.CLEAN, rng, same_voice=True)),
    "noisy": (400, lambda source, rng: source.speech(rng.uniform(1.5, 12), augment.NOISY, rng, same_voice=True)),
    "long": (
        60,
        lambda source, rng: source.speech(rng.uniform(20, 30), augment.CLEAN, rng, same_voice=True, stop_share=0.0),
    ),
    "silence": (200, lambda source, rng: source.no_speech(10.0, rng, noise_bank=augment.TEST_NOISE)),
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
            rng = np.random.default_rng([seed, number, 1])
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
                        "kind": clip.kind or "speech",
                    }
                )
        manifest = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (partial / "manifest.jsonl").write_text(manifest, encoding="utf-8")


def trained_on(seed: int, size: int) -> Callable[[Sentence], bool]:
    """Whether a sentence of more than two words is in the training's corpus of that seed and size."""
    texts = {sentence_of(seed, index).text for index in range(size)}
    return lambda sentence: sentence.text in texts and sentence.text.count(" ") > 1


def main(argv: Sequence[str]) -> int:
    """Speaks a corpus of held-out voices beside the output and draws the sets from it."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}")
    output = pathlib.Path(FLAGS.output)
    if output.exists():
        raise OutputError(f"{output}: exists already; remove it or choose another --output")
    unlike = trained_on(FLAGS.training_seed, FLAGS.training_corpus_size)
    beside = output.with_name(output.name + "_corpus")
    corpus = make_corpus(beside, FLAGS.corpus_size, FLAGS.seed, held_out=True, unlike=unlike)
    make_test_set(output, corpus, FLAGS.seed)
    print(f"{sum(count for count, _ in SETS.values())} clips in {output}")
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
