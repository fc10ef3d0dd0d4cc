"""Checkpoints with random weights, made while sections that need none are running."""

from __future__ import annotations

import pathlib

from qwen_asr_jax import demo
from qwen_asr_jax.bench.gpu.plan import DEMO
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.checkpoint.random_checkpoint import write_random_checkpoint


def model_dir(folder: pathlib.Path, preset: str) -> pathlib.Path:
    """Where the checkpoint of a preset lies, or will."""
    return demo.MODEL_DIR if preset == DEMO else folder / "models" / preset


def run(sheet: Sheet) -> None:
    """Writes one preset's checkpoint, unless it is there."""
    path = model_dir(sheet.folder, sheet.settings["preset"])
    if not path.exists():
        write_random_checkpoint(path, sheet.settings["preset"])
