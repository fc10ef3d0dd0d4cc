"""Converts a checkpoint to an orbax directory that loads without renaming or casting.

python scripts/convert_checkpoint.py --model_dir=IN --out=OUT [--policy=bf16]
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.policy import PRESETS

flags.DEFINE_string("model_dir", None, "Checkpoint to read: original, native or orbax layout, or a Hub id.", short_name="d")
flags.DEFINE_string("out", None, "Directory to write; must not exist yet, or be empty.")
flags.DEFINE_enum("policy", "bf16", list(PRESETS), "Dtypes to store; other policies can still load the result.")
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Converts the checkpoint and returns the exit status."""
    if argv or not FLAGS.model_dir or not FLAGS.out:
        raise UsageError("usage: convert_checkpoint.py --model_dir=IN --out=OUT [--policy=bf16]")

    from qwen_asr_jax.checkpoint.convert import convert
    from qwen_asr_jax.pipelines.load import find_model

    out = pathlib.Path(FLAGS.out)
    weights = convert(find_model(FLAGS.model_dir), out, PRESETS[FLAGS.policy])
    cli.warn(f"wrote {out}: policy {FLAGS.policy}, {weights / 1e6:.1f} MB of weights")
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
