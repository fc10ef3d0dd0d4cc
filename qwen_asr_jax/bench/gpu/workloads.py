"""The bench's workloads on clips made by formula: whole transcriptions, stages, batches; as records."""

from __future__ import annotations

import functools
import gc
from collections.abc import Mapping
from typing import Any

from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench.gpu import checkpoints, sound
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.bench.options import Listener, Options
from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.runner import bench_model
from qwen_asr_jax.errors import BackendError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR

_CLIPS = 4
"""Different clips of a batch; they are repeated to fill it."""


def run(sheet: Sheet) -> None:
    """Measures one model; `settings`: `preset`, `policy`, `implementation`, and `jobs`.

    A job is `{"workload", "seconds", "tokens", "rows", "contexts", "needs_s"}`, all but the first optional.
    """
    given = sheet.settings
    settings = {name: given[name] for name in ("preset", "policy", "implementation")}
    path = checkpoints.model_dir(sheet.folder, given["preset"])
    try:
        model = load_model(path, given["policy"], implementation=given["implementation"])
    except BackendError as e:
        sheet.unavailable("workloads", settings, str(e))
        return
    for job in given["jobs"]:
        shown = {"workload": job["workload"], **settings, "clip_s": job.get("seconds"), "rows": job.get("rows", 1)}
        sheet.record("record", shown, functools.partial(_measure, sheet, model, job), job.get("needs_s", 0.0))
        gc.collect()


def _measure(sheet: Sheet, model: QwenASR, job: Mapping[str, Any]) -> Record:
    options = Options(
        runs=1 if sheet.quick else 5,
        warmup=1 if sheet.quick else 2,
        decode_tokens=job.get("tokens", 0),
        contexts=job.get("contexts", ()),
    )
    clips = batch(job.get("seconds", 11.0), job.get("rows", 1))
    path = checkpoints.model_dir(sheet.folder, sheet.settings["preset"])
    return bench_model(model, path, job["workload"], clips, options, Listener())


def batch(seconds: float, rows: int) -> list[Waveform]:
    """So many clips, of which a few differ."""
    different = [sound.clip(seconds, seed) for seed in range(min(rows, _CLIPS))]
    return [different[i % len(different)] for i in range(rows)]
