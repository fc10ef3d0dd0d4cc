"""Transcribes a manifest's clips with ours and with transformers, both in float32, and counts what differs.

    python -m tests.parity.transcripts --manifest=demo_test_set/manifest.jsonl [--model_dir=DIR]

The model must be in the original layout; transformers gets a native copy of it. Exit status 1 if any clip's tokens differ.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from absl import app, flags
from tqdm import tqdm

from qwen_asr_jax import demo
from qwen_asr_jax.audio.read import read_audio
from qwen_asr_jax.pipelines.load import load_model
from tests.parity.native_copy import write_native_copy

flags.DEFINE_string("manifest", None, "JSON lines with `audio` and `text`.", required=True)
flags.DEFINE_string("model_dir", str(demo.MODEL_DIR), "Checkpoint in the original layout.")
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> None:
    """Compares clip by clip."""
    del argv
    try:
        from tests.parity.oracle import Oracle
    except ImportError as e:
        sys.exit(f'error: {e}; the reference needs: pip install -e ".[reference]"')
    manifest = pathlib.Path(FLAGS.manifest)
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    model = load_model(FLAGS.model_dir, "fp32")
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(write_native_copy(pathlib.Path(FLAGS.model_dir), pathlib.Path(folder) / "native"))
        for line in tqdm(lines, unit="clip", mininterval=5):
            samples = read_audio(manifest.parent / line["audio"]).samples
            ours, theirs = list(model.transcribe(samples).tokens), oracle.transcribe(model, samples)
            if ours != theirs:
                different += 1
                decode = model.tokenizer.decode
                tqdm.write(
                    f"{line['audio']}\n  ours    {decode(ours)}\n  theirs  {decode(theirs)}\n  said    {line['text']}"
                )
    print(f"{len(lines) - different} of {len(lines)} clips: the same tokens as transformers in float32")
    sys.exit(different > 0)


if __name__ == "__main__":
    app.run(main)
