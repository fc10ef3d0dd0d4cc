"""What float32 on the CPU says: what every policy and implementation on the device is compared with."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from qwen_asr_jax import demo
from qwen_asr_jax.audio.ahead import Source
from qwen_asr_jax.bench.accuracy import REFERENCE, Accuracy, Reference, make_reference
from qwen_asr_jax.bench.gpu import checkpoints, sound
from qwen_asr_jax.bench.gpu.plan import DEMO
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.files import write_text
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR

CLIP = sound.clip(5.0, seed=5)
"""The clip behind which tokens are forced."""


def run(sheet: Sheet) -> None:
    """Writes the reference of one model; `settings`: `preset`, and `clips` of the demonstration model, or `steps`."""
    preset = sheet.settings["preset"]
    model = load_model(checkpoints.model_dir(sheet.folder, preset), REFERENCE, implementation="xla")
    if preset == DEMO:
        write_text(_texts_path(sheet.folder), json.dumps(texts(model, sheet.settings["clips"])))
        return
    found = make_reference(model, CLIP, sheet.settings["steps"])
    path = _logits_path(sheet.folder, preset)
    with open(partial := path.with_suffix(".partial"), "wb") as f:
        np.savez(f, tokens=np.asarray(found.tokens), logits=found.logits)
    os.replace(partial, path)


def texts(model: QwenASR, names: Sequence[str]) -> list[str]:
    """What the demonstration model hears in bundled clips, as one batch."""
    clips: list[Source] = [demo.clips()[name].path for name in names]
    return [result.text for result in model.transcribe(clips, batch_size=len(clips))]


def read_texts(folder: pathlib.Path) -> list[str]:
    """What `texts` said in float32 on the CPU."""
    return list(json.loads(_texts_path(folder).read_text(encoding="utf-8")))


def read_logits(folder: pathlib.Path, preset: str) -> Reference:
    """What `make_reference` said in float32 on the CPU."""
    with np.load(_logits_path(folder, preset)) as arrays:
        return Reference(arrays["tokens"].tolist(), arrays["logits"])


def as_figures(row: Accuracy) -> dict[str, float]:
    """The numbers of a comparison."""
    return {name: float(value) for name, value in dataclasses.asdict(row).items() if isinstance(value, int | float)}


def _texts_path(folder: pathlib.Path) -> pathlib.Path:
    return folder / "reference-demo.json"


def _logits_path(folder: pathlib.Path, preset: str) -> pathlib.Path:
    return folder / f"reference-{preset}.npz"
