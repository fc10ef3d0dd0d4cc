"""What the device is and what it can do at most: memory, matrix products, launches."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax.bench import machine, memory, roofline
from qwen_asr_jax.bench.gpu import hlo
from qwen_asr_jax.bench.gpu.costs import write_costs
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.bench.options import Listener, Options
from qwen_asr_jax.bench.provenance import provenance
from qwen_asr_jax.typing import Array

_COPIES = 16
"""Passes over the buffer in one program."""


def run(sheet: Sheet) -> None:
    """Measures everything; `settings`: `presets` whose costs are written, too."""
    sheet.add("device", {}, _memory_limits(), _facts())
    options = Options(runs=1 if sheet.quick else 5, warmup=1)
    sheet.record("roofline", {}, lambda: machine.bench_roofline(options, Listener()))
    mib = 64 if sheet.quick else 1024
    sheet.measure("copy", {"buffer_mib": mib}, lambda: copy_rate(mib))
    for dtype, precision in _PRODUCTS:
        for size in (256,) if sheet.quick else (4096, 8192):
            settings = {"dtype": dtype, "precision": precision, "size": size}
            sheet.measure("product", settings, functools.partial(product_rate, dtype, precision, size), needs_s=5)
    for name, measure in {"kernels in a row": chain_cost, "loop that looks": looking_cost}.items():
        sheet.measure(name, {}, functools.partial(measure, 20 if sheet.quick else 500), needs_s=5)
    write_costs(sheet, sheet.settings["presets"])


_PRODUCTS = (
    ("bfloat16", "default"),
    ("float32", "highest"),
    ("float16", "default"),
    ("int8", "default"),
    ("float32", "default"),
)
"""Operands and precision, the most telling first; float32 by default may be TF32 on GPUs."""


_ENVIRONMENT = ("gpu", "driver", "cpu", "cores", "ram_bytes", "python", "commit", "dirty")


def _facts() -> dict[str, Any]:
    found = provenance()
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name.startswith(("jax-cuda", "nvidia-")) or name in ("jax", "jaxlib", "flax"):
            versions[name] = distribution.version
    return {
        "backend": found["backend"],
        "device": found["device"],
        **{
            name: found["env"].get(name)
            for name in ("gpu", "driver", "cpu", "cores", "ram_bytes", "python", "commit", "dirty")
        },
        "platform_version": jax.devices()[0].client.platform_version.split("\n")[0],
        "compute_capability": str(getattr(jax.devices()[0], "compute_capability", "")),
        "versions": dict(sorted(versions.items())),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device_count": jax.device_count(),
    }


def _memory_limits() -> dict[str, float]:
    stats: Mapping[str, int] = jax.local_devices()[0].memory_stats() or {}
    return {name: float(stats[name]) for name in ("bytes_limit", "bytes_in_use") if name in stats} | {
        "peak_rss_bytes": float(memory.peak_rss_bytes())
    }


@functools.partial(jax.jit, donate_argnums=0)
def _copy(x: Array) -> Array:
    """Reads and writes `x` `_COPIES` times.

    Without the barrier XLA unrolls so short a loop and does it all in one pass.
    """
    return lax.fori_loop(0, _COPIES, lambda _, y: lax.optimization_barrier(y * 0.5 + 1.0), x)


def copy_rate(mib: int) -> dict[str, float]:
    """GB/s of reading and writing a buffer, both counted; and with each byte counted once, as a copied one."""
    buffer = jnp.full((mib << 18,), 0.5, jnp.float32)
    num_bytes = buffer.nbytes
    buffer = _copy(buffer)
    best = math.inf
    for _ in range(5):
        jax.block_until_ready(buffer)
        start = time.perf_counter()
        buffer = jax.block_until_ready(_copy(buffer))
        best = min(best, time.perf_counter() - start)
    rate = num_bytes * _COPIES / best / 1e9
    return {"read_and_write_gb_s": 2 * rate, "copied_gb_s": rate}


_CHAIN = 32
"""Products in a row in one program; none can be joined with the next."""


@functools.partial(jax.jit, static_argnums=2)
def _chain(x: Array, matrix: Array, times: int) -> Array:
    def body(_: int, x: Array) -> Array:
        for _ in range(_CHAIN):
            x = lax.dot_general(x, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).astype(x.dtype)
        return x

    return lax.fori_loop(0, times, body, x)


def chain_cost(times: int) -> dict[str, float]:
    """What a kernel costs among kernels that have nearly nothing to do, in a loop whose end is known: its launch."""
    x, matrix = jnp.full((16, 64), 0.5, jnp.bfloat16), jnp.full((64, 64), 1 / 64, jnp.bfloat16)
    program = _chain.lower(x, matrix, times).compile()
    kernels = hlo.kernels_of(program)
    jax.block_until_ready(program(x, matrix))
    seconds = min(roofline.seconds_per_call(program, x, matrix) for _ in range(3)) / times
    return {"kernel_us": seconds / (kernels or math.nan) * 1e6, "product_us": seconds / _CHAIN * 1e6, "kernels": kernels}


@functools.partial(jax.jit, static_argnums=1)
def _looking(x: Array, times: int) -> Array:
    return lax.while_loop(lambda y: y[0] < times, lambda y: y + 1.0, x)


def looking_cost(times: int) -> dict[str, float]:
    """What one pass of a loop costs whose end depends on what it computes, with one tiny kernel in it."""
    x = jnp.zeros(8, jnp.float32)
    jax.block_until_ready(_looking(x, times))
    seconds = min(roofline.seconds_per_call(_looking, x, times) for _ in range(3)) / times
    return {"pass_us": seconds * 1e6}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _product(a: Array, b: Array, accum_dtype: str, precision: str) -> Array:
    return lax.dot_general(
        a, b, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.dtype(accum_dtype)
    )


def product_rate(dtype: str, precision: str, size: int) -> dict[str, float]:
    """Rate of square products, summed in float32, or int32 for int8."""
    accum_dtype = "int32" if dtype == "int8" else "float32"
    values = np.random.default_rng(size).integers(1, 9, (size, size)).astype(np.float32)
    matrix = jnp.asarray(values if dtype == "int8" else values / 8).astype(dtype)
    jax.block_until_ready(_product(matrix, matrix, accum_dtype, precision))
    seconds = min(roofline.seconds_per_call(_product, matrix, matrix, accum_dtype, precision) for _ in range(2))
    return {"gflop_s": 2 * size**3 / seconds / 1e9}
