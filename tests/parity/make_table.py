"""Writes docs/parity.md: `python -m tests.parity.make_table [--full]`; --full adds the 0.6B geometry (6 GB of memory)."""

from __future__ import annotations

import datetime
import pathlib
import platform
import sys
import tempfile

import jax
import torch
import transformers

from qwen_asr_jax.kernels import describe
from qwen_asr_jax.policy import PRESETS
from tests.audio_samples import SHARED_TOKENIZER
from tests.parity.cases import GEOMETRIES, TOKENS, checkpoints, clip, compare, load, references

OUT = pathlib.Path(__file__).parents[2] / "docs" / "parity.md"

HEADER = """# Parity with transformers

Ours against the native `qwen3_asr` of transformers in float32, on random checkpoints (`scripts/make_checkpoint.py`, seed 7).
Written by `python -m tests.parity.make_table --full`; `make parity` asserts the bounds (`tests/parity/test_parity.py`).

- **mel**: largest absolute difference of the log-mel (bound 1e-4).
- **encoder**: largest difference of the audio features over their largest value (fp32: bound 1e-5).
- **logits**: root mean square difference over the standard deviation of the reference's logits, along its tokens.
- **its own**: the same difference for transformers' own model in that dtype: what half precision costs there.
- **choices**: positions at which both choose the same token when both are fed the reference's tokens.
- **tokens**: free-running greedy decoding of {tokens} tokens gives the same tokens. After a first difference the two run on
  different inputs, so `no` beside {tokens} or nearly {tokens} equal choices means one near-tie, not a wrong model: random
  models have many near-ties, trained ones few. Choices come from one pass over all tokens, which rounds differently from
  step-by-step decoding in half precision: a near-tie can fall in one and not in the other.

{date}, {machine}, kernels {kernels}, Python {python}, jax {jax}, torch {torch}, transformers {transformers}.

| geometry | layout | clip | policy | mel | encoder | logits | its own | choices | tokens |
|---|---|---|---|--:|--:|--:|--:|--:|---|
"""


def main() -> None:
    """Runs every combination and writes the page."""
    full = "--full" in sys.argv
    geometries = {**GEOMETRIES, **({"0.6b": "0.6b"} if full else {})}
    lines = []
    for name, geometry in geometries.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = SHARED_TOKENIZER if name == "0.6b" and SHARED_TOKENIZER.exists() else None
            root = checkpoints(geometry, pathlib.Path(folder), tokenizer)
            answers = references(root)
            for layout, policy in [("original", "fp32"), ("native", "fp32"), ("original", "bf16"), ("original", "fp16")]:
                model = load(root, layout, policy)
                for c, reference in answers.items():
                    row = compare(model, reference, clip(c))
                    own = f"{reference.own_errors[policy]:.1e}" if policy in reference.own_errors else ""
                    equal = "yes" if row.tokens_equal else "no"
                    lines.append(
                        f"| {name} | {layout} | {c} | {policy} | {row.mel_error:.1e} | {row.encoder_error:.1e} |"
                        f" {row.logit_error:.1e} | {own} | {row.choices}/{len(reference.tokens)} | {equal} |"
                    )
                    print(lines[-1], flush=True)
    machine = f"{platform.machine()} CPU, {jax.device_count()} JAX device"
    OUT.write_text(
        HEADER.format(
            tokens=TOKENS,
            date=datetime.date.today().isoformat(),
            machine=machine,
            kernels=describe(PRESETS["fp32"]),
            python=platform.python_version(),
            jax=jax.__version__,
            torch=torch.__version__,
            transformers=transformers.__version__,
        )
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
