"""Counts what XLA compiles, from JAX's own monitoring events, and gives back the memory that it leaves behind."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import jax

from qwen_asr_jax import runtime

_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_STAGES = {"/jax/core/compile/jaxpr_trace_duration": "trace_s", _LOWERED: "lower_s"}


@dataclasses.dataclass
class Compilations:
    """What has been compiled since it was made (or since `clear`).

    Attributes:
      programs: `(name, seconds, from_cache)` of each, in order.
      trace_s: seconds spent tracing Python into programs; nested functions are counted in their callers too.
      lower_s: seconds spent lowering them.
    """

    programs: list[tuple[str, float, bool]] = dataclasses.field(default_factory=list)
    trace_s: float = 0.0
    lower_s: float = 0.0

    @property
    def count(self) -> int:
        """Programs made ready, compiled or read from the persistent cache."""
        return len(self.programs)

    @property
    def cached(self) -> int:
        """How many of them came from the persistent cache."""
        return sum(cached for _, _, cached in self.programs)

    @property
    def compile_s(self) -> float:
        """Seconds of compiling."""
        return sum(seconds for _, seconds, cached in self.programs if not cached)

    @property
    def cache_s(self) -> float:
        """Seconds of reading the persistent cache."""
        return sum(seconds for _, seconds, cached in self.programs if cached)

    def clear(self) -> None:
        """Forgets everything so far."""
        self.programs.clear()
        self.trace_s = self.lower_s = 0.0


_log: Compilations | None = None


def compilations() -> Compilations:
    """The process's log; listening starts with the first call."""
    global _log
    if _log is None:
        _log = log = Compilations()
        seen = threading.local()  # programs are compiled beside each other; an event comes in its program's thread
        adding = threading.Lock()

        def on_event(event: str, **_: Any) -> None:
            if event == _CACHE_HIT:
                seen.hit = True

        def on_duration(event: str, duration_secs: float, **details: Any) -> None:
            if event in (_LOWERED, _COMPILED):
                # Lowering and compiling leave tens of MB of freed memory behind. Given back before XLA starts and when it is
                # done, they are not added to what comes next.
                runtime.trim_heap()
            if event == _COMPILED:
                log.programs.append((str(details.get("fun_name", "?")), duration_secs, getattr(seen, "hit", False)))
                seen.hit = False
            elif event in _STAGES:
                with adding:
                    setattr(log, _STAGES[event], getattr(log, _STAGES[event]) + duration_secs)

        jax.monitoring.register_event_listener(on_event)
        jax.monitoring.register_event_duration_secs_listener(on_duration)
    return _log
