"""Compares policies with float32 on one clip: errors of the logits, and how often the same token is chosen.

    python scripts/accuracy.py [--model_dir=DIR] [--audio=FILE] [--policies=bf16,fp16,int8,int8_all] [--steps=24]

Columns: largest and mean absolute difference of all logits, and the standard deviation of float32's own; at how many steps the
same token is chosen behind the same prefix, at all and where the runner-up is not within bfloat16's rounding of the best; and
how many tokens free decoding chooses alike until it differs. Of random weights the logits are nearly flat: their runners-up
are closer than those of a trained model, and their choices change sooner. Exit status: 0 measured, 1 something failed, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.policy import PRESETS
from qwen_asr_jax.runtime import BACKENDS

flags.DEFINE_string(
    "model_dir",
    None,
    "Model directory, a Hub id, random:0.6b or random:1.7b; the demonstration model if none.",
    short_name="d",
)
flags.DEFINE_string("audio", None, "Audio file; by default 5 s of silence.", short_name="i")
flags.DEFINE_list("policies", [name for name in PRESETS if name != "fp32"], "Presets to compare with fp32.")
flags.DEFINE_integer("steps", 24, "Tokens to choose.", lower_bound=1)
flags.DEFINE_enum("backend", "auto", list(BACKENDS), "Where to run; auto takes a GPU if JAX sees one.")
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Prints the table and returns the exit status."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}; the clip is given with --audio=FILE")
    if unknown := [name for name in FLAGS.policies if name not in PRESETS]:
        raise UsageError(f"unknown policy {unknown[0]!r}: choose of {', '.join(PRESETS)}")

    from tabulate import tabulate

    from qwen_asr_jax.bench.accuracy import HEADERS, measure_accuracy
    from qwen_asr_jax.bench.inputs import bench_batches, bench_model_dir

    (clip,) = bench_batches("full", [FLAGS.audio] if FLAGS.audio else [], 5.0, 1)[0]
    model_dir: pathlib.Path
    model_dir, notice = bench_model_dir(FLAGS.model_dir)
    if notice:
        cli.warn(notice)
    rows = measure_accuracy(model_dir, clip, FLAGS.policies, steps=FLAGS.steps, backend=FLAGS.backend)
    print(tabulate([row.cells() for row in rows], headers=HEADERS, disable_numparse=True, tablefmt="github"))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
