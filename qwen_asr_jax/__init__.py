"""Qwen3-ASR in JAX: speech to text on GPUs and plain CPUs.

    from qwen_asr_jax import load_model

    model = load_model("Qwen3-ASR-0.6B", policy="bf16")
    print(model.transcribe("speech.wav").text)

Importing this package does not start JAX; the public names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_asr_jax.errors import QwenASRError
    from qwen_asr_jax.pipelines.load import load_model
    from qwen_asr_jax.pipelines.offline import QwenASR
    from qwen_asr_jax.pipelines.result import Timings, Transcription
    from qwen_asr_jax.policy import Policy

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "qwen_asr_jax.pipelines.load",
    "QwenASR": "qwen_asr_jax.pipelines.offline",
    "Transcription": "qwen_asr_jax.pipelines.result",
    "Timings": "qwen_asr_jax.pipelines.result",
    "Policy": "qwen_asr_jax.policy",
    "QwenASRError": "qwen_asr_jax.errors",
}

__all__ = ["Policy", "QwenASR", "QwenASRError", "Timings", "Transcription", "load_model"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
