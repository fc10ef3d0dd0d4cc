"""Whether B is slower than A: two commands run by turns, or two sets of records, and what their ratios say.

Commands are run interleaved, A B, B A, A B, ..., so that a machine that slows down or warms up does so for both alike. Sets of
records were measured one after the other: such a drift is in their ratios, and the interval knows nothing of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import pathlib
import re
import shlex
import shutil
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from qwen_asr_jax import processes
from qwen_asr_jax.bench import fields
from qwen_asr_jax.bench.record import MAIN_FIGURE, Record, read_records
from qwen_asr_jax.bench.summary import Ratio, paired_ratio
from qwen_asr_jax.errors import QwenASRError, UsageError
from qwen_asr_jax.files import scratch_directory

SCHEMA = 1
"""Version of what `Comparison.to_json` writes."""

LEAST_PAIRS = 6
"""The fewest pairs whose interval can cover the median with 95 %: 1 - 2 / 2**6 = 0.97, and 0.94 with five."""

PROCESS_FIGURES = ("wall_s", "cpu_s", "peak_rss_bytes")
"""Measured of every command."""

ACROSS = ("policy", "threads", "model", "batch_size", "audio", "device", "backend")
"""Fields that records may differ in and still be compared, if asked for."""

JSON_PLACE = "{json}"

_MEDIANS = ("ms_per_token", "rtf", "rtfx", "gb_s", "gflop_s")  # fields of a record that are medians themselves
_MORE_IS_BETTER = re.compile(r"rtfx|.*_per_s|.*gb_s|.*gflop_s")
_TIME = re.compile(r"(?!cpu_s$)(.*_(s|ms|us)|ms_per_token|rtf)")
_UNITS = {"_per_s": " /s", "gb_s": " GB/s", "gflop_s": " GFLOP/s"}
_UNITS |= {"ms_per_token": " ms", "_ms": " ms", "_us": " us", "_s": " s"}  # the first that fits


class CommandError(QwenASRError):
    """A command that is compared failed, or did not record what was asked of it."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One figure of A and B, run by run; `values_a[i]` and `values_b[i]` are a pair, and all are positive.

    Attributes:
      what: what was measured, in words.
      figure: its name, which carries the unit.
      values_a, values_b: one value per pair.
      interleaved: whether the runs of A and B took turns.
    """

    what: str
    figure: str
    values_a: tuple[float, ...]
    values_b: tuple[float, ...]
    interleaved: bool

    @property
    def more_is_better(self) -> bool:
        """Whether a higher figure is the better one, as with rates."""
        return _MORE_IS_BETTER.fullmatch(self.figure) is not None

    @functools.cached_property
    def ratio(self) -> Ratio:
        """B / A."""
        return paired_ratio(self.values_a, self.values_b)

    @property
    def verdict(self) -> str:
        """What the interval lets one say."""
        if not self.ratio.shows_difference:
            return "no difference shown"
        more, less = ("higher", "lower") if self.more_is_better or not _TIME.fullmatch(self.figure) else ("slower", "faster")
        percent = 100 * abs(self.ratio.median - 1)
        return f"B {more if self.ratio.median > 1 else less} by {percent:{'.0f' if percent >= 10 else '.2g'}} %"

    def cells(self) -> list[str]:
        """The row under `HEADERS`."""
        medians = [with_unit(self.figure, statistics.median(values)) for values in (self.values_a, self.values_b)]
        r = self.ratio
        certainty = [f"{r.low:.3f} to {r.high:.3f}", f"{100 * r.confidence:.1f} %", str(r.pairs)]
        return [self.what, self.figure, *medians, f"{r.median:.3f}", *certainty, self.verdict]

    def to_json(self, a: str, b: str) -> str:
        """One line, without its newline; `a` and `b` are the commands or files."""
        date = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
        values = {"schema": SCHEMA, "kind": "comparison", "date": date, "a": a, "b": b, **dataclasses.asdict(self)}
        return json.dumps({**values, "ratio": dataclasses.asdict(self.ratio), "verdict": self.verdict}, allow_nan=False)


HEADERS = ("what", "figure", "A median", "B median", "B/A median ratio", "interval", "confidence", "pairs", "verdict")


def with_unit(figure: str, value: float) -> str:
    """The value with the unit that the figure's name says; four digits."""
    if figure.endswith("_bytes"):
        return f"{value / 1e6:.1f} MB"
    unit = next((unit for ending, unit in _UNITS.items() if figure.endswith(ending)), "")
    return f"{value:{'.0f' if value >= 1000 else '.4g'}}{unit}"


