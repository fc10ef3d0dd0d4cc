"""Makes a checkpoint with random weights in the real on-disk format.

    python scripts/make_checkpoint.py --preset=tiny --out=DIR

What it transcribes is noise, but everything else about it is real: names, shapes, dtypes, shards, tokenizer and side files.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import UsageError

flags.DEFINE_enum("preset", "tiny", ["tiny", "0.6b", "1.7b", "aligner-0.6b"], "Geometry.")
flags.DEFINE_enum("layout", "original", ["original", "native"], "File layout: the original one, or transformers' own.")
flags.DEFINE_integer("seed", 0, "Seed of the weights.", lower_bound=0)
flags.DEFINE_string("out", None, "Directory to write; must not exist yet, or be empty.")
flags.DEFINE_string(
    "tokenizer_dir", None, "Copy vocab.json and merges.txt from there; a small vocabulary is made if not given."
)
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Writes the checkpoint and returns the exit status."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}; usage: make_checkpoint.py --preset=tiny --out=DIR")
    if not FLAGS.out:
        raise UsageError("--out is missing; usage: make_checkpoint.py --preset=tiny --out=DIR")

    from qwen_asr_jax.checkpoint.random_checkpoint import write_random_checkpoint

    out = pathlib.Path(FLAGS.out)
    tokenizer_dir = pathlib.Path(FLAGS.tokenizer_dir) if FLAGS.tokenizer_dir else None
    write_random_checkpoint(out, FLAGS.preset, layout=FLAGS.layout, seed=FLAGS.seed, tokenizer_dir=tokenizer_dir)
    size = sum(path.stat().st_size for path in out.iterdir())
    cli.warn(f"wrote {out}: {FLAGS.preset}, {FLAGS.layout} layout, seed {FLAGS.seed}, {size / 1e6:.1f} MB, random weights")
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
