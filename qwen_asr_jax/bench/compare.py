"""Whether B is slower than A: what the ratios of their figures say, and which ratios two sets of records have.

Sets of records were measured one after the other: a machine's drift in between is in their ratios, and the interval knows
nothing of it. `commands` runs both by turns instead.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import statistics
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from qwen_asr_jax.bench import fields
from qwen_asr_jax.bench.record import MAIN_FIGURE, Record
from qwen_asr_jax.bench.summary import Ratio, paired_ratio
from qwen_asr_jax.errors import UsageError

SCHEMA = 1
"""Version of what `Comparison.to_json` writes."""

LEAST_PAIRS = 6
"""The fewest pairs whose interval can cover the median with 95 %: 1 - 2 / 2**6 = 0.97, and 0.94 with five."""

ACROSS = ("policy", "implementation", "threads", "model", "batch_size", "audio", "device", "backend", "engine")
"""Fields that records may differ in and still be compared, if asked for."""


_SAID_IF_SEVERAL = ("device", "implementation")


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

    @functools.cached_property
    def ratio(self) -> Ratio:
        """B / A."""
        return paired_ratio(self.values_a, self.values_b)

    @property
    def verdict(self) -> str:
        """What the interval lets one say."""
        if self.ratio.pairs < LEAST_PAIRS:
            return f"too few pairs ({self.ratio.pairs}) to say"
        if not self.ratio.shows_difference:
            return "no difference shown"
        more, less = ("slower", "faster") if fields.is_time(self.figure) else ("higher", "lower")
        percent = 100 * abs(self.ratio.median - 1)
        return f"B {more if self.ratio.median > 1 else less} by {percent:{'.0f' if percent >= 10 else '.2g'}} %"

    def cells(self) -> list[str]:
        """The row under `HEADERS`."""
        medians = [fields.with_unit(self.figure, statistics.median(values)) for values in (self.values_a, self.values_b)]
        r = self.ratio
        certainty = [f"{r.low:.3f} to {r.high:.3f}", f"{100 * r.confidence:.1f} %", str(r.pairs)]
        return [self.what, self.figure, *medians, f"{r.median:.3f}", *certainty, self.verdict]

    def to_json(self, a: str, b: str) -> str:
        """One line, without its newline; `a` and `b` are the commands or files."""
        date = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
        values = {"schema": SCHEMA, "kind": "comparison", "date": date, "a": a, "b": b, **dataclasses.asdict(self)}
        return json.dumps({**values, "ratio": dataclasses.asdict(self.ratio), "verdict": self.verdict}, allow_nan=False)


HEADERS = ("what", "figure", "A median", "B median", "B/A median ratio", "interval", "confidence", "pairs", "verdict")


def check_gate(limit: float, rows: Sequence[Comparison]) -> tuple[list[str], list[str]]:
    """Which rows got worse by more than the limit, and which may have: one line each.

    Raises:
      UsageError: a row has too few pairs to ever show a difference.
    """
    worse: list[str] = []
    unclear: list[str] = []
    for row in rows:
        require_pairs(row.ratio.pairs)
        inverse = fields.more_is_better(row.figure)
        direction = "A/B" if inverse else "B/A"
        ratio = paired_ratio(row.values_b, row.values_a) if inverse else row.ratio
        found = f"{row.what}: {direction} of {row.figure} is {ratio.median:.3f}, above {limit:g}"
        if ratio.median > limit and ratio.shows_difference:
            worse.append(found)
        elif ratio.median > limit:
            unclear.append(f"inconclusive: more pairs are needed; {found}, but the interval includes 1")
    return worse, unclear


def require_pairs(pairs: int) -> None:
    """Raises a `UsageError` where there are too few pairs for any limit to be exceeded."""
    if pairs < LEAST_PAIRS:
        raise UsageError(
            f"--fail_above needs {LEAST_PAIRS} pairs or more, got {pairs}: fewer cannot show a difference"
            f" (--pairs={LEAST_PAIRS}; for files, measure with bench.py --runs={LEAST_PAIRS} or more)"
        )


def main_figure(workloads: Collection[str], there: Collection[str]) -> str:
    """What is compared unless a metric is asked for; a `UsageError` where the workloads have none in common."""
    figures = {MAIN_FIGURE[workload] for workload in workloads}
    if len(figures) != 1 or "roofline" in workloads:  # its figures are of equal rank
        raise UsageError(f"{' and '.join(sorted(workloads))}: no main figure, choose a --metric: {', '.join(sorted(there))}")
    return str(figures.pop())


def unknown(metric: str | None, there: Collection[str]) -> UsageError:
    """The error for a metric that is not there."""
    return UsageError(f"there is no figure {metric!r} to compare by; choose a --metric: {', '.join(sorted(there))}")


def positive(value: Any, what: str) -> float:
    """The value, or a `UsageError` where it has no ratio."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise UsageError(f"{what} is {value!r}: only positive numbers have a ratio, choose another --metric")
    return float(value)


