"""Trains the demonstration model.

    python -m training --output=demo_training

Speaks the corpus with espeak-ng, trains, and leaves the checkpoint in OUTPUT/model. Interrupted, the same command goes on from
the last saved state.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import UsageError

flags.DEFINE_string("output", "demo_training", "Where everything is written: corpus, states, log, plot, model.")
flags.DEFINE_integer("steps", 12000, "Batches to train on.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of parameters, corpus and batches.", lower_bound=0)
flags.DEFINE_integer("corpus_size", 40000, "Sentences to speak.", lower_bound=100)
flags.DEFINE_float("learning_rate", 1.5e-3, "The highest learning rate.", lower_bound=0.0)
flags.DEFINE_integer("save_every", 500, "Steps between saved states.", lower_bound=1)
flags.DEFINE_integer("watch_every", 500, "Steps between looks at held-out voices.", lower_bound=1)
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Trains as the flags say."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}")
    for library in ("optax", "jiwer", "matplotlib"):
        if importlib.util.find_spec(library) is None:
            raise UsageError(f'{library} is not installed; training needs: pip install -e ".[train]"')

    from qwen_asr_jax import runtime

    runtime.configure("auto", 0)

    from training.train import Settings, train

    settings = Settings(steps=FLAGS.steps, seed=FLAGS.seed, corpus_size=FLAGS.corpus_size, learning_rate=FLAGS.learning_rate)
    model_dir = train(pathlib.Path(FLAGS.output), settings, save_every=FLAGS.save_every, watch_every=FLAGS.watch_every)
    print(f"the checkpoint is in {model_dir}")
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
