"""Compiling, ahead of time and beside each other, what transcribing clips of given lengths will run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax

from qwen_asr_jax import runtime
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.engine.programs import Compiled, compile_all, programs
from qwen_asr_jax.errors import OutputError
from qwen_asr_jax.pipelines.load import OpenedModel


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """What came of it.

    Attributes:
      compiled: every program, by name.
      seconds: until all were ready.
      from_cache: how many of them had been kept from earlier.
      again_s: seconds until all are ready in a process that finds them kept, tracing and lowering included.
    """

    compiled: tuple[Compiled, ...]
    seconds: float
    from_cache: int
    again_s: float


def warm_up(
    opened: OpenedModel,
    lengths: Sequence[float],
    batch_sizes: Sequence[int],
    *,
    new_tokens: int = 0,
    jobs: int = 1,
    on_start: Callable[[int], None] = lambda _: None,
    on_done: Callable[[Compiled], None] = lambda _: None,
) -> WarmUp:
    """Compiles for clips of exactly these lengths in batches of these sizes; the results stay in the persistent cache.

    Args:
      lengths: seconds.
      new_tokens: budget per clip; 0 for the usual one.
      jobs: programs to compile at once.
      on_start: told how many programs there are.
      on_done: told of each, as it is done.

    Raises:
      BackendError: the largest batch does not fit the device's memory.
      OutputError: there is no persistent cache, so nothing would last.
    """
    if not runtime.keeps_programs():
        raise OutputError(f"compiled programs cannot be kept in {runtime.cache_dir()}: it cannot be written; see BUILD.md")
    opened.plan(max(lengths), max(batch_sizes), new_tokens).check()
    workloads = [opened.workload(length, size, new_tokens) for size in batch_sizes for length in lengths]
    found = programs(opened.config, opened.policy, opened.buckets, workloads, screen_head=opened.options.screen_head)
    on_start(len(found))
    log, compiled = compilations(), []
    cached, start = log.cached, time.perf_counter()
    for done in compile_all(found, jobs):
        compiled.append(done)
        on_done(done)
    seconds, from_cache = time.perf_counter() - start, log.cached - cached
    jax.clear_caches()  # as a new process finds it
    start = time.perf_counter()
    for _ in compile_all(found, jobs):
        pass
    again_s = time.perf_counter() - start
    return WarmUp(tuple(sorted(compiled, key=lambda each: each.name)), seconds, from_cache, again_s)
