"""What is measured: a model, where there are no weights one of the real size with random values; and clips, or silence."""

from __future__ import annotations

import math
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from qwen_asr_jax import demo, runtime
from qwen_asr_jax.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from qwen_asr_jax.audio.read import Waveform, read_audio
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS, write_random_checkpoint
from qwen_asr_jax.errors import OutputError, UsageError
from qwen_asr_jax.pipelines.load import find_model

RANDOM_PREFIX = "random:"


def bench_model_dir(name: str | None) -> tuple[pathlib.Path, str | None]:
    """The directory of the model, and a line to show if it is not an ordinary one.

    Args:
      name: a directory or Hub id; `random:PRESET` for a checkpoint with random weights; None for the bundled demonstration
        model.

    Raises:
      CheckpointError: there is no such model.
      UsageError: there is no such preset, or the name is empty.
      OutputError: a random checkpoint cannot be written.
    """
    if name is None:
        return demo.MODEL_DIR, demo.NOTICE
    if not name:
        raise UsageError("--model_dir is empty; leave it out for the bundled demonstration model")
    if not name.startswith(RANDOM_PREFIX):
        return find_model(name), None
    preset = name.removeprefix(RANDOM_PREFIX)
    if preset not in MODELS or MODELS[preset].kind != "asr":
        presets = ", ".join(RANDOM_PREFIX + each for each, model in MODELS.items() if model.kind == "asr")
        raise UsageError(f"unknown model {name!r}: choose one of {presets}, or a directory")
    path = _random_checkpoint(preset)
    return path, f"{name}: the {preset} geometry with random weights, in {path}; its speed is real, its words are noise"


def _random_checkpoint(preset: str) -> pathlib.Path:
    """Makes the checkpoint if it is not there yet, in the user's cache directory, or else among temporaries."""
    try:
        path = runtime.user_cache_dir() / "models" / f"random-{preset}"
        if not path.exists():
            write_random_checkpoint(path, preset)
    except (OutputError, RuntimeError):
        path = pathlib.Path(tempfile.gettempdir()) / f"qwen_asr_jax-random-{preset}"
        if not path.exists():
            write_random_checkpoint(path, preset)
    return path


def silence(seconds: float) -> Waveform:
    """Zeros; shorter than the model's minimum they are padded like any clip.

    Raises:
      UsageError: the length makes no sense.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"silence must last more than 0 s, got {seconds:g}")
    num_samples = round(seconds * SAMPLE_RATE)
    samples = np.zeros(max(num_samples, MIN_SAMPLES), np.float32)
    return Waveform(name=f"silence {seconds:g} s", samples=samples, duration_s=num_samples / SAMPLE_RATE)


def bench_batches(workload: str, audio: Sequence[str], silence_s: float, batch_size: int) -> list[list[Waveform]]:
    """The batches that a workload runs: one per clip, or for `batch` one of all clips, repeated to fill it.

    Args:
      audio: paths; none for silence.

    Raises:
      AudioError: a file cannot be read.
      UsageError: there are more clips than a batch has places, or `full` or `load` is to run a batch.
    """
    if workload in ("full", "load") and batch_size != 1:
        raise UsageError(f"{workload} runs one clip at a time; several at once: --workload=batch")
    if workload == "batch" and len(audio) > batch_size:
        raise UsageError(f"{len(audio)} clips do not fit --batch_size={batch_size}; raise it")
    clips = [read_audio(path) for path in audio] or [silence(silence_s)]
    if workload == "batch":
        return [[clips[i % len(clips)] for i in range(batch_size)]]
    return [[clip] * batch_size for clip in clips]
