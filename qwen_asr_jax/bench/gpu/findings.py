"""What was measured, as the page asks for it: limits of the machine, floors, and figures by what they are about."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from qwen_asr_jax.bench import fields
from qwen_asr_jax.bench.gpu import measurement
from qwen_asr_jax.bench.gpu.measurement import COSTS, STEPS, Measurement
from qwen_asr_jax.bench.gpu.sheet import RECORDS, RESULTS
from qwen_asr_jax.bench.record import MAIN_FIGURE, Record, read_records


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a machine can do at most: 1e9 bytes read per second, and 1e9 operations of bfloat16 products."""

    read_gb_s: float
    bf16_gflop_s: float

    def floor_ms(self, flops: float, num_bytes: float) -> float:
        """Milliseconds that so much work takes at least."""
        return max(num_bytes / self.read_gb_s, flops / self.bf16_gflop_s) / 1e6


@dataclasses.dataclass(frozen=True)
class Findings:
    """All lines of a report.

    Attributes:
      measurements: of the sections, the last of each.
      records: of the bench's workloads.
      problems: lines that could not be read.
    """

    measurements: Sequence[Measurement]
    records: Sequence[Record]
    problems: Sequence[str] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What the machine section says of the device."""
        found = measurement.select(self.measurements, "machine", "device")
        return dict(found[0].facts) if found else {}

    @property
    def device(self) -> str | None:
        """The device's name."""
        return self.facts.get("device") or next((r.device for r in self.records if r.device), None)

    @property
    def rates(self) -> Rates | None:
        """What the machine can do: a limit is what was reached, by the roofline, between runs, or by the largest product."""
        found = [r.roofline for r in self.records if r.workload == "roofline" and r.roofline]
        if not found:
            return None
        products = self.select("machine", "product", dtype="bfloat16")
        bf16 = max([found[-1]["bf16_gflop_s"], *(each.figure("gflop_s") or 0.0 for each in products)])
        reads = [rate for r in self.records if (rate := fields.figure(r, "read_gb_s")) is not None]
        return Rates(max(found[-1]["read_gb_s"], *reads), bf16)

    def select(self, section: str, name: str | None = None, **settings: Any) -> Sequence[Measurement]:
        """Measurements with figures; see `measurement.select`."""
        return measurement.select(self.measurements, section, name, **settings)

    def figure(self, figure: str, section: str, name: str, **settings: Any) -> float | None:
        """One figure; None where it was not measured."""
        values = (each.figure(figure) for each in self.select(section, name, **settings))
        return next((value for value in values if value is not None), None)

    def workload(self, workload: str, preset: str, policy: str = "bf16", **wanted: Any) -> Record | None:
        """The fastest valid record of a workload, of each kind of kernels the newest; `clip_s` and `rows` may be asked for."""
        found = {
            record.implementation: record
            for record in self.records
            if record.workload == workload
            and fields.is_valid(record)
            and fields.model_name(record) == preset
            and record.policy == policy
            and wanted.get("rows") in (None, record.batch_size)
            and ("clip_s" not in wanted or _near(fields.audio_seconds(record), wanted["clip_s"] * record.batch_size))
        }
        timed = [
            (ms, record) for record in found.values() if (ms := fields.figure(record, MAIN_FIGURE[workload])) is not None
        ]
        return min(timed, key=lambda each: each[0])[1] if timed else None

    def floor_ms(self, rates: Rates, stages: Callable[[int], dict[str, int]], preset: str, clip_s: float) -> float | None:
        """Least milliseconds of stages, each so many times, of the work that is written down.

        Args:
          stages: from the number of steps to `{"encode": 1, "prefill": 1, "step": n}`.
        """
        total = 0.0
        costs = {each.name: each for each in self.select(COSTS, preset=preset, clip_s=clip_s)}
        if "step" not in costs:
            return None
        for stage, times in stages(costs["step"].settings["steps"]).items():
            cost = costs[stage]
            total += times * rates.floor_ms(cost.figures["flops"], cost.figures["bytes"])
        return total

    def gaps(self) -> list[Measurement]:
        """What was to be measured and was not, steps first."""
        found = [each for each in self.measurements if each.error is not None and each.is_gap]
        return sorted(found, key=lambda each: each.section != STEPS)

    def unavailable(self) -> list[Measurement]:
        """What this machine or these versions do not have."""
        return [each for each in self.measurements if each.error is not None and not each.is_gap]


def _near(a: float | None, b: float) -> bool:
    return a is not None and abs(a - b) < 0.01 * b


def read_findings(folder: pathlib.Path) -> Findings:
    """What the files of a report hold; nothing where there are none."""
    results, records = folder / RESULTS, folder / RECORDS
    measurements, problems = measurement.read(results) if results.exists() else ([], [])
    found, more = read_records([records]) if records.exists() else ([], [])
    return Findings(measurements, found, (*problems, *more))
