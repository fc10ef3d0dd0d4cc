"""Checks the CUDA kernels on the GPU that is here, then times a decode step with them; random weights, nothing of the engine.

    python scripts/cuda_kernels.py --model=0.6b

A table of deviations from plain JAX first (one rounding of an operand is 2^-8 of it in bfloat16), then one of times: `overlap`
lets kernels start early, `prefetch` fetches during attention. GB/s are of the weights and the valid part of the caches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tabulate
from absl import flags

from qwen_asr_jax import cli, runtime
from qwen_asr_jax.errors import BackendError, UsageError

flags.DEFINE_enum("model", "0.6b", ["tiny", "0.6b", "1.7b"], "Geometry.")
flags.DEFINE_multi_integer("rows", [1, 2, 4, 8], "Rows of a batch.", lower_bound=1, upper_bound=8)
flags.DEFINE_multi_enum("weights", ["bfloat16", "int8"], ["float32", "bfloat16", "float16", "int8"], "Dtypes of weights.")
flags.DEFINE_multi_integer("valid", [1, 33, 397], "Valid slots of the rows' caches; timed with the last.", lower_bound=1)
flags.DEFINE_integer("steps", 64, "Steps of a timed loop.", lower_bound=1)
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Prints both tables; the exit status says whether the kernels were right."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}; usage: cuda_kernels.py --model=0.6b")
    try:
        runtime.configure("gpu")
    except BackendError as e:
        raise BackendError(str(e).replace(", or use --backend=cpu", "")) from None

    from qwen_asr_jax.bench.cuda_kernels import Case, deviation, step_ms
    from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
    from qwen_asr_jax.kernels import gpu

    if reason := gpu.unavailable():
        raise BackendError(f"the CUDA kernels are not available: {reason}")
    text, slots = MODELS[FLAGS.model].text, -(-max(FLAGS.valid) // 256) * 256
    checked, timed = [], []
    for weights, rows in itertools.product(FLAGS.weights, FLAGS.rows):
        cache = "float32" if weights == "float32" else "float16" if weights == "float16" else "bfloat16"
        case = Case(text, weights, cache, rows, 2, tuple(FLAGS.valid), slots)
        allowed = 1e-5 if weights == "float32" else 2.0**-6
        for overlap in (False, True):
            off = deviation(case, overlap=overlap)
            checked.append([weights, rows, overlap, off, "ok" if off <= allowed else "WRONG"])
    print(tabulate.tabulate(checked, ["weights", "rows", "overlap", "deviation", ""]), flush=True)
    for weights, rows in itertools.product(FLAGS.weights, FLAGS.rows):
        cache = "float32" if weights == "float32" else "float16" if weights == "float16" else "bfloat16"
        case = Case(text, weights, cache, rows, text.num_layers, (FLAGS.valid[-1],), slots)
        for overlap, prefetch in itertools.product((False, True), repeat=2):
            ms, rate = step_ms(case, steps=FLAGS.steps, repeats=5, overlap=overlap, prefetch=prefetch)
            timed.append([weights, rows, overlap, prefetch, ms, rate])
    print(tabulate.tabulate(timed, ["weights", "rows", "overlap", "prefetch", "ms/step", "GB/s"], floatfmt=".3f"))
    return cli.EXIT_OK if all(row[-1] == "ok" for row in checked) else 1


if __name__ == "__main__":
    cli.run(main)
