"""The first thing to run: transcribes a bundled clip with the bundled demonstration model.

python scripts/demo.py        (or: make demo)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli

flags.DEFINE_enum("clip", "english", ["short", "english", "german", "long", "silence"], "Which bundled clip.")
FLAGS = flags.FLAGS

NEXT = """
The bundled model is a demonstration: it knows some 500 words of English and German, learnt from synthetic speech. For all of
speech, in 30 languages:

    {folder}/hf download Qwen/Qwen3-ASR-0.6B --local-dir Qwen3-ASR-0.6B
    {python} scripts/transcribe.py speech.wav --model_dir=Qwen3-ASR-0.6B
"""


def main(argv: Sequence[str]) -> int:
    """Transcribes the clip twice, once with compiling and once without, and prints what a first look wants to see."""
    del argv

    from qwen_asr_jax import demo
    from qwen_asr_jax.pipelines.load import load_model
    from qwen_asr_jax.policy import DEFAULT_POLICY, get_policy

    model = load_model(demo.MODEL_DIR)
    cli.warn_of_missing_kernels(get_policy(DEFAULT_POLICY))
    clip = demo.clips()[FLAGS.clip]
    first = model.transcribe(clip.path)
    result = model.transcribe(clip.path)
    t = result.timings
    print(f"audio     {os.path.relpath(clip.path)}")
    print(f"expected  {clip.text}")
    print(f"heard     {result.text}")
    print(f"language  {result.language or 'none'}")
    print(
        f"took      {t.total_ms:.0f} ms for {result.duration:.1f} s of audio (RTF {result.rtf:.4f}, RTFx {result.rtfx:.0f});"
        f" first run {first.timings.total_ms:.0f} ms with compiling"
    )
    print(
        f"stages    mel {t.mel_ms:.1f} ms, encoder {t.encode_ms:.1f}, prefill {t.prefill_ms:.1f},"
        f" decode {t.decode_ms:.1f} for {len(result.tokens)} tokens"
    )
    python = os.path.relpath(sys.executable)
    print(NEXT.format(python=python, folder=os.path.dirname(python)), end="")
    if result.text != clip.text:
        cli.warn("what was heard is not what was expected: this installation computes something wrong (make test)")
        return cli.EXIT_FAILED
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
