"""The first thing to run: makes a tiny checkpoint and transcribes the bundled clip with it.

python scripts/demo.py        (or: make demo)
"""

from __future__ import annotations

import importlib.resources
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli

flags.DEFINE_string("model_dir", "demo_model", "Where the checkpoint is made, and found again the next time.")
FLAGS = flags.FLAGS

NOISE = """
The text above is noise: the demo downloads nothing, so its tiny model has random weights. All the rest is real: the
checkpoint's format, the compiled programs, and the timings (of a tiny model). For real transcripts:

    {folder}/hf download Qwen/Qwen3-ASR-0.6B --local-dir Qwen3-ASR-0.6B
    {python} scripts/transcribe.py qwen_asr_jax/assets/fox.flac --model_dir=Qwen3-ASR-0.6B
"""


def main(argv: Sequence[str]) -> int:
    """Makes the checkpoint if need be, transcribes, and prints what a first look wants to see."""
    del argv

    from qwen_asr_jax.checkpoint.random_checkpoint import write_random_checkpoint
    from qwen_asr_jax.pipelines.load import load_model
    from qwen_asr_jax.policy import DEFAULT_POLICY, get_policy

    model_dir = pathlib.Path(FLAGS.model_dir)
    if not model_dir.exists():
        print(f"making a tiny random checkpoint in {model_dir} ...")
        write_random_checkpoint(model_dir, "tiny")
    model = load_model(model_dir)
    cli.warn_of_missing_kernels(get_policy(DEFAULT_POLICY))
    assets = importlib.resources.files("qwen_asr_jax") / "assets"
    with importlib.resources.as_file(assets / "fox.flac") as clip:
        first = model.transcribe(clip, max_new_tokens=32)
        result = model.transcribe(clip, max_new_tokens=32)
    t = result.timings
    print(f"spoken   {(assets / 'fox.txt').read_text(encoding='utf-8').strip()}")
    print(f"heard    {result.text}")
    print(
        f"took     {t.total_ms:.0f} ms for {result.duration:.1f} s of audio (RTF {result.rtf:.4f}, RTFx {result.rtfx:.0f});"
        f" first run {first.timings.total_ms:.0f} ms with compiling"
    )
    print(
        f"stages   mel {t.mel_ms:.1f} ms, encoder {t.encode_ms:.1f}, prefill {t.prefill_ms:.1f},"
        f" decode {t.decode_ms:.1f} for {len(result.tokens)} tokens"
    )
    python = os.path.relpath(sys.executable)
    print(NOISE.format(python=python, folder=os.path.dirname(python)), end="")
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