def check_gate(limit: float, rows: Sequence[Comparison]) -> tuple[list[str], list[str]]:
    """Which rows got worse by more than the limit, and which may have: one line each.

    Raises:
      UsageError: a row has too few pairs to ever show a difference.
    """
    worse: list[str] = []
    unclear: list[str] = []
    for row in rows:
        require_pairs(row.ratio.pairs)
        direction = "A/B" if row.more_is_better else "B/A"
        ratio = paired_ratio(row.values_b, row.values_a) if row.more_is_better else row.ratio
        found = f"{row.what}: {direction} of {row.figure} is {ratio.median:.3f}, above {limit:g}"
        if ratio.median > limit and ratio.shows_difference:
            worse.append(found)
        elif ratio.median > limit:
            unclear.append(f"inconclusive: more pairs are needed; {found}, but the interval includes 1")
    return worse, unclear


def require_pairs(pairs: int) -> None:
    """Raises a `UsageError` where there are too few pairs for any limit to be exceeded."""
    if pairs < LEAST_PAIRS:
        raise UsageError(f"--fail_above needs {LEAST_PAIRS} pairs or more, got {pairs}: fewer cannot show a difference")


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
        raise _unknown(metric, PROCESS_FIGURES)
    figure, runs = "", []
    for i in range(-warmup, pairs):
        order = (b, a) if i > 0 and i % 2 else (a, b)
        done = {command.name: measure(command) for command in order}
        first, second = done[a.name], done[b.name]
        figure = figure or _choose(metric, first, second)
        x, y = (_positive(done[c.name].figures.get(figure), f"command {c.name}: {figure}") for c in (a, b))
        turn = f"pair {i + 1}/{pairs}" if i >= 0 else f"warmup {i + warmup + 1}/{warmup}"
        report(f"{turn}  A {with_unit(figure, x)}  B {with_unit(figure, y)}  B/A {y / x:.3f}")
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
        metric = _main_figure({str(first.workload), str(second.workload)}, there)
    if metric not in there:
        raise _unknown(metric, there)
    return metric


def _main_figure(workloads: Collection[str], there: Collection[str]) -> str:
    figures = {MAIN_FIGURE[workload] for workload in workloads}
    if len(figures) != 1 or "roofline" in workloads:  # its figures are of equal rank
        raise UsageError(f"{' and '.join(sorted(workloads))}: no main figure, choose a --metric: {', '.join(sorted(there))}")
    return str(figures.pop())


def _unknown(metric: str | None, there: Collection[str]) -> UsageError:
    return UsageError(f"there is no figure {metric!r} to compare by; choose a --metric: {', '.join(sorted(there))}")


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise UsageError(f"{what} is {value!r}: only positive numbers have a ratio, choose another --metric")
    return float(value)


def compare_sets(
    a: Sequence[Record], b: Sequence[Record], *, metric: str | None = None, across: Sequence[str] = ()
) -> tuple[list[Comparison], list[str]]:
    """Compares records of one kind, run i with run i; also returns what there is to remark, one line each.

    Records with one key on one side are one series of runs, in the order of the file.

    Args:
      a, b: the sets.
      metric: figure of `runs`; None for the workload's main figure.
      across: those of `ACROSS` that may differ.

    Raises:
      UsageError: no record of one set can be compared with one of the other.
    """
    if unknown := [name for name in across if name not in ACROSS]:
        raise UsageError(f"--across={','.join(across)}: no field {unknown[0]!r}; there are {', '.join(ACROSS)}")
    remarks: list[str] = []
    groups_a, groups_b = (_group(name, records, across, remarks) for name, records in (("A", a), ("B", b)))
    common = [key for key in groups_a if key in groups_b]
    if not common:
        raise UsageError(_nothing_alike(groups_a, groups_b))
    one_device = len({dict(_key(groups_a[key][0]))["device"] for key in common}) == 1
    rows, problems = [], []
    for key in common:
        sides = (groups_a[key], groups_b[key])
        what = _describe(sides[0][0], (*across, "device") if one_device else across)
        try:
            rows.append(_compare_runs(what, sides, metric))
        except UsageError as e:
            problems.append(f"{what}: {e}")
            continue
        remarks += _remarks(what, sides, across)
    if not rows:
        raise UsageError(problems[0])
    lone = [sum(len(one[k]) for k in one if k not in common) for one in (groups_a, groups_b)]
    if any(lone):
        remarks.append(
            f"not compared, as nothing on the other side is like them: {lone[0]} of A's records, {lone[1]} of B's"
        )
    return rows, problems + remarks


