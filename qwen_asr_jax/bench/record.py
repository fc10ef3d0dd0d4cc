"""One result as one line of JSON: the schema, appending so that nothing is lost, and reading what others wrote.

A file of records only grows. A line that was cut off by a kill stays where it is, is reported by line number when the file is
read, and costs no other record.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from qwen_asr_jax.bench.summary import STATISTICS
from qwen_asr_jax.json_lines import append_lines, parse_object, read_lines

SCHEMA = 1
"""Version of the fields below; a change of meaning gets the next number."""

WORKLOADS = ("full", "encoder", "prefill", "decode", "batch", "roofline", "load")

IGNORED_FLAGS = {
    "roofline": (
        *("model_dir", "policy", "config", "implementation", "audio", "silence_s"),
        *("batch_size", "decode_tokens", "contexts", "profile_dir"),
    ),
    "load": ("batch_size", "decode_tokens", "contexts", "profile_dir"),
    **dict.fromkeys(("full", "encoder", "prefill", "batch"), ("contexts",)),
}
"""Flags of bench.py that mean nothing to a workload: given there, they are refused; sweeps leave them out."""

MAIN_FIGURE = {
    "full": "total_ms",
    "encoder": "total_ms",
    "prefill": "total_ms",
    "decode": "ms_per_token",
    "batch": "total_ms",
    "roofline": "read_gb_s",
    "load": "warm_total_s",
}
"""The figure that each workload is about: what is compared, and held against the floor."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One result of one workload. Numbers carry their unit in the name: `_ms`, `_s`, `_us`, `_bytes`, `gb_s` (1e9 bytes/s).

    Attributes:
      schema: `SCHEMA`.
      workload: one of `WORKLOADS`.
      model: `name`, `fingerprint` (sha256 over config and weights), `parameters`; None for `roofline`.
      policy: dtype policy; None for `roofline`.
      implementation: the kernels that computed, `xla`, or `cpu` and their instruction set; None for `roofline`, and in records
        from before there were others than XLA's.
      backend: `cpu` or `gpu`.
      device: name of the processor that did the work.
      threads: size of XLA's CPU pool.
      batch_size: clips run at once.
      audio: `name`, `sha256` (of the 16 kHz samples), `seconds` (of one clip; a batch's clips together); None without audio.
      settings: what else was asked for: `runs`, `warmup`, `decode_tokens`, `contexts`; `engine` and `policy` where the
        engine's options or the policy's dtypes are not the preset ones.
      runs: per measured run its figures: stages, `tokens`, `cpu_per_wall`.
      summary: per figure of `runs` its min, mean, median, p95, max, stdev.
      tokens: chosen per run, end tokens included; audio tokens for `encoder`, prompt tokens for `prefill`.
      ms_per_token: median. Of decoding, per step: every row of a batch gets one token in it. Of `prefill`, per prompt token.
      rtf, rtfx: total / audio seconds, and its inverse, from the median.
      gb_s: median rate at which weights and cache were read (decode), or could be (roofline).
      gflop_s: median rate of arithmetic.
      floor: per figure `{"ms", "fraction", "bound"}`: least time on this machine by the cost model, the part of the measured
        median that this is, and whether `bytes` or `flops` decide.
      floor_fraction: the fraction of the workload's main figure.
      roofline: the limits that the floors come from: `read_gb_s`, `f32_gflop_s`, `bf16_gflop_s`, `date`.
      contexts: decode speed over the context: `context_tokens`, `ms_per_token` (median, and
        `min_` and `max_`), `tokens_per_s`, `gb_s`, `floor_fraction`, `read_gb_s`, `cache_bytes` each.
      transcript: `sha256` of the text, `finish_reason` (of a batch, all that occur).
      memory: `weights` (bytes by dtype), `cache_bytes`, `temp_bytes` (by program), `peak_device_bytes` and
        `peak_rss_bytes` (of the process so far, loading included).
      compile: `count` and `seconds` of programs made ready before the measured runs, `cached` of them from the persistent
        cache, `recompiles` inside measured runs (must be 0).
      env: `date`, `commit`, `dirty`, `package` (version), `cpu`, `cores`, `ram_bytes`, `gpu`, `driver`, `python`, `jax`,
        `jaxlib`, `flax`, `xla_flags`.
      notes: remarks that belong to the figures, one line each.
      sweep: `name`, `point` (the overrides) and `id`, if it was one of a sweep.
      error: why there is no valid result; mostly `runs` is empty then.
    """

    workload: str
    model: Mapping[str, Any] | None
    policy: str | None
    backend: str
    device: str
    threads: int | None
    batch_size: int
    audio: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    runs: list[dict[str, float]]
    summary: Mapping[str, Mapping[str, float]]
    env: Mapping[str, Any]
    schema: int = SCHEMA
    implementation: str | None = None
    tokens: float | None = None
    ms_per_token: float | None = None
    rtf: float | None = None
    rtfx: float | None = None
    gb_s: float | None = None
    gflop_s: float | None = None
    floor: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    floor_fraction: float | None = None
    roofline: Mapping[str, Any] | None = None
    contexts: list[dict[str, float]] = dataclasses.field(default_factory=list)
    transcript: Mapping[str, Any] | None = None
    memory: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compile: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sweep: Mapping[str, Any] | None = None
    error: str | None = None

    def to_json(self) -> str:
        """One line, without its newline."""
        values = dataclasses.asdict(self)
        ordered = {"schema": values.pop("schema"), **values}
        return json.dumps(ordered, ensure_ascii=False, allow_nan=False)

    def provenance_gaps(self) -> tuple[str, ...]:
        """What is not known of where the figures come from; a result with gaps cannot be reproduced."""
        wanted = {name: self.env.get(name) for name in ("date", "commit", "cpu", "jax")}
        if self.workload != "roofline":
            wanted["fingerprint"] = (self.model or {}).get("fingerprint")
        gaps = [name for name, value in wanted.items() if not value]
        return (*gaps, "uncommitted changes") if self.env.get("dirty") else tuple(gaps)


_FIELDS = {field.name: field for field in dataclasses.fields(Record)}
_REQUIRED = [name for name, f in _FIELDS.items() if f.default is f.default_factory is dataclasses.MISSING] + ["schema"]
_OPTIONAL_MAPPINGS = ("model", "audio", "roofline", "transcript", "sweep")
_MAPPINGS = ("summary", "settings", "env", "floor", "memory", "compile")


def parse(line: str) -> Record:
    """The record of one line.

    Raises:
      ValueError: it is not a record of this schema; the message says in what.
    """
    values = parse_object(line, SCHEMA, _REQUIRED)
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        raise ValueError("a number in it is none, or infinite") from None
    if unknown := sorted(set(values) - set(_FIELDS)):
        raise ValueError(f"unknown field {', '.join(unknown)}")
    if values["workload"] not in WORKLOADS:
        raise ValueError(f"unknown workload {values['workload']!r}")
    if not isinstance(values["runs"], list) or not all(isinstance(run, dict) for run in values["runs"]):
        raise ValueError("runs is not a list of objects")
    for name in (*_MAPPINGS, *_OPTIONAL_MAPPINGS):
        if not isinstance(values.get(name, {}), dict) and not (name in _OPTIONAL_MAPPINGS and values[name] is None):
            raise ValueError(f"{name} is not an object")
    for name, kind in {"contexts": dict, "notes": str}.items():
        if not isinstance(values.get(name, []), list) or not all(isinstance(each, kind) for each in values.get(name, [])):
            raise ValueError(f"{name} is not a list of {'objects' if kind is dict else 'strings'}")
    for stage, figures in values["summary"].items():
        if not isinstance(figures, dict) or sorted(figures) != sorted(STATISTICS):
            raise ValueError(f"summary of {stage} has not the figures {', '.join(STATISTICS)}")
        if not all(isinstance(value, int | float) for value in figures.values()):
            raise ValueError(f"summary of {stage} holds what is no number")
    values["notes"] = tuple(values.get("notes", ()))
    return Record(**values)


def read_records(paths: Iterable[pathlib.Path]) -> tuple[list[Record], list[str]]:
    """All records of the files, and one line for each line that is none: `FILE:LINE: why`.

    Raises:
      UsageError: a file cannot be read.
    """
    return read_lines(paths, parse)


def append_records(path: pathlib.Path, records: Iterable[Record]) -> None:
    """Appends one line each, all in one write; behind a line that was cut off, on lines of their own.

    Raises:
      OutputError: the file cannot be written.
    """
    append_lines(path, [record.to_json() for record in records])
