"""A log of measurements: a folder of dated entries, each with its tables, its plots and the records behind them.

docs/benchmarks/README.md             the index, newest entry first
docs/benchmarks/NAME/README.md        the entry
docs/benchmarks/NAME/results.jsonl    its records: what a later entry is compared with
docs/benchmarks/NAME/*.png            its plots
docs/benchmarks/NAME/notes.md         remarks written by hand, if there are any; linked, never touched
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from qwen_asr_jax.bench import entry, fields, plots, tables
from qwen_asr_jax.bench.record import Record, read_records
from qwen_asr_jax.errors import OutputError, QwenASRError, UsageError
from qwen_asr_jax.files import writable_directory, write_bytes, write_text

PAGE, RESULTS, NOTES = "README.md", "results.jsonl", "notes.md"


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of a report.

    Attributes:
      folder: the entry's.
      records, plots: how many there are in it.
      replaced: there was an entry of this name before.
      remarks: one line each, about what could not be read or drawn.
    """

    folder: pathlib.Path
    records: int
    plots: int
    replaced: bool
    remarks: tuple[str, ...]


def write_report(
    records: Sequence[Record],
    output: pathlib.Path,
    *,
    name: str | None = None,
    baseline: str | None = None,
    title: str | None = None,
    problems: Sequence[str] = (),
) -> Written:
    """Writes one entry of the log, and the log's index.

    Args:
      records: results in any order; identical ones count once, and points that failed not where they were measured later.
      output: the log's folder.
      name: the entry's, which is replaced; `default_name` if not given, and then nothing is lost of an entry of that name.
      baseline: name of an earlier entry, or a `.jsonl` file, to compare with.
      title: the entry's headline; its name if not given.
      problems: lines about what could not be read, for the entry's end.

    Raises:
      UsageError: the name is not one of a folder, there is no such baseline, or other records would be replaced.
      OutputError: something cannot be written.
      QwenASRError: there are no records.
    """
    given = {record.to_json(): record for record in records}
    if not given:
        raise QwenASRError("there is no record in these files; nothing was written")
    records = _current(given.values())
    title = " ".join(title.split()) if title else None
    if name is None:
        name = _checked_name(default_name(records))
        _check_nothing_lost(output / name, given)
    name = _checked_name(name)
    earlier, remarks = (None, []) if baseline is None else _read_baseline(baseline, output, name)
    folder = writable_directory(output / name)
    replaced = (folder / PAGE).exists()
    rows = fields.make_rows(records)
    images = plots.draw(rows)
    page = entry.Entry(
        rows=rows,
        title=title or name,
        images=images,
        command=entry.command(folder, RESULTS, baseline, title),
        baseline=earlier,
        problems=(*problems, *remarks),
        notes=NOTES if (folder / NOTES).exists() else None,
    )
    write_text(folder / RESULTS, "".join(record.to_json() + "\n" for record in records))
    for image, data in (images or {}).items():
        write_bytes(folder / image, data)
    write_text(folder / PAGE, page.to_markdown())
    _remove(folder / image for image in plots.PLOTS if image not in (images or {}))
    if len(records) < len(given):
        remarks.append(f"failed records left out, as their points were measured later: {len(given) - len(records)}")
    remarks += write_index(output)
    if images is None:
        remarks.append(plots.HOW_TO_GET)
    return Written(folder, len(records), len(images or {}), replaced, tuple(remarks))


def _current(records: Iterable[Record]) -> list[Record]:
    """The records without failures of a sweep's point that has a valid result from the same machine since."""
    records = list(records)
    measured: dict[tuple[str, str], datetime.datetime] = {}
    for record in records:
        if (key := _point(record)) and fields.is_valid(record):
            measured[key] = max(measured.get(key, fields.NO_DATE), fields.measured_at(record))
    return [
        record
        for record in records
        if record.error is None
        or not (key := _point(record))
        or key not in measured
        or fields.measured_at(record) > measured[key]
    ]


def _point(record: Record) -> tuple[str, str] | None:
    """The point of a sweep and the machine: on another one it may still fail."""
    found = fields.mapping(record.sweep).get("id")
    return (str(found), str(record.env.get("cpu"))) if found else None


def _check_nothing_lost(folder: pathlib.Path, given: Mapping[str, Record]) -> None:
    """Raises a `UsageError` where the folder holds an entry of other records."""
    path = folder / RESULTS
    if not path.exists():
        return
    there, problems = read_records([path])
    kept = _current([*given.values(), *there])
    if problems or any(record.to_json() not in given for record in kept):
        replacing = f"replace it with --name={shlex.quote(folder.name)}"
        raise UsageError(f"{folder}: this entry holds other records; choose another --name, or {replacing}")


def default_name(records: Sequence[Record]) -> str:
    """Date, backend and commit of the newest result, `2026-11-21-cpu-5cf4ff1`."""
    newest = max((r for r in records if r.error is None), key=fields.measured_at, default=records[0])
    commit = str(newest.env.get("commit") or "unknown")[:7]
    return f"{entry.day(newest)}-{newest.backend}-{commit}"


