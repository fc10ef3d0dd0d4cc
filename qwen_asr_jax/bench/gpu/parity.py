"""Whether the device says what float32 on the CPU says: one policy, with every implementation that it has there."""

from __future__ import annotations

import dataclasses

from qwen_asr_jax import demo
from qwen_asr_jax.bench.accuracy import compare
from qwen_asr_jax.bench.gpu import checkpoints, reference
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.errors import BackendError
from qwen_asr_jax.pipelines.load import load_model, with_chosen_kernels
from qwen_asr_jax.policy import PRESETS


def run(sheet: Sheet) -> None:
    """Compares; `settings`: `policy`, `implementations`, `presets`, `clips` of the demonstration model."""
    policy = sheet.settings["policy"]
    for implementation in sheet.settings["implementations"]:
        settings = {"policy": policy, "implementation": implementation}
        try:
            with_chosen_kernels(dataclasses.replace(PRESETS[policy], implementation=implementation))
        except BackendError as e:
            sheet.unavailable("transcripts", settings, str(e))
            continue
        sheet.measure("transcripts", settings, lambda s=settings: transcripts(sheet, **s), needs_s=10)  # type: ignore[misc]
        for preset in sheet.settings["presets"]:
            of_preset = {"preset": preset, **settings}
            sheet.measure("logits", of_preset, lambda s=of_preset: logits(sheet, **s), needs_s=15)  # type: ignore[misc]


def transcripts(sheet: Sheet, policy: str, implementation: str) -> dict[str, float]:
    """How many of the bundled clips have the reference's text, and how many the right one."""
    model = load_model(demo.MODEL_DIR, policy, implementation=implementation)
    names = sheet.settings["clips"]
    found, wanted = reference.texts(model, names), reference.read_texts(sheet.folder)
    right = [demo.clips()[name].text for name in names]
    return {
        "clips": len(wanted),
        "equal": sum(a == b for a, b in zip(found, wanted, strict=True)),
        "right": sum(a == b for a, b in zip(found, right, strict=True)),
    }


def logits(sheet: Sheet, preset: str, policy: str, implementation: str) -> dict[str, float]:
    """Errors and choices along the reference's tokens; see `bench.accuracy.Accuracy`."""
    model = load_model(checkpoints.model_dir(sheet.folder, preset), policy, implementation=implementation)
    return reference.as_figures(compare(model, reference.CLIP, reference.read_logits(sheet.folder, preset)))
