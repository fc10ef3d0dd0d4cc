"""Where a section writes: each measurement at once, with an eye on the time that its step still has."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from qwen_asr_jax.bench.gpu import measurement
from qwen_asr_jax.bench.gpu.measurement import Measurement
from qwen_asr_jax.bench.record import Record, append_records
from qwen_asr_jax.errors import QwenASRError

RESULTS, RECORDS = "results.jsonl", "records.jsonl"
"""Files of a report: measurements, and the records of the bench's workloads."""

_MOST_LETTERS = 300


@dataclasses.dataclass(frozen=True)
class Task:
    """What a step's process is asked to do.

    Attributes:
      step: the step's name.
      section: whose module to run.
      settings: of the section.
      output: folder of the report.
      folder: where checkpoints and references lie.
      ends_at: `time.monotonic()` by which it should have ended.
      quick: tiny shapes, one run of each.
    """

    step: str
    section: str
    settings: Mapping[str, Any]
    output: str
    folder: str
    ends_at: float
    quick: bool

    def to_json(self) -> str:
        """The task as the argument of its process."""
        return json.dumps(dataclasses.asdict(self))


class Sheet:
    """What a section writes to.

    Attributes:
      task: what the process was asked to do.
      settings: of the section.
      folder: where checkpoints and references lie.
      quick: tiny shapes, one run of each.
    """

    def __init__(self, task: Task):
        self.task = task
        self.settings = task.settings
        self.folder = pathlib.Path(task.folder)
        self.quick = task.quick
        self._results = pathlib.Path(task.output) / RESULTS
        self._records = pathlib.Path(task.output) / RECORDS

    def left_s(self) -> float:
        """Seconds that the step has left."""
        return self.task.ends_at - time.monotonic()

    def add(
        self,
        name: str,
        settings: Mapping[str, Any],
        figures: Mapping[str, float],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a measurement."""
        self._write(Measurement(self.task.section, name, dict(settings), dict(figures), dict(facts or {})))

    def unavailable(self, name: str, settings: Mapping[str, Any], why: str) -> None:
        """Writes that something cannot be measured on this machine."""
        self._write(Measurement(self.task.section, name, dict(settings), error=" ".join(why.split())))

    def gap(self, name: str, settings: Mapping[str, Any], why: str) -> None:
        """Writes that something was to be measured and was not."""
        self._write(Measurement(self.task.section, name, dict(settings), error=" ".join(why.split()), is_gap=True))

    def programs(self, figures: Mapping[str, float], facts: Mapping[str, Any]) -> None:
        """Writes what the step's process compiled."""
        self._write(Measurement(measurement.PROGRAMS, self.task.step, {}, dict(figures), dict(facts)))

    def cost(self, stage: str, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Writes the least work of a stage."""
        self._write(Measurement(measurement.COSTS, stage, dict(settings), dict(figures)))

    def measure(
        self, name: str, settings: Mapping[str, Any], measure: Callable[[], Mapping[str, float]], needs_s: float = 0.0
    ) -> bool:
        """Writes what `measure` returns, or why it could not.

        Args:
          needs_s: how long it takes, roughly; it is left out where less time is left.

        Returns:
          Whether there are figures.
        """
        return self._guarded(name, settings, needs_s, lambda: self.add(name, settings, measure()))

    def record(self, name: str, settings: Mapping[str, Any], make: Callable[[], Record], needs_s: float = 0.0) -> bool:
        """Writes the record that `make` returns, or why there is none; returns whether there is one."""
        return self._guarded(name, settings, needs_s, lambda: append_records(self._records, [make()]))

    def _guarded(self, name: str, settings: Mapping[str, Any], needs_s: float, act: Callable[[], None]) -> bool:
        if not self.quick and self.left_s() < needs_s:
            self.gap(name, settings, f"its step had no time left ({needs_s:.0f} s needed)")
            return False
        try:
            act()
        except Exception as e:  # whatever is wrong with one measurement, the next may be right
            said = (str(e).splitlines() or [""])[0][:_MOST_LETTERS]
            self.gap(name, settings, said if said and isinstance(e, QwenASRError) else f"{type(e).__name__}: {said}")
            return False
        return True

    def _write(self, each: Measurement) -> None:
        measurement.append(self._results, [each])
