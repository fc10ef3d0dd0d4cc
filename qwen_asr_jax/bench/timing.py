"""Clocks, and the loop that measures: warm-ups first, compilations counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from qwen_asr_jax.bench.summary import summarize
from qwen_asr_jax.engine.compilations import compilations

Figures = dict[str, float]
"""What one run measures, by name; names carry units."""


class Stopwatch:
    """Wall time and the CPU time of all threads since it was made, or until `stop`."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()
        self._stopped: tuple[float, float] | None = None

    def stop(self) -> Stopwatch:
        """Holds both clocks."""
        self._stopped = self._elapsed()
        return self

    @property
    def ms(self) -> float:
        """Milliseconds of wall time."""
        return (self._stopped or self._elapsed())[0] * 1e3

    @property
    def cpu_per_wall(self) -> float:
        """CPU time / wall time: how many threads were at work on average."""
        wall, cpu = self._stopped or self._elapsed()
        return cpu / wall

    def _elapsed(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a measuring loop found.

    Attributes:
      runs: figures of each measured run.
      recompiled: names of the programs that were compiled, or read from the cache, inside measured runs. There must be none:
        a run that compiles measures the compiler.
    """

    runs: list[Figures]
    recompiled: tuple[str, ...]

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """Per figure, the summary of all runs that have it."""
        names = dict.fromkeys(name for run in self.runs for name in run)
        return {name: summarize([run[name] for run in self.runs if name in run]) for name in names}


def measure(
    run: Callable[[], Figures], *, runs: int, warmup: int, on_run: Callable[[int, Figures], None] | None = None
) -> Measured:
    """Calls `run` `warmup` times, then `runs` times, and keeps what the latter return.

    Args:
      run: one whole run; it synchronises with the device itself, and times what it wants to be timed.
      on_run: called behind each measured run with its number from 1 and its figures.
    """
    for _ in range(warmup):
        run()
    log = compilations()
    before = log.count
    results = []
    for number in range(1, runs + 1):
        results.append(run())
        if on_run is not None:
            on_run(number, results[-1])
    return Measured(results, tuple(name for name, _, _ in log.programs[before:]))
