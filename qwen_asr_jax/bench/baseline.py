"""Before and after: which records of two logs measure the same, and what changed between them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from qwen_asr_jax.bench.fields import (
    COMPARED_FIGURES,
    DASH,
    ENVIRONMENT,
    STAGES,
    change,
    digits,
    figure,
    figure_label,
    identity,
    implementation,
    make_rows,
    mapping,
    measured_at,
    more_is_better,
    percent,
    ratio,
    recompiles,
)
from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.summary import STATISTICS, is_noise
from qwen_asr_jax.bench.tables import INVALID, wide_table

_HEADERS = ["figure", "before", "after", "delta", "after/before", "verdict"]
_STAGES = {name: label for name, label in STAGES.items() if name != "mel_ms"}
_WITH_STAGES = ("full", "batch")

LEAST_RUNS = 5
"""Fewer runs on a side, and their range says too little of the noise for a verdict."""

_MOVED = 0.1


@dataclasses.dataclass(frozen=True)
class LogPair:
    """Two logs side by side.

    Attributes:
      pairs: records of one `fields.identity`, before and after; where none is left, of one but for the kernels, as those are
        what an entry may be about.
      gone: records of the baseline without a counterpart.
      new: records without a counterpart in the baseline.
      repeats: older measurements of the same, on either side; the newest is compared.
    """

    pairs: list[tuple[Record, Record]]
    gone: list[Record]
    new: list[Record]
    repeats: int


def compare(before: Iterable[Record], after: Iterable[Record]) -> LogPair:
    """Pairs the newest of what both sides measured; failed points count as not measured."""
    (old, old_repeats), (new, new_repeats) = (_newest(r for r in side if r.error is None) for side in (before, after))
    pairs = [(old[key], record) for key, record in new.items() if key in old]
    gone = {_but_for_kernels(record): record for key, record in old.items() if key not in new}
    added = []
    for key, record in new.items():
        if key not in old:
            before_it = gone.pop(_but_for_kernels(record), None)
            if before_it is None:
                added.append(record)
            else:
                pairs.append((before_it, record))
    return LogPair(pairs=pairs, gone=list(gone.values()), new=added, repeats=old_repeats + new_repeats)


def _but_for_kernels(record: Record) -> tuple[str, ...]:
    return tuple(identity(record, without=("implementation",)).values())


def comparison_text(comparison: LogPair, name: str) -> str:
    """Markdown: a table per workload, what else changed, and how many points have no counterpart."""
    parts = [
        f"Before: {name}. `noise`: the medians differ no more than the runs of one side do; `few runs`: a side has fewer than"
        f" {LEAST_RUNS}, too few to show that one is faster."
    ]
    if changed := _changes(comparison.pairs):
        parts.append(f"Changed in between: {changed}.")
    parts.append(_read_rates(comparison.pairs))
    before = {id(after): old for old, after in comparison.pairs}
    rows = make_rows([after for _, after in comparison.pairs])
    for workload in COMPARED_FIGURES:
        own = [row for row in rows if row.record.workload == workload]
        lines = [(row, cells) for row in own for cells in _figure_cells(before[id(row.record)], row.record)]
        headers = [*_HEADERS, *_STAGES.values(), "text"] if workload in _WITH_STAGES else _HEADERS
        if lines:
            parts.append(f"### {workload}\n\n{wide_table(lines, headers, left=['figure', 'verdict', 'text'])}")
    parts.append("\n".join(_left_over(comparison)))
    return "\n\n".join(part for part in parts if part)


def verdict(before: Record, after: Record, name: str) -> str:
    """`noise`, `faster` or `slower`; `few runs` where there are too few to say which."""
    if recompiles(before) or recompiles(after):
        return INVALID
    if is_noise(before.summary[name], after.summary[name]):
        return "noise"
    if min(len(before.runs), len(after.runs)) < LEAST_RUNS:
        return "few runs"
    rises = after.summary[name]["median"] > before.summary[name]["median"]
    return "faster" if rises == more_is_better(name) else "slower"


def _figure_cells(before: Record, after: Record) -> Iterable[list[str]]:
    """The cells of each main figure that both have; for transcriptions, also what became of the stages and of the text."""
    more = []
    if after.workload in _WITH_STAGES:
        more = [*(_stage_change(before, after, name) for name in _STAGES), _text_verdict(before, after)]
    for name in COMPARED_FIGURES[after.workload]:
        if not _has(before, name) or not _has(after, name):
            continue
        old, new = figure(before, name), figure(after, name)
        factor = ratio(new, old)
        values = [" ".join(figure_label(name)), digits(old), digits(new), change(factor, 1), digits(factor)]
        yield [*values, verdict(before, after, name), *more]


def _stage_change(before: Record, after: Record, name: str) -> str:
    if not _has(before, name) or not _has(after, name):
        return DASH
    noise = verdict(before, after, name) == "noise"
    return "noise" if noise else change(ratio(figure(after, name), figure(before, name)), 1)


def _has(record: Record, name: str) -> bool:
    return name in record.summary and all(figure(record, name, statistic) is not None for statistic in STATISTICS)


def _text_verdict(before: Record, after: Record) -> str:
    """Whether the transcript is still the same."""
    old, new = (mapping(r.transcript).get("sha256") for r in (before, after))
    return ("same" if old == new else "**differs**") if old and new else DASH


def _newest(records: Iterable[Record]) -> tuple[dict[tuple[str, ...], Record], int]:
    """The newest of each measurement, and how many older ones there are."""
    kept: dict[tuple[str, ...], Record] = {}
    repeats = 0
    for record in sorted(records, key=measured_at, reverse=True):
        key = tuple(identity(record).values())
        repeats += key in kept
        kept.setdefault(key, record)
    return kept, repeats


def _changes(pairs: Sequence[tuple[Record, Record]]) -> str:
    """The fields of the environment, and the kernels, that differ between the sides, `jax 0.10.2 -> 0.11.1`."""
    changes = []
    kernels = [sorted({implementation(pair[side]) for pair in pairs if pair[side].model}) for side in (0, 1)]
    if kernels[0] != kernels[1]:
        changes.append(f"kernels {' / '.join(kernels[0])} -> {' / '.join(kernels[1])}")
    for name in ENVIRONMENT[:-1]:  # whether there are uncommitted changes stands with the commit
        old, new = (sorted({_environment_value(pair[side], name) for pair in pairs}) for side in (0, 1))
        if old != new:
            changes.append(f"{name} {' / '.join(old)} -> {' / '.join(new)}")
    return "; ".join(changes)


def _read_rates(pairs: Sequence[tuple[Record, Record]]) -> str:
    """How fast memory was read beside the runs of both sides, and whether that moved: times and floors move with it."""
    rates = [tuple(figure(record, "read_gb_s") for record in pair) for pair in pairs]
    known = [(old, new) for old, new in rates if old and new]
    if not known:
        return ""
    ranges = [" to ".join(dict.fromkeys(map(digits, (min(side), max(side))))) for side in zip(*known, strict=True)]
    text = f"Memory read rate beside the runs: {ranges[0]} GB/s before, {ranges[1]} after."
    moves = sorted(new / old for old, new in known)
    moved = sum(abs(move - 1) > _MOVED for move in moves)
    if not moved:
        return text
    by = " to ".join(dict.fromkeys([change(moves[0]), change(moves[-1])]))
    said = f"It moved by more than {percent(_MOVED)} for {moved} of {len(moves)} ({by})"
    return f"{text} **{said}**, and times and floors with it."


def _environment_value(record: Record, name: str) -> str:
    value = str(record.env.get(name) or "none")
    return f"{value[:12]}{' with changes' if record.env.get('dirty') else ''}" if name == "commit" else value


def _left_over(comparison: LogPair) -> Iterable[str]:
    if comparison.gone:
        yield f"- Only in the baseline: {_counts(comparison.gone)}."
    if comparison.new:
        yield f"- Without a counterpart in the baseline: {_counts(comparison.new)}."
    if comparison.repeats:
        yield f"- Measured several times: the newest is compared, {comparison.repeats} older left out."
    empty = [after for before, after in comparison.pairs if not list(_figure_cells(before, after))]
    if empty:
        yield f"- Measured in both, but with no figure in common: {_counts(empty)}."
    if not comparison.pairs:
        yield "- Nothing was measured in both."


def _counts(records: Sequence[Record]) -> str:
    counts = collections.Counter(r.workload for r in records)
    return f"{len(records)} ({', '.join(f'{workload} {n}' for workload, n in counts.items())})"
