"""Products of few rows with the decoder's matrices, as plain XLA does them: how near they come to the memory's rate.

Many different matrices are multiplied in one program, in a loop on the device, so that no cache holds them and no launch from
Python is in the figures.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qwen_asr_jax.bench.gpu import hlo
from qwen_asr_jax.bench.gpu.matrices import STORED, TURNED, products
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.bench.roofline import seconds_per_call
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.ops.linear import linear
from qwen_asr_jax.typing import Array

_TOTAL_BYTES = 256 << 20
"""What one pass reads at least: several times any cache."""
_MOST_MATRICES = 64
_PROGRAM_S = 4.0
"""Seconds that compiling and measuring one case take, with the choice among kernels."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of product.

    Attributes:
      preset: whose decoder.
      product: its name in there.
      shape: outputs and inputs.
      dtype: of the matrix; operands of int8 ones are bfloat16.
      rows: of the other operand.
      layout: `STORED` or `TURNED`.
    """

    preset: str
    product: str
    shape: tuple[int, int]
    dtype: str = "bfloat16"
    rows: int = 1
    layout: str = STORED


def run(sheet: Sheet) -> None:
    """Measures case by case, the most telling first; `settings`: `presets`, `variant` (of XLA's flags), `only_first`."""
    variant = sheet.settings.get("variant", "")
    for case in _cases(sheet.settings["presets"], bool(sheet.settings.get("only_first")), sheet.quick):
        settings = dataclasses.asdict(case) | {"shape": list(case.shape), "variant": variant}
        sheet.measure("product", settings, functools.partial(measure, case, sheet.quick), needs_s=_PROGRAM_S)
    if sheet.settings.get("only_first"):
        return
    for preset in sheet.settings["presets"]:
        for programs in (1, 2):
            settings = {"preset": preset, "programs": programs}
            sheet.measure("head and argmax", settings, functools.partial(head, preset, programs), needs_s=_PROGRAM_S)


def _cases(presets: Sequence[str], only_first: bool, quick: bool) -> Iterator[Case]:
    shapes = {preset: products(MODELS[preset].text) for preset in presets}
    first = presets[0]

    def of(preset: str, *names: str, **changes: object) -> Iterator[Case]:
        for name in names or shapes[preset]:
            yield dataclasses.replace(Case(preset, name, shapes[preset][name]), **changes)  # type: ignore[arg-type]

    yield from of(first)
    if only_first:
        yield from of(first, "gate|up", dtype="int8")
        return
    for preset in presets[1:]:
        yield from of(preset)
    if quick:
        for dtype in ("int8", "float16"):
            yield from of(first, "o", dtype=dtype)
        yield from of(first, "o", layout=TURNED)
        yield from of(first, "o", rows=8)
        return
    yield from of(first, dtype="int8")
    yield from of(first, layout=TURNED)
    for rows in (2, 4, 8, 16):
        yield from of(first, "gate|up", "o", rows=rows)
    for dtype in ("float16", "float32"):
        yield from of(first, dtype=dtype)
    for preset in presets[1:]:
        yield from of(preset, dtype="int8")
        yield from of(preset, layout=TURNED)


def measure(case: Case, quick: bool) -> dict[str, float]:
    """Time per product, the rate at which matrices were read, and how many kernels a product takes."""
    outputs, inputs = case.shape
    num_bytes = outputs * inputs * jnp.dtype(case.dtype).itemsize
    total = _TOTAL_BYTES >> 8 if quick else _TOTAL_BYTES
    count = min(8 if quick else _MOST_MATRICES, max(2, math.ceil(total / num_bytes)))
    repeats = 2 if quick else 50
    operand = "bfloat16" if case.dtype == "int8" else case.dtype
    xs = _values((case.rows, inputs), operand, count)
    weights = _values(case.shape if case.layout == STORED else case.shape[::-1], case.dtype, count)
    scale = jnp.full((outputs,), 0.01, jnp.float32) if case.dtype == "int8" else None
    start = time.perf_counter()
    program = many.lower(xs, weights, scale, repeats=repeats, layout=case.layout).compile()
    compile_s = time.perf_counter() - start
    jax.block_until_ready(program(xs, weights, scale))
    seconds = min(seconds_per_call(program, xs, weights, scale) for _ in range(1 if quick else 3)) / repeats / count
    return {
        "product_us": seconds * 1e6,
        "gb_s": num_bytes / seconds / 1e9,
        "matrix_bytes": num_bytes,
        "matrices": count,
        "kernels_per_product": hlo.kernels_of(program) / count,
        "compile_s": compile_s,
    }


@functools.partial(jax.jit, static_argnames=("repeats", "layout"))
def many(xs: list[Array], weights: list[Array], scale: Array | None, *, repeats: int, layout: str) -> list[Array]:
    """Every `x` times its matrix, `repeats` times over.

    Every matrix has an operand of its own: XLA joins products that share one, which no decoder's do.
    """

    def body(_: int, carry: tuple[list[Array], list[Array], list[Array]]) -> tuple[list[Array], list[Array], list[Array]]:
        # Behind the barrier the products depend on the loop; otherwise XLA would compute them once, before it.
        xs, weights, _ = lax.optimization_barrier(carry)
        return xs, weights, [_product(x, weight, scale, layout) for x, weight in zip(xs, weights, strict=True)]

    outputs = weights[0].shape[0 if layout == STORED else 1]
    nothing = [jnp.zeros((x.shape[0], outputs), jnp.float32) for x in xs]
    return lax.fori_loop(0, repeats, body, (xs, weights, nothing))[2]


def _product(x: Array, weight: Array, scale: Array | None, layout: str) -> Array:
    if layout == STORED:
        return linear(x, weight, scale=scale, accum_dtype=jnp.float32, implementation="xla")
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(x, weight, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def head(preset: str, programs: int) -> dict[str, float]:
    """Logits of one row and the largest of them, as one program or two, in microseconds as called from Python."""
    outputs, inputs = products(MODELS[preset].text)["head"]
    (x,), (weight,) = _values((1, inputs), "bfloat16", 1), _values((outputs, inputs), "bfloat16", 1)

    def call() -> Array:
        return _head_argmax(x, weight) if programs == 1 else _argmax(_head(x, weight))

    jax.block_until_ready(call())
    seconds = min(seconds_per_call(call) for _ in range(3))
    return {"call_us": seconds * 1e6, "gb_s": weight.nbytes / seconds / 1e9}


@jax.jit
def _head(x: Array, weight: Array) -> Array:
    return _product(x, weight, None, STORED)


@jax.jit
def _argmax(logits: Array) -> Array:
    return jnp.argmax(logits, axis=-1)


@jax.jit
def _head_argmax(x: Array, weight: Array) -> Array:
    return jnp.argmax(_product(x, weight, None, STORED), axis=-1)


def _values(shape: tuple[int, ...], dtype: str, count: int) -> list[Array]:
    """So many arrays of random values, each in memory of its own: zeros could be quicker than real data.

    Made on the host, since a program for every shape would take longer to compile.
    """
    few = np.random.default_rng(0).uniform(-1, 1, 1 << 16).astype(np.float32)
    values = np.resize(few * 127 if dtype == "int8" else few, shape).astype(jnp.dtype(dtype))
    return [jax.device_put(values.copy()) for _ in range(count)]
