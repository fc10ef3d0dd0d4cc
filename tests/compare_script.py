"""What tests of comparisons share: small records, and the real script."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.summary import summarize

ROOT = pathlib.Path(__file__).parents[1]
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def record(values, workload="full", figure="total_ms", **fields) -> Record:
    runs = [{figure: value} for value in values]
    return Record(
        **{
            "workload": workload,
            "model": {"name": "models/tiny", "fingerprint": "f1"},
            "policy": "bf16",
            "backend": "cpu",
            "device": "Some CPU",
            "threads": 4,
            "batch_size": 1,
            "audio": {"name": "clips/fox.flac", "sha256": "a1", "seconds": 7.0},
            "settings": {"runs": len(runs)},
            "runs": runs,
            "summary": {figure: summarize(values)} if runs else {},
            "env": {},
            **fields,
        }
    )


def write(path: pathlib.Path, records) -> pathlib.Path:
    path.write_text("".join(f"{r.to_json()}\n" for r in records))
    return path


def script(*arguments, status: int = 0, cwd=ROOT) -> tuple[str, str]:
    """Stdout and stderr of the script. A failure never shows a traceback."""
    command = [sys.executable, f"{ROOT}/scripts/compare.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def fails(status: int, *arguments) -> str:
    """The one line on stderr, with nothing on stdout."""
    out, err = script(*arguments, status=status)
    assert (out, err.count("\n"), err[-1]) == ("", 1, "\n")
    assert err.startswith("compare.py: ")
    return err
