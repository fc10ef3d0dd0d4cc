"""Wall-clock time of a transcription's stages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax


class StageClock:
    """Milliseconds of named stages, and since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.ms: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block, and names it in a profiler's trace; blocks of one name add up."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(name):
            yield
        self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def total(self) -> float:
        """Milliseconds since it was made."""
        return (time.perf_counter() - self._start) * 1e3