_Key = tuple[tuple[str, str], ...]
_Sides = tuple[list[Record], list[Record]]


def _key(record: Record, across: Collection[str] = ()) -> _Key:
    """What must be equal, field by field, as JSON. Fingerprints count more than names: two files may share a name."""
    model, audio = fields.mapping(record.model), fields.mapping(record.audio)
    values = {
        "workload": record.workload,
        "model": model.get("fingerprint") or model.get("name"),
        **{name: getattr(record, name) for name in ("policy", "backend", "device", "threads", "batch_size")},
        "audio": audio.get("sha256") or audio.get("name"),
        "decode_tokens": record.settings.get("decode_tokens"),
        "sweep point": fields.point(record),
    }
    return tuple((name, json.dumps(value, sort_keys=True)) for name, value in values.items() if name not in across)


def _group(name: str, records: Sequence[Record], across: Collection[str], remarks: list[str]) -> dict[_Key, list[Record]]:
    groups: dict[_Key, list[Record]] = {}
    usable = [record for record in records if fields.is_valid(record) and record.runs]
    for record in usable:
        groups.setdefault(_key(record, across), []).append(record)
    if not groups:
        raise UsageError(f"{name} holds no record with valid runs")
    if len(usable) < len(records):
        remarks.append(f"not compared, as they have no valid runs: {len(records) - len(usable)} of {name}'s records")
    return groups


def _nothing_alike(a: Collection[_Key], b: Collection[_Key]) -> str:
    differ = [name for i, (name, _) in enumerate(next(iter(a))) if not {key[i] for key in a} & {key[i] for key in b}]
    return f"no record of A is like one of B; they differ in {', '.join(differ) or 'combinations of fields'} (see --across)"


def _describe(record: Record, without: Collection[str]) -> str:
    words: dict[str, Any] = {
        "model": record.model and fields.model_name(record),
        "policy": record.policy,
        "backend": record.backend,
    }
    words |= {"device": record.device, "threads": record.threads and f"{record.threads} threads"}
    words |= {"batch_size": f"batch {record.batch_size}", "audio": record.audio and fields.audio_name(record)}
    words["sweep point"] = " ".join(f"{name}={value}" for name, value in fields.point(record))
    return " ".join([record.workload, *(str(word) for name, word in words.items() if word and name not in without)])


def _compare_runs(what: str, sides: _Sides, metric: str | None) -> Comparison:
    runs = [[run for record in side for run in record.runs] for side in sides]
    there = set.intersection(*(set(run) for run in (*runs[0], *runs[1])))
    figure = metric or _main_figure({sides[0][0].workload}, there)
    if figure not in there:
        raise _unknown(figure, there)
    values = [tuple(_positive(run[figure], figure) for run in side[: min(map(len, runs))]) for side in runs]
    return Comparison(what, figure, values[0], values[1], interleaved=False)


def _remarks(what: str, sides: _Sides, across: Collection[str]) -> list[str]:
    counts = [sum(len(record.runs) for record in side) for side in sides]
    found = []
    if counts[0] != counts[1]:
        found.append(f"{what}: A has {counts[0]} runs and B {counts[1]}; the first {min(counts)} of each are paired")
    for name, side in zip("AB", sides, strict=True):
        for field in across:
            if len({dict(_key(record))[field] for record in side}) > 1:
                found.append(f"{what}: the runs of {name} are of more than one {field}")
    return found
