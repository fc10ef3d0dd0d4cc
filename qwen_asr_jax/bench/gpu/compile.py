"""Starting: process to first token, with an empty cache of compiled programs and with a full one; as a record."""

from __future__ import annotations

from qwen_asr_jax.bench import machine
from qwen_asr_jax.bench.gpu import checkpoints, sound
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.bench.options import Listener, Options
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import PRESETS


def run(sheet: Sheet) -> None:
    """Starts twice; `settings`: `preset`, `policy`."""
    given = sheet.settings
    path = checkpoints.model_dir(sheet.folder, given["preset"])
    options = Options(runs=1, warmup=0)
    clip = sound.clip(5.0 if sheet.quick else 11.0)
    sheet.record(
        "start",
        dict(given),
        lambda: machine.bench_load(path, PRESETS[given["policy"]], EngineOptions(), "auto", clip, options, Listener()),
    )
