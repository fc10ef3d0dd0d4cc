"""The decode loop: time per step under the engine's options and XLA's flags, what is in it, and what lies between its kernels.

It starts from a state with random keys and values, so that no audio and no prompt has to be compiled for it.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from qwen_asr_jax.bench.gpu import checkpoints, hlo
from qwen_asr_jax.bench.gpu.plan import CHECKS
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.bench.profile import stage_times
from qwen_asr_jax.bench.workloads import mean_context
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.engine.engine import Engine
from qwen_asr_jax.engine.state import DecodeState, new_state
from qwen_asr_jax.engine.verbs import NO_TOKEN
from qwen_asr_jax.errors import BackendError, QwenASRError
from qwen_asr_jax.files import scratch_directory, write_text
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.typing import Array

CONTEXTS = (62, 158)
"""Tokens of context at which steps are timed: behind the prompts of clips of 3.6 s and of 11 s."""

STEPS_PER_CHECK = "steps_per_check"
"""The engine's option: steps between two looks at the loop's condition."""

_SEEDS = (1, 2)


def run(sheet: Sheet) -> None:
    """Measures one preset; `settings`: `preset`, `policy`, `implementation`, `checks`, `variant` (of XLA's flags)."""
    given = sheet.settings
    for check in given["checks"]:
        settings = {name: given[name] for name in ("preset", "policy", "implementation", "variant")}
        settings |= {STEPS_PER_CHECK: check}
        try:
            engine = _engine(sheet, settings)
        except BackendError as e:
            sheet.unavailable("loop", settings, str(e))
            return
        sheet.measure(
            "loop", settings, functools.partial(measure, sheet, engine, settings), needs_s=0 if sheet.quick else 15
        )
        if sheet.left_s() > 5:
            sheet.measure("profile", settings, functools.partial(profile, sheet, engine))
        del engine
        gc.collect()


def _engine(sheet: Sheet, settings: dict[str, Any]) -> Engine:
    options = EngineOptions(steps_per_check=settings[STEPS_PER_CHECK])
    path = checkpoints.model_dir(sheet.folder, settings["preset"])
    model = load_model(path, settings["policy"], implementation=settings["implementation"], options=options)
    return model.engine


def measure(sheet: Sheet, engine: Engine, settings: dict[str, Any]) -> dict[str, float]:
    """Ms per token at both contexts, and whether the tokens are those of the plain loop.

    Raises:
      QwenASRError: a run did not take the steps that were to be timed.
    """
    steps, runs = (8, 1) if sheet.quick else (64, 5)
    log = compilations()
    before = log.compile_s + log.cache_s
    tokens = [_run(engine, _state(engine, CONTEXTS[-1], steps, seed), steps)[1] for seed in _SEEDS]
    figures = {"compile_s": log.compile_s + log.cache_s - before}
    taken: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    for i in range(runs):
        for context, found in taken.items():  # by turns: a drift of the clocks is not to look like growth
            found.append(_run(engine, _state(engine, context, steps, seed=3 + i), steps)[0] / steps)
    for context, found in taken.items():
        figures[f"ms_per_token_at_{context}"] = statistics.median(found)
        figures[f"min_ms_per_token_at_{context}"] = min(found)
    text = hlo.program_text("decode")
    if text:
        figures["kernels_in_loop"] = hlo.loop_kernels(text)
    figures["different_tokens"] = float(tokens[0] != tokens[1])
    wanted = _plain_tokens(sheet.folder, settings, tokens)
    if wanted is not None:
        figures["inputs"] = len(tokens)
        figures["equal_tokens"] = sum(a == b for a, b in zip(tokens, wanted, strict=True))
    return figures


def _plain_tokens(folder: pathlib.Path, settings: dict[str, Any], tokens: list[list[int]]) -> list[list[int]] | None:
    """What the plain loop chose for this model and kernels, without flags and looking at its condition at every step.

    If this is the plain loop itself, its tokens are kept for the others; None if it has not run.
    """
    kind = "-".join(str(settings[name]) for name in ("preset", "policy", "implementation"))
    path = folder / f"loop-{kind}.json"
    if not settings["variant"] and settings[STEPS_PER_CHECK] == CHECKS[0]:
        write_text(path, json.dumps(tokens))
    return None if not path.exists() else list(json.loads(path.read_text(encoding="utf-8")))


def profile(sheet: Sheet, engine: Engine) -> dict[str, float]:
    """Kernels per step, and their time, from a trace of one run; without graphs, as the profiler runs kernels one by one."""
    steps = 8 if sheet.quick else 32
    state = _state(engine, CONTEXTS[-1], steps, seed=9)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with scratch_directory() as folder:
        with jax.profiler.trace(str(folder), profiler_options=options):
            _run(engine, state, steps)
        (trace,) = folder.rglob("*.xplane.pb")
        times = stage_times(trace).get("decode")
    if not times:
        raise QwenASRError("the trace holds no kernels of the decode loop")
    return {
        "kernels_per_step": sum(calls for _, calls in times.values()) / steps,
        "kernel_ms_per_step": sum(ms for ms, _ in times.values()) / steps,
    }


def _state(engine: Engine, context: int, steps: int, seed: int) -> DecodeState:
    """A state of one row whose steps lie around `context` tokens, with random keys and values in its cache."""
    engine.drop_spare()
    start = max(0, round(mean_context(context, steps) - (steps + 1) / 2))
    slots = engine.buckets.cache(start, steps + 1)
    empty = new_state(engine.config.text, engine.policy, 1, slots)
    rng = np.random.default_rng(seed)
    few = rng.normal(size=1 << 18).astype(np.float32)

    def filled(leaf: Array) -> Array:
        if leaf.ndim < 2:
            return leaf
        other = np.roll(few, rng.integers(few.size))  # drawing all of them would take longer than all that is measured
        return jax.device_put(np.resize(other, leaf.shape).astype(leaf.dtype))

    state = dataclasses.replace(
        jax.tree.map(filled, empty),
        length=jax.device_put(np.full(1, start, np.int32)),
        token=jax.device_put(np.full(1, seed, np.int32)),
        budget=jax.device_put(np.full(1, steps, np.int32)),
    )
    return jax.block_until_ready(state)


def _run(engine: Engine, state: DecodeState, steps: int) -> tuple[float, list[int]]:
    """Milliseconds of exactly so many steps, and their tokens; chunk by chunk, as transcribing decodes.

    Raises:
      QwenASRError: another number of steps was made.
    """
    tokens: list[int] = []
    start = time.perf_counter()
    for _ in range(steps):  # a call makes at least one
        state, chosen = engine.decode(state, steps - len(tokens), ignore_eos=True)
        tokens += chosen.tokens[0][chosen.tokens[0] != NO_TOKEN].tolist()
        if len(tokens) >= steps or chosen.done[0]:
            break
    ms = (time.perf_counter() - start) * 1e3
    if len(tokens) != steps:
        raise QwenASRError(f"decode chose {len(tokens)} tokens where {steps} were to be timed")
    return ms, tokens
