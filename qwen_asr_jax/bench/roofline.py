"""What this machine can do at most, measured with the same XLA that runs the model; kept for the floors of other workloads."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from qwen_asr_jax import runtime
from qwen_asr_jax.bench.cost import Limits
from qwen_asr_jax.bench.environment import device_name
from qwen_asr_jax.bench.timing import Figures
from qwen_asr_jax.errors import OutputError
from qwen_asr_jax.files import write_text
from qwen_asr_jax.typing import Array

MATMUL_SIZES = (1024, 2048, 4096)
"""Sizes of the square products; on a GPU the largest takes well under a millisecond, so many are enqueued at once."""

_METHOD = 1
"""Raised when figures would change for another reason than the machine."""

_NUM_BUFFERS = 4
_BUFFER_BYTES = 256 << 20
"""Several times any cache."""

_LEAST_S = 0.01
"""Work is enqueued until it takes so long, so that launching and waiting are lost in it."""
_TINY_CALLS = 1000


def _reduce_all(buffers: list[Array]) -> list[Array]:
    return [jnp.sum(b) for b in buffers]


def _reduce_rows(buffers: list[Array]) -> list[Array]:
    return [jnp.sum(b, axis=0) for b in buffers]


def _maximum(buffers: list[Array]) -> list[Array]:
    return [jnp.max(b) for b in buffers]


_READS = tuple(jax.jit(f) for f in (_reduce_all, _reduce_rows, _maximum))
"""Which reduction is quickest depends on the backend and its version; the limit is the best of them."""


@jax.jit
def _matmul(a: Array, b: Array) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


@jax.jit
def _tiny(x: Array) -> Array:
    return x + 1.0


@jax.jit
def _tiny_loop(x: Array) -> Array:
    return lax.fori_loop(0, _TINY_CALLS, lambda _, y: y * 0.5 + 1.0, x)


def prepare_read() -> Callable[[], float]:
    """Makes the buffers (1 GiB) and returns a function that measures the read bandwidth, in 1e9 bytes per second.

    Three rounds of the best reduction, of which the median counts: neighbours come and go within tens of milliseconds.
    """
    buffers = [jnp.full((_BUFFER_BYTES // 4096, 1024), 0.5 + i, jnp.float32) for i in range(_NUM_BUFFERS)]
    total_bytes = sum(b.nbytes for b in buffers)
    for read in _READS:
        jax.block_until_ready(read(buffers))  # compiles

    def measure() -> float:
        rounds = [min(seconds_per_call(read, buffers) for read in _READS) for _ in range(3)]
        return total_bytes / statistics.median(rounds) / 1e9

    return measure


def prepare() -> Callable[[], Figures]:
    """Makes all operands and returns a function that measures everything once.

    The function's figures: `read_gb_s`, `f32_1024_gflop_s` and so on for each size and dtype, `dispatch_us` (one call of a
    compiled program from Python), `loop_step_us` (one kernel in a loop on the device).
    """
    read = prepare_read()
    # Values between 0.1 and 1: zeros could be quicker than real data, denormals slower.
    matrices = {
        (name, n): jax.random.uniform(jax.random.key(n), (n, n), dtype, 0.1, 1.0)
        for name, dtype in (("f32", jnp.float32), ("bf16", jnp.bfloat16))
        for n in MATMUL_SIZES
    }
    vector = jnp.zeros(8, jnp.float32)
    jax.block_until_ready((matrices, vector))

    def run() -> Figures:
        figures = {"read_gb_s": read()}
        for (name, n), matrix in matrices.items():
            seconds = min(seconds_per_call(_matmul, matrix, matrix) for _ in range(2))
            figures[f"{name}_{n}_gflop_s"] = 2 * n**3 / seconds / 1e9
        figures["dispatch_us"] = seconds_per_call(_many_calls, vector) / _TINY_CALLS * 1e6
        figures["loop_step_us"] = seconds_per_call(_tiny_loop, vector) / _TINY_CALLS * 1e6
        return figures

    return run


def _many_calls(x: Array) -> Array:
    for _ in range(_TINY_CALLS):
        x = _tiny(x)
    return x


def seconds_per_call(f: Callable[..., Any], *args: Any) -> float:
    """Seconds per call, from as many calls in a row as take `_LEAST_S`; what they return is alive at once."""
    calls, seconds = 1, 0.0
    while True:
        start = time.perf_counter()
        results = [f(*args) for _ in range(calls)]
        jax.block_until_ready(results)
        seconds = time.perf_counter() - start
        if seconds >= _LEAST_S or calls >= 100:
            return seconds / calls
        calls = max(2 * calls, min(100, round(1.2 * calls * _LEAST_S / max(seconds, 1e-6))))


def limits_of(runs: list[Figures], date: str) -> Limits:
    """The best of several runs: a limit is what was ever reached."""
    best = {name: max(run[name] for run in runs) for name in runs[0]}
    return Limits(
        read_gb_s=best["read_gb_s"],
        f32_gflop_s=max(best[f"f32_{n}_gflop_s"] for n in MATMUL_SIZES),
        bf16_gflop_s=max(best[f"bf16_{n}_gflop_s"] for n in MATMUL_SIZES),
        date=date,
    )


def keep(limits: Limits) -> None:
    """Stores the limits for this machine, device, number of threads, version of XLA and way of measuring."""
    try:
        path = _path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(limits)) + "\n")
    except (OSError, RuntimeError, OutputError):
        pass  # no place to keep them: they are measured again


def kept() -> Limits | None:
    """What `keep` stored last for the same machine and settings, or None."""
    try:
        return Limits(**json.loads(_path().read_text(encoding="utf-8")))
    except (OSError, RuntimeError, ValueError, TypeError):
        return None


def _path() -> pathlib.Path:
    backend = jax.default_backend()
    key = [
        backend,
        device_name(backend),
        os.environ.get("NPROC"),
        importlib.metadata.version("jaxlib"),
        os.environ.get("XLA_FLAGS", ""),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return runtime.user_cache_dir() / "roofline" / f"{digest}.json"