def write_index(output: pathlib.Path) -> list[str]:
    """Writes the table of the entries found in `output`, newest first; returns a line about each that cannot be read.

    Raises:
      OutputError: it cannot be written.
    """
    lines, remarks = [], []
    for results in output.glob(f"*/{RESULTS}"):
        folder = results.parent
        if folder.name.startswith(".") or not (folder / PAGE).exists():
            continue
        try:
            records, problems = read_records([results])
        except UsageError as e:
            records, problems = [], [str(e)]
        remarks += problems
        newest = max(map(fields.measured_at, records), default=fields.NO_DATE)
        lines.append(((newest, folder.name), _index_line(folder, records)))
    lines.sort(key=lambda line: line[0], reverse=True)
    headers = ["date", "entry", "title", "device", "models", "best"]
    table = tables.plain_table([cells for _, cells in lines], headers, left=headers)
    intro = "Written by `scripts/report.py`; each entry's `results.jsonl` can be the baseline of a later one."
    reading = (
        "`best` is over the entry's clips: the highest RTFx (audio time / processing time), the fewest ms per decoded token;"
        " what ended by itself goes before what was cut, and any clip before silence."
    )
    note = f"\n{tables.CUT_NOTE}\n" if tables.CUT in table else ""
    write_text(output / PAGE, f"# Measurements\n\n{intro}\n{reading}\n\n{table}\n{note}")
    return remarks


def _index_line(folder: pathlib.Path, records: Sequence[Record]) -> list[str]:
    first = (folder / PAGE).read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    title = first.removeprefix("#").strip()
    valid = [record for record in records if fields.is_valid(record)]
    models = sorted({fields.model_name(record) for record in valid if record.model})
    return [
        entry.day(max(records, key=fields.measured_at)) if records else fields.DASH,
        f"[{folder.name}]({entry.link(folder.name)}/{PAGE})",
        "" if title == folder.name else title,
        ", ".join(sorted({str(record.device) for record in valid})) or fields.DASH,
        ", ".join(models) or fields.DASH,
        headline(valid),
    ]


def headline(records: Sequence[Record]) -> str:
    """The best figures per model and policy, `0.6b bf16: RTFx 9.10 (jfk.wav, 25 tokens), 45.2 ms/token`, joined by `<br>`.

    Where several kernels computed, they have figures of their own. What ended by itself goes before what the token budget
    ended, and any clip before silence, whatever is faster.
    """
    parts = []
    records = [r for r in records if r.model]
    for name, members in sorted(fields.group(records, fields.model_and_policy(records)).items()):
        full, batch = ([r for r in members if r.workload == workload] for workload in ("full", "batch"))
        steps = [r for r in members if r.workload in ("full", "decode") and r.batch_size == 1]  # else a step is many tokens
        figures = []
        if best := _best(full, lambda r: fields.number(r.rtfx)):
            figures.append(f"RTFx {fields.digits(best[1])} ({_work(best[0])})")
        if best := _best(steps, lambda r: fields.figure(r, "ms_per_token"), sign=-1):
            figures.append(f"{fields.digits(best[1])} ms/token")
        if best := _best(batch, tables.throughput):
            figures.append(f"{fields.digits(best[1])} audio s/s in batches ({_work(best[0])})")
        if figures:
            parts.append(f"{' '.join(name)}: {', '.join(figures)}")
    return "<br>".join(parts) or fields.DASH


def _best(records: Sequence[Record], value: Callable[[Record], float | None], sign: int = 1) -> tuple[Record, float] | None:
    """The record with the highest value (the lowest with sign -1), and the value."""
    known = [(r, x) for r in records if (x := value(r)) is not None]
    return max(known, key=lambda k: (not fields.is_silence(k[0]), not fields.is_cut(k[0]), sign * k[1]), default=None)


def _work(record: Record) -> str:
    """What a headline's figure is of: the clip, and the tokens of its transcript."""
    parts = [fields.audio_name(record)]
    if (tokens := tables.tokens(record)) != fields.DASH:
        parts.append(f"{tokens} tokens")
    return ", ".join(parts) + f" {tables.CUT}" * fields.is_cut(record)


def _checked_name(name: str) -> str:
    if not name or name.startswith(".") or pathlib.PurePath(name).name != name or not name.isprintable():
        raise UsageError(f"--name={name!r} is not the name of a folder in the log")
    return name


def _read_baseline(baseline: str, output: pathlib.Path, name: str) -> tuple[entry.Baseline, list[str]]:
    """The baseline's records, and lines about what in it could not be read."""
    if baseline.endswith(".jsonl"):
        path, link = pathlib.Path(baseline), None
    else:
        path, link = output / baseline / RESULTS, f"../{entry.link(baseline)}/{PAGE}"
        if baseline == name:
            raise UsageError(f"--baseline={baseline}: an entry cannot be its own baseline; choose another --name")
        if not path.exists():
            there = ", ".join(sorted(p.parent.name for p in output.glob(f"*/{RESULTS}"))) or "none"
            raise UsageError(f"--baseline={baseline}: no such entry in {output} (there: {there}), nor a .jsonl file")
    records, problems = read_records([path])
    if not records:
        raise UsageError(f"--baseline={baseline}: no record could be read from {path}")
    return entry.Baseline(path.name if link is None else baseline, link, records), problems


def _remove(paths: Iterable[pathlib.Path]) -> None:
    """Removes plots of an earlier state of the entry that it has no data for any more."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            raise OutputError(f"{path}: cannot be removed ({e.strerror})") from None
