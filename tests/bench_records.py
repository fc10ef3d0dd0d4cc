"""Records for tests of what is made of records."""

from __future__ import annotations

from typing import Any

from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.summary import summarize

ENV = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789ab",
    "dirty": False,
    "package": "0.1.0",
    "cpu": "Test CPU",
    "cores": 2,
    "gpu": None,
    "driver": None,
    "python": "3.12.1",
    "jax": "0.12.0",
    "jaxlib": "0.12.0",
    "flax": "0.12.12",
    "xla_flags": "",
}


def record(totals_ms: tuple[float, ...] = (100.0, 110.0, 105.0), **changes: Any) -> Record:
    """A plausible record of the `full` workload."""
    runs = [{"total_ms": ms, "tokens": 30.0, "cpu_per_wall": 1.9} for ms in totals_ms]
    values: dict[str, Any] = {
        "workload": "full",
        "model": {"name": "test-model", "fingerprint": "ab" * 32, "parameters": 1000},
        "policy": "bf16",
        "backend": "cpu",
        "device": "Test CPU",
        "threads": 2,
        "batch_size": 1,
        "audio": {"name": "clip.wav", "sha256": "cd" * 32, "seconds": 11.0},
        "settings": {"runs": len(runs), "warmup": 1, "decode_tokens": 0},
        "runs": runs,
        "summary": {name: summarize([run[name] for run in runs]) for name in runs[0]},
        "env": dict(ENV),
        "compile": {"count": 7, "cached": 7, "seconds": 0.5, "recompiles": 0},
    }
    return Record(**(values | changes))
