"""Two commands run by turns, and the figures of their runs.

They are interleaved, A B, B A, A B, ..., so that a machine that slows down or warms up does so for both alike.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from qwen_asr_jax import processes
from qwen_asr_jax.bench import fields
from qwen_asr_jax.bench.compare import Comparison, main_figure, positive, unknown
from qwen_asr_jax.bench.record import Record, read_records
from qwen_asr_jax.errors import QwenASRError, UsageError
from qwen_asr_jax.files import scratch_directory

PROCESS_FIGURES = ("wall_s", "cpu_s", "peak_rss_bytes")
"""Measured of every command."""

JSON_PLACE = "{json}"

_MEDIANS = ("ms_per_token", "rtf", "rtfx", "gb_s", "gflop_s")  # fields of a record that are medians themselves


class CommandError(QwenASRError):
    """A command that is compared failed, or did not record what was asked of it."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
      name: `A` or `B`.
      text: as given.
      words: split as a shell would, but never seen by one.
    """

    name: str
    text: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, text: str) -> Command:
        """The command of one argument.

        Raises:
          UsageError: quotes are not closed, or there is no such program.
        """
        try:
            words = tuple(shlex.split(text))
        except ValueError as e:
            raise UsageError(f"command {name} ({text}) cannot be split into words: {e}") from None
        if not words or shutil.which(words[0]) is None:
            raise UsageError(f"command {name} ({text}) cannot be run: no program {words[0] if words else ''!r} is found")
        return cls(name, text, words)

    def __str__(self) -> str:
        return f"command {self.name} ({self.text})"

    @property
    def records(self) -> bool:
        """Whether it is told where to append records."""
        return any(JSON_PLACE in word for word in self.words)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a command: its figures, `PROCESS_FIGURES` among them, and the workload of its last record if it wrote any."""

    figures: Mapping[str, Any]
    workload: str | None


def measure(command: Command) -> Run:
    """Runs the command once, in a fresh process; its figures are `PROCESS_FIGURES` and the medians of its last record.

    CPU seconds are user and system time of the process and of those children that it waited for. The peak RSS is that of the
    largest of these processes, and never below what this process had resident when it started it: Linux hands that mark on.

    Raises:
      CommandError: it ended with another status than 0, or recorded nothing that can be compared.
      UsageError: it cannot be started.
    """
    with scratch_directory() as folder:
        target = folder / "records.jsonl"
        try:
            done = processes.run([word.replace(JSON_PLACE, str(target)) for word in command.words])
        except OSError as e:
            raise UsageError(f"{command} cannot be run: {e.strerror}") from None
        if done.status:
            status = f" with exit status {done.status}" if done.status > 0 and done.stderr.strip() else ""
            raise CommandError(f"{command} failed{status}: {done.reason()}")
        record = _last_record(command, target) if command.records else None
    figures: dict[str, Any] = {name: getattr(done, name) for name in PROCESS_FIGURES}
    if record is None:
        return Run(figures, None)
    medians = {name: value for name in _MEDIANS if (value := getattr(record, name)) is not None}
    return Run(medians | {name: values["median"] for name, values in record.summary.items()} | figures, record.workload)


def _last_record(command: Command, path: pathlib.Path) -> Record:
    records, problems = read_records([path] if path.exists() else [])
    if problems:
        raise CommandError(f"{command} wrote to {JSON_PLACE} what is no record: line {problems[0].removeprefix(f'{path}:')}")
    if not records:
        raise CommandError(f"{command} wrote no record to {JSON_PLACE}")
    if not fields.is_valid(records[-1]):
        raise CommandError(f"{command} has no valid result: {records[-1].error or 'compilations inside measured runs'}")
    return records[-1]


def compare_commands(
    a: Command, b: Command, report: Callable[[str], None], *, pairs: int, warmup: int, metric: str | None
) -> list[Comparison]:
    """Runs both by turns and compares the metric first, then what else was measured of the processes.

    Args:
      a, b: the commands.
      report: takes one line per pair.
      pairs: runs of each that count.
      warmup: runs of each before, that do not.
      metric: figure of the process or of the last record; None for `wall_s`, or the workload's main figure if both record.

    Raises:
      UsageError: there is no such figure, or it has no ratio.
      CommandError: a command failed.
    """
    if not (a.records and b.records) and metric not in (None, *PROCESS_FIGURES):
        raise unknown(metric, PROCESS_FIGURES)
    figure, runs = "", []
    for i in range(-warmup, pairs):
        order = (b, a) if i > 0 and i % 2 else (a, b)
        done = {command.name: measure(command) for command in order}
        first, second = done[a.name], done[b.name]
        figure = figure or _choose(metric, first, second)
        x, y = (positive(done[c.name].figures.get(figure), f"command {c.name}: {figure}") for c in (a, b))
        turn = f"pair {i + 1}/{pairs}" if i >= 0 else f"warmup {i + warmup + 1}/{warmup}"
        report(f"{turn}  A {fields.with_unit(figure, x)}  B {fields.with_unit(figure, y)}  B/A {y / x:.3f}")
        if i >= 0:
            runs.append((first, second))
    what = " and ".join(dict.fromkeys(run.workload for run in runs[0] if run.workload)) or "commands"
    rows = []
    for name in (figure, *(other for other in PROCESS_FIGURES if other != figure)):
        values = [tuple(float(run.figures[name]) for run in side) for side in zip(*runs, strict=True)]
        if min(*values[0], *values[1]) > 0:  # a very short command may have used no CPU time that the kernel counts
            rows.append(Comparison(what, name, values[0], values[1], interleaved=True))
    return rows


def _choose(metric: str | None, first: Run, second: Run) -> str:
    there = [name for name in first.figures if name in second.figures]
    if metric is None and None in (first.workload, second.workload):
        return "wall_s"
    if metric is None:
        metric = main_figure({str(first.workload), str(second.workload)}, there)
    if metric not in there:
        raise unknown(metric, there)
    return metric
