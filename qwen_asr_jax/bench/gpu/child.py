"""The process of one step: runs a section's module and, behind it, writes what was compiled.

    python -m qwen_asr_jax.bench.gpu.child TASK

TASK is a `sheet.Task` as JSON. The backend is the environment's choice (`JAX_PLATFORMS`); so are XLA's flags.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time

from qwen_asr_jax import processes, runtime
from qwen_asr_jax.bench.gpu.sheet import Sheet, Task
from qwen_asr_jax.errors import QwenASRError
from qwen_asr_jax.files import remove_partial

MODULES = {
    "checkpoint": "checkpoints",
    "reference": "reference",
    "machine": "machine",
    "parity": "parity",
    "matvec": "matvec",
    "loop": "loop",
    "conv": "conv",
    "workloads": "workloads",
    "memory": "memory",
    "compile": "compile",
}
"""The module of each section; it has a function `run(sheet)`."""


def main(arguments: list[str]) -> int:
    """Runs the step and returns its exit status; what went wrong is the last line on stderr."""
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, _ended)
    task = Task(**json.loads(arguments[0]))
    sheet = Sheet(task)
    from qwen_asr_jax.engine.compilations import compilations

    module = importlib.import_module(f"qwen_asr_jax.bench.gpu.{MODULES[task.section]}")
    try:
        runtime.configure()
        log = compilations()
        ready_s = time.monotonic() - begun
        module.run(sheet)
    except QwenASRError as e:
        print(" ".join(str(e).split()), file=sys.stderr)
        return 1
    if not log.count:
        return 0
    longest = sorted(log.programs, key=lambda program: -program[1])[:12]
    facts = {"longest": [[name, round(seconds, 3), cached] for name, seconds, cached in longest]}
    figures = {
        "programs": log.count,
        "from_cache": log.cached,
        "compile_s": log.compile_s,
        "cache_s": log.cache_s,
        "trace_s": log.trace_s,
        "lower_s": log.lower_s,
        "jax_ready_s": ready_s,
    }
    sheet.programs(figures, facts)
    return 0


def _ended(number: int, frame: object) -> None:
    """Ends the process at once, with its own children, and nothing half-written left behind."""
    del number, frame
    processes.end_all()
    remove_partial()
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
