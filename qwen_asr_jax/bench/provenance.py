"""The parts of a record that say what was measured, and where."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from qwen_asr_jax import kernels
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench.cost import num_parameters
from qwen_asr_jax.bench.environment import device_name, environment, fingerprint
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.typing import Params


def headline(model: QwenASR, workload: str, clips: Sequence[Waveform]) -> str:
    """What is about to be measured, in one line."""
    where = _device_line()
    audio = audio_identity(clips)
    computes = f"{model.engine.policy.name}, {kernels.describe(model.engine.policy)}"
    return f"{workload}: {model.name}, {computes}, {audio['name']} ({audio['seconds']:.2f} s), {where}"


def identity(name: str, model_dir: pathlib.Path, params: Params) -> dict[str, Any]:
    """The `model` of a record; `params` may be shapes alone."""
    return {"name": name, "fingerprint": fingerprint(model_dir), "parameters": num_parameters(params)}


def provenance() -> dict[str, Any]:
    """The fields of a record that say where it was measured."""
    backend = jax.default_backend()
    return {
        "backend": backend,
        "device": device_name(backend),
        "threads": _threads(),
        "env": environment(backend),
    }


def kernel_notes() -> tuple[str, ...]:
    """The `notes` of a record that ran a model: why a CPU host has no native kernels, if it has none."""
    reason = kernels.missing()
    return () if reason is None else (f"without native kernels: {reason}",)


def _threads() -> int | None:
    """Size of XLA's CPU pool, as the environment sets it."""
    threads = os.environ.get("NPROC") or os.environ.get("PJRT_NPROC") or ""
    return int(threads) if threads.isdecimal() else None


def _device_line() -> str:
    """The device and its threads, for people."""
    backend = jax.default_backend()
    threads = f", {_threads() or '?'} of {os.cpu_count()} CPU threads" if backend == "cpu" else ""
    return f"{device_name(backend)}{threads}"


def audio_identity(clips: Sequence[Waveform]) -> dict[str, Any]:
    """The `audio` of a record; for a batch, its clips together."""
    names = dict.fromkeys(os.path.basename(clip.name) for clip in clips)
    digest = hashlib.sha256(b"".join(clip.samples.tobytes() for clip in clips)).hexdigest()
    return {
        "name": ", ".join(names) + (f" x{len(clips)}" if len(clips) > 1 else ""),
        "sha256": digest,
        "seconds": sum(clip.duration_s for clip in clips),
    }
