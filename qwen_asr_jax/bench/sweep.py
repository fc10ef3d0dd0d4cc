"""Sweeps: a list of overrides, each measured by bench.py in a fresh process, results kept as they come.

A point's identity is its flags and environment. What a file of results holds already is not measured again, so that an
interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from qwen_asr_jax import processes
from qwen_asr_jax.bench.environment import cpu_name, environment
from qwen_asr_jax.bench.record import WORKLOADS, Record, append_records, read_records
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.files import scratch_directory
from qwen_asr_jax.policy import PRESETS

FLAGS: dict[str, Any] = {
    "model_dir": "",
    "workload": "full",
    "audio": "",
    "silence_s": 0.0,
    "policy": "",
    "config": "",
    "backend": "auto",
    "threads": 0,
    "batch_size": 1,
    "decode_tokens": 0,
    "contexts": "64,256,1024,4096",
    "runs": 5,
    "warmup": 2,
}
"""Flags of bench.py that a sweep can set, with values that stand for the flag's own default."""

Overrides = Mapping[str, Any]
"""Flags of bench.py by name; `env` holds environment variables, as for `XLA_FLAGS`."""


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the axes' values, the last axis fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep_config(points: Sequence[Overrides], **base: Any) -> ml_collections.ConfigDict:
    """What a sweep's config file returns.

    Args:
      points: overrides, one per point.
      **base: flags of all points, unless a point says otherwise; set others from the command line with
        `--config.base.model_dir=DIR`.
    """
    config = ml_collections.ConfigDict()
    config.base = ml_collections.ConfigDict({**FLAGS, **base})
    config.points = tuple(json.dumps(point) for point in points)  # a ConfigDict would turn lists into something else
    return config.lock()


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep: its overrides, and all flags and variables of its process."""

    overrides: Overrides
    flags: Mapping[str, str]
    env: Mapping[str, str]

    @property
    def id(self) -> str:
        """Short hash of flags and variables."""
        return hashlib.sha256(json.dumps([self.flags, self.env], sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.overrides.items())

    def arguments(self) -> list[str]:
        """Flags of bench.py."""
        return [f"--{name}={value}" for name, value in self.flags.items()]


def points_of(config: ml_collections.ConfigDict) -> list[Point]:
    """The points of what `sweep_config` made, after overrides from the command line.

    Raises:
      UsageError: a point sets what is not a flag, there are no points, or two are alike.
    """
    if "points" not in config or "base" not in config:
        raise UsageError("the config has no points: it is no sweep; configs/sweep_policies.py is one")
    points = []
    for text in config.points:
        overrides = json.loads(text)
        env = overrides.get("env", {})
        values = {**config.base.to_dict(), **{name: value for name, value in overrides.items() if name != "env"}}
        if unknown := sorted(set(values) - set(FLAGS)):
            raise UsageError(f"a sweep cannot set {', '.join(unknown)}; it can set {', '.join(FLAGS)} and env")
        if values["workload"] not in WORKLOADS:
            raise UsageError(f"unknown workload {values['workload']!r}: choose one of {', '.join(WORKLOADS)}")
        flags = {name: _flag(value) for name, value in values.items() if value != FLAGS[name]}
        points.append(Point(overrides, flags, {name: str(value) for name, value in env.items()}))
    if not points:
        raise UsageError("the sweep has no points")
    ids = [point.id for point in points]
    if twins := [str(point) for point in points if ids.count(point.id) > 1]:
        raise UsageError(f"points of a sweep must differ: {twins[0]!r} is there {len(twins)} times")
    return points


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Sweep:
    """A sweep over its file of results.

    Attributes:
      name: of the sweep; the file is called after it.
      path: the file of results.
      points: all points.
      problems: lines of the file that are no records.
    """

    def __init__(self, name: str, path: pathlib.Path, points: Sequence[Point], *, retry_failed: bool):
        self.name = name
        self.path = path
        self.points = points
        records, self.problems = read_records([path] if path.exists() else [])
        self._there = {r.sweep["id"] for r in records if r.sweep and not (retry_failed and r.error)}

    def remaining(self) -> list[Point]:
        """Points without a result."""
        return [point for point in self.points if point.id not in self._there]

    def run(self, bench_script: pathlib.Path, timeout_s: float) -> Iterator[tuple[Point, str | None]]:
        """Measures the remaining points one after another; yields each with its error, if it failed, once it is kept.

        Raises:
          OutputError: results cannot be written.
        """
        for point in self.remaining():
            records, error = self._measure(point, bench_script, timeout_s)
            append_records(self.path, records)
            yield point, error

    def _measure(self, point: Point, bench_script: pathlib.Path, timeout_s: float) -> tuple[list[Record], str | None]:
        origin = {"name": self.name, "id": point.id, "point": dict(point.overrides)}
        with scratch_directory() as folder:
            output = folder / "point.jsonl"
            command = [sys.executable, str(bench_script), *point.arguments(), f"--output_json={output}"]
            done = processes.run(command, env={**os.environ, **point.env}, timeout_s=timeout_s)
            records, _ = read_records([output] if output.exists() else [])
        error = done.reason().removeprefix(f"{bench_script.name}: ") if done.status else None
        if not records:
            records = [_failed(point, error or "no result was written")]
            error = records[0].error
        return [dataclasses.replace(record, sweep=origin, error=error) for record in records], error


def _failed(point: Point, error: str) -> Record:
    """The record of a point that gave none. JAX is not started for it, so the backend is the one that was asked for."""
    backend = point.flags.get("backend", "auto")
    threads, policy = point.flags.get("threads"), point.flags.get("policy", next(iter(PRESETS)))
    return Record(
        workload=point.flags.get("workload", "full"),
        model={"name": point.flags.get("model_dir", "")},
        policy=policy,
        backend=backend,
        device=cpu_name() if backend == "cpu" else backend,
        threads=int(threads) if threads else None,
        batch_size=int(point.flags.get("batch_size", 1)),
        audio={"name": point.flags["audio"]} if "audio" in point.flags else None,
        settings={},
        runs=[],
        summary={},
        env=environment(backend),
        error=error,
    )
