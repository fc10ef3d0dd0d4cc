"""Sweeps: a list of overrides, each measured by bench.py in a fresh process, results kept as they come.

A point's identity is its flags and environment. What a file of results holds already is not measured again, so that an
interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from qwen_asr_jax import processes
from qwen_asr_jax.bench.environment import cpu_name, environment, fingerprint
from qwen_asr_jax.bench.record import IGNORED_FLAGS, WORKLOADS, Record, append_records, read_records
from qwen_asr_jax.errors import OutputError, UsageError
from qwen_asr_jax.files import scratch_directory, sha256_of
from qwen_asr_jax.policy import DEFAULT_POLICY

FLAGS: dict[str, Any] = {
    "model_dir": "",
    "workload": "full",
    "audio": "",
    "silence_s": 0.0,
    "policy": "",
    "config": "",
    "implementation": "",
    "backend": "auto",
    "threads": 0,
    "memory_fraction": 0.0,
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
        """Short hash of flags, variables, and what clips and model hold: another file of the same name is another point."""
        content = [_content(self.flags.get("model_dir", "")), *map(_content, self.flags.get("audio", "").split(","))]
        return hashlib.sha256(json.dumps([self.flags, self.env, content], sort_keys=True).encode()).hexdigest()[:12]

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
        if not isinstance(env, dict):
            raise UsageError(f"env of a point must be a mapping of variables, got {env!r}")
        values = {**config.base.to_dict(), **{name: value for name, value in overrides.items() if name != "env"}}
        if unknown := sorted(set(values) - set(FLAGS)):
            raise UsageError(f"a sweep cannot set {', '.join(unknown)}; it can set {', '.join(FLAGS)} and env")
        if values["workload"] not in WORKLOADS:
            raise UsageError(f"unknown workload {values['workload']!r}: choose one of {', '.join(WORKLOADS)}")
        for name, least in {"threads": 0, "batch_size": 1, "runs": 1, "warmup": 1}.items():
            if not isinstance(values[name], int) or values[name] < least:
                raise UsageError(f"{name} of a point must be a whole number from {least} on, got {values[name]!r}")
        ignored = IGNORED_FLAGS.get(values["workload"], ())
        flags = {name: _flag(v) for name, v in values.items() if v != FLAGS[name] and name not in ignored}
        points.append(Point(overrides, flags, {name: str(value) for name, value in env.items()}))
    if not points:
        raise UsageError("the sweep has no points")
    ids = [point.id for point in points]
    if twins := [str(point) for point in points if ids.count(point.id) > 1]:
        raise UsageError(f"points of a sweep must differ: {twins[0]!r} is there {len(twins)} times")
    return points


@functools.cache
def _content(path: str) -> str:
    """Digest of a file or of a model's directory; "" for what is neither."""
    if not path or not os.path.exists(path):
        return ""
    if os.path.isdir(path):
        return fingerprint(pathlib.Path(path))
    return sha256_of(pathlib.Path(path))


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Sweep:
    """A sweep over its file of results.

    Attributes:
      name: of the sweep; the file is called after it.
      path: the file of results.
      points: all points.
      problems: lines of the file that are no records.
      commits: of the code that measured what is there already.
    """

    def __init__(self, name: str, path: pathlib.Path, points: Sequence[Point], *, retry_failed: bool):
        self.name = name
        self.path = path
        self.points = points
        records, self.problems = read_records([path] if path.exists() else [])
        ids = {(r.sweep or {}).get("id"): r.error for r in records}  # the last one counts
        self._there = {i for i, error in ids.items() if not (retry_failed and error)}
        self._failed = {i for i, error in ids.items() if error}
        self.commits = {str(r.env.get("commit")) for r in records}

    def remaining(self) -> list[Point]:
        """Points that are still to be measured."""
        return [point for point in self.points if point.id not in self._there]

    def failed_before(self) -> list[Point]:
        """Points that failed in an earlier run and are not to be measured again."""
        return [point for point in self.points if point.id in self._failed & self._there]

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
        """What the point's process wrote, as it is; behind that, if it failed, a record that says why."""
        with scratch_directory() as folder:
            output = folder / "point.jsonl"
            command = [sys.executable, str(bench_script), *point.arguments(), f"--output_json={output}"]
            done = processes.run(command, env={**os.environ, **point.env}, timeout_s=timeout_s)
            records, _ = read_records([output] if output.exists() else [])
        error = _reason(done, bench_script) if done.status else None if records else "no result was written"
        if done.status:
            self._keep_log(point, done.stderr)
        if error and not any(record.compile.get("recompiles") for record in records):  # such a record says it itself
            records = [*records, _failed(point, error)]
        origin = {"name": self.name, "id": point.id, "point": last_parts(point.overrides)}
        return [dataclasses.replace(record, sweep=origin) for record in records], error

    def _keep_log(self, point: Point, said: str) -> None:
        """Appends all that a failed point said to a file beside the results."""
        try:
            with open(self.path.with_suffix(".log"), "a", encoding="utf-8") as log:
                log.write(f"--- {point.id}  {point}\n{said.rstrip()}\n")
        except OSError as e:
            raise OutputError(f"{self.path.with_suffix('.log')}: cannot be written ({e.strerror})") from None


def last_parts(overrides: Overrides) -> dict[str, Any]:
    """The overrides with paths shortened to their last part: results are shared, one's folders are not."""
    paths = {name: _flag(overrides[name]).split(",") for name in ("model_dir", "audio", "config") if name in overrides}
    return {**overrides, **{name: ",".join(map(_last_part, parts)) for name, parts in paths.items()}}


def _last_part(path: str) -> str:
    return pathlib.PurePath(path).name


def without_folders(text: str) -> str:
    """The text with absolute paths shortened to their last part."""
    return re.sub(r"(?<![\w./])/(?:[^\s/:,]+/)+", "", text)


def _reason(done: processes.Finished, script: pathlib.Path) -> str:
    return without_folders(done.reason().removeprefix(f"{script.name}: "))


def _failed(point: Point, error: str) -> Record:
    """The record of a point that gave none. JAX is not started for it, so the backend is the one that was asked for."""
    backend = point.flags.get("backend", "auto")
    workload = point.flags.get("workload", "full")
    policy = None if "config" in point.flags else point.flags.get("policy", DEFAULT_POLICY)
    ran_a_model = workload != "roofline"
    names = last_parts(point.flags)
    return Record(
        workload=workload,
        model={"name": names.get("model_dir", "default")} if ran_a_model else None,
        policy=policy if ran_a_model else None,
        implementation=point.flags.get("implementation") if ran_a_model else None,
        backend=backend,
        device=cpu_name() if backend == "cpu" else backend,
        threads=int(point.flags["threads"]) if "threads" in point.flags else None,
        batch_size=int(point.flags.get("batch_size", 1)),
        audio={"name": names["audio"]} if "audio" in names else None,
        settings={},
        runs=[],
        summary={},
        env=environment(backend),
        error=error,
    )
