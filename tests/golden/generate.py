"""Writes tokens.json: what transformers in float32 makes of the tiny random checkpoint. Needs the [reference] extra.

python -m tests.golden.generate
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import torch
import transformers

from qwen_asr_jax.checkpoint.random_checkpoint import write_random_checkpoint
from qwen_asr_jax.text.prompt import build_prompt
from qwen_asr_jax.text.tokenizer import load_tokenizer
from tests.audio_samples import synthetic
from tests.parity.oracle import Oracle

PATH = pathlib.Path(__file__).parent / "tokens.json"

CASES = [
    {"seconds": seconds, "seed": seed, "context": context, "language": language}
    for seconds, seed, context, language in [
        (0.3, 1, "", None),
        (3.64, 6, "", "English"),
        (7.995, 3, "Ada Lovelace, \nCharles Babbage", None),
        (10.4, 1, "", None),
        (16.005, 5, "a topic", "German"),
        (35.0, 6, "", None),
    ]
]
COUNT = 24


def main() -> None:
    """Runs the reference on every case."""
    with tempfile.TemporaryDirectory() as folder:
        model_dir = pathlib.Path(folder) / "tiny"
        write_random_checkpoint(model_dir, "tiny", layout="native")
        tokenizer = load_tokenizer(model_dir)
        oracle = Oracle(model_dir)
        results = []
        for case in CASES:
            features = oracle.features(synthetic(case["seconds"], case["seed"]))
            prompt = build_prompt(tokenizer, len(oracle.encode(features)), case["context"], case["language"])
            tokens = oracle.generate(list(prompt.ids), features, COUNT)
            results.append(case | {"prompt_tokens": len(prompt.ids), "tokens": tokens})
    content = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": results}
    assert all(len(set(r["tokens"])) > COUNT // 3 for r in results), "a case that says one token for ever shows little"
    PATH.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
