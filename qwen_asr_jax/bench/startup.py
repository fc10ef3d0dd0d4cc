"""The `load` workload: fresh processes, first with an empty compilation cache, then with the one that this left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import time

import numpy as np

from qwen_asr_jax import processes, runtime
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench.timing import Figures
from qwen_asr_jax.errors import QwenASRError
from qwen_asr_jax.files import scratch_directory
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import Policy

TIMEOUT_S = 900.0
"""Longest that one start may take."""


def start_twice(model_dir: pathlib.Path, clip: Waveform, policy: Policy, engine: EngineOptions, backend: str) -> Figures:
    """Starts twice and returns `cold_` and `warm_` figures; see `startup_probe`.

    The weights come from the system's file cache if it holds them: make one start beforehand that is not counted.

    Raises:
      QwenASRError: a start failed.
    """
    with scratch_directory() as folder:
        audio = folder / "audio.npy"
        np.save(audio, clip.samples)
        settings = [json.dumps(dataclasses.asdict(each)) for each in (policy, engine)]
        figures: Figures = {}
        for kind in ("cold", "warm"):
            found = _start(folder / "xla", [str(model_dir), str(audio), *settings, backend])
            figures |= {f"{kind}_{name}": value for name, value in found.items()}
    return figures


def _start(cache_dir: pathlib.Path, arguments: list[str]) -> Figures:
    cache_dir.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "qwen_asr_jax.bench.startup_probe", repr(time.monotonic()), *arguments]
    environment = os.environ | {runtime.CACHE_VARIABLE: str(cache_dir)}
    done = processes.run(command, env=environment, timeout_s=TIMEOUT_S)
    if done.status:
        raise QwenASRError(f"a starting process failed: {done.reason()}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {name: float(value) for name, value in figures.items() if value is not None}
