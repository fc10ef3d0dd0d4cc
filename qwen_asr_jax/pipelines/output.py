"""Results as text and JSON, on paper and on disk."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.pipelines.result import Transcription


def record(result: Transcription, *, model: str, policy: str, backend: str) -> dict[str, Any]:
    """The JSON object of one result. Keys are a promise: new ones may come, none goes."""
    return {
        "file": result.name,
        "duration_s": round(result.duration, 6),
        "language": result.language,
        "text": result.text,
        "tokens": list(result.tokens),
        "finish_reason": result.finish_reason,
        "truncated": result.truncated,
        "timings": {name: round(value, 3) for name, value in dataclasses.asdict(result.timings).items()},
        "rtf": round(result.rtf, 6),
        "rtfx": round(result.rtfx, 3),
        "model": model,
        "policy": policy,
        "backend": backend,
        "batch_size": result.batch_size,
        "warnings": list(result.warnings),
    }


def render(
    result: Transcription, output_format: str, *, model: str, policy: str, backend: str, ascii_only: bool = False
) -> str:
    """One result in the given format, without a line break at the end; `ascii_only` escapes all else in JSON."""
    if output_format == "json":
        return json.dumps(record(result, model=model, policy=policy, backend=backend), ensure_ascii=ascii_only)
    return result.text


def output_paths(names: Sequence[str], output_dir: pathlib.Path, output_format: str) -> list[pathlib.Path]:
    """Where each input's result goes: `output_dir/<stem>.<format>`.

    Raises:
      UsageError: two inputs would write the same file.
    """
    taken: dict[pathlib.Path, str] = {}
    for name in names:
        stem = "stdin" if name == "-" else pathlib.Path(name).stem
        path = output_dir / f"{stem}.{output_format}"
        if path in taken:
            raise UsageError(f"{taken[path]} and {name} would both write {path}; rename one or run them apart")
        taken[path] = name
    return list(taken)