class Compared(NamedTuple):
    """Two sets side by side.

    Attributes:
      rows: what both measured.
      remarks: one line each.
      missing: what A measured and B did not, or not validly; in words.
      measured: how many measurements A has of the figures that are compared.
    """

    rows: list[Comparison]
    remarks: list[str]
    missing: list[str]
    measured: int


def compare_sets(
    a: Sequence[Record], b: Sequence[Record], *, metric: str | None = None, across: Sequence[str] = ()
) -> Compared:
    """Compares records of one kind, run i with run i.

    Records with one `fields.identity` on one side are one series of runs, in the order of the file.

    Args:
      a, b: the sets.
      metric: figure of `runs`; None for the workload's main figure.
      across: those of `ACROSS` that may differ.

    Raises:
      UsageError: no record of one set can be compared with one of the other.
    """
    if strange := [name for name in across if name not in ACROSS]:
        raise UsageError(f"--across={','.join(across)}: no field {strange[0]!r}; there are {', '.join(ACROSS)}")
    remarks: list[str] = []
    groups_a, groups_b = (_group(name, records, across, remarks) for name, records in (("A", a), ("B", b)))
    common = [key for key in groups_a if key in groups_b]
    if not common:
        raise UsageError(_nothing_alike(groups_a, groups_b))
    alike = [name for name in _SAID_IF_SEVERAL if len({dict(_key(groups_a[key][0]))[name] for key in common}) == 1]
    without = (*across, *alike)
    rows, problems, missing, measured = [], [], [], 0
    for key, side in groups_a.items():
        what = _describe(side[0], without)
        comparable = _has_figure(side, metric)
        measured += comparable
        if key not in groups_b:
            missing += [what] * comparable
            continue
        try:
            rows.append(_compare_runs(what, (side, groups_b[key]), metric))
        except UsageError as e:
            problems.append(f"{what}: {e}")
            missing += [what] * comparable
            continue
        remarks += _remarks(what, (side, groups_b[key]), across)
    if not rows:
        raise UsageError(problems[0])
    lone = [sum(len(one[k]) for k in one if k not in common) for one in (groups_a, groups_b)]
    if any(lone):
        remarks.append(
            f"not compared, as nothing on the other side is like them: {lone[0]} of A's records, {lone[1]} of B's"
        )
    return Compared(rows, problems + remarks, missing, measured)


_Key = tuple[tuple[str, str], ...]
_Sides = tuple[list[Record], list[Record]]


def _key(record: Record, across: Collection[str] = ()) -> _Key:
    return tuple(fields.identity(record, without=across).items())


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
    tokens = record.settings.get("decode_tokens")
    words = {
        "model": record.model and fields.model_name(record),
        "policy": record.policy,
        "implementation": fields.implementation(record),
        "backend": record.backend,
        "device": record.device,
        "threads": record.threads and f"{record.threads} threads",
        "batch_size": f"batch {record.batch_size}",
        "audio": record.audio and fields.audio_name(record),
        "decode_tokens": tokens and f"{tokens} tokens",
        "engine": " ".join(f"{name}={value}" for name, value in fields.options(record, without)),
        "sweep point": " ".join(f"{name}={value}" for name, value in fields.point(record)),
    }
    return " ".join([record.workload, *(str(word) for name, word in words.items() if word and name not in without)])


def _figure_of(records: Sequence[Record], metric: str | None) -> tuple[str, set[str]]:
    """What is compared of them, and the figures that all their runs have."""
    there = set.intersection(*(set(run) for record in records for run in record.runs))
    return metric or main_figure({records[0].workload}, there), there


def _has_figure(records: Sequence[Record], metric: str | None) -> bool:
    """Whether one side's runs, for themselves, could be compared."""
    try:
        figure, _ = _figure_of(records, metric)
        return all(positive(run.get(figure), figure) > 0 for record in records for run in record.runs)
    except UsageError:
        return False


def _compare_runs(what: str, sides: _Sides, metric: str | None) -> Comparison:
    figure, there = _figure_of([record for side in sides for record in side], metric)
    if figure not in there:
        raise unknown(figure, there)
    runs = [[run for record in side for run in record.runs] for side in sides]
    values = [tuple(positive(run[figure], figure) for run in side[: min(map(len, runs))]) for side in runs]
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
