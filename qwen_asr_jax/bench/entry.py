"""The page of one entry of the log: a header that says where the figures come from, tables, plots, and what is wrong."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import shlex
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence

from qwen_asr_jax.bench import fields, tables
from qwen_asr_jax.bench.baseline import compare, comparison_text
from qwen_asr_jax.bench.plots import HOW_TO_GET, PLOTS
from qwen_asr_jax.bench.record import WORKLOADS, Record

HOW_TO_READ = (
    "RTF is processing time / audio time, RTFx its inverse (higher is faster). Figures are medians over the runs, with"
    " (min-max) where it says so; `of floor` is the least time that this machine could need / the measured time; TTFT is the"
    " time to the first token; CPU/wall the cores that were busy. MB are 1e6 bytes."
)

_Section = tuple[str, Callable[[Sequence[fields.Row]], str], str | None]

_SECTIONS: Mapping[str, Sequence[_Section]] = {
    "full": [("Summary", tables.summary_table, "rtfx.png"), ("Stage breakdown", tables.stage_table, "stages.png")],
    "encoder": [("Encoder", tables.encoder_table, None)],
    "prefill": [("Prefill", tables.prefill_table, None)],
    "decode": [
        ("Decode", tables.decode_table, None),
        ("Decode against context", tables.context_table, "decode-context.png"),
    ],
    "batch": [("Batches", tables.batch_table, "batch.png")],
    "roofline": [("Roofline", tables.roofline_table, None)],
    "load": [("Start-up", tables.load_table, None)],
}
"""Per workload its sections: heading, table, and the plot under it."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What an entry is compared with: its name, where its page is (None for a file), and its records."""

    name: str
    link: str | None
    records: Sequence[Record]


@dataclasses.dataclass(frozen=True)
class Entry:
    """All that goes on the page.

    Attributes:
      rows: the records, in reading order.
      title: one line.
      images: plots by file name; None where matplotlib is absent.
      command: writes this entry again.
      baseline: what to compare with.
      problems: lines about what could not be read.
      notes: file with remarks written by hand, in the same folder.
    """

    rows: Sequence[fields.Row]
    title: str
    images: Mapping[str, bytes] | None
    command: str
    baseline: Baseline | None = None
    problems: Sequence[str] = ()
    notes: str | None = None

    def to_markdown(self) -> str:
        """The whole page."""
        records = [row.record for row in self.rows]
        measured = [row for row in self.rows if row.record.error is None]
        parts = [f"# {self.title}", _dates(records), header(records), _invalid(records), self._how_to()]
        if self.notes:
            parts.append(f"Remarks by hand: [{self.notes}]({self.notes}).")
        for workload, sections in _SECTIONS.items():
            rows = [row for row in measured if row.record.workload == workload]
            parts += [self._section(*section, rows=rows) for section in sections if rows]
        if self.images is not None and "floor.png" in self.images:
            parts.append(_titled("Distance from the floor", self._image("floor.png")))
        parts.append(_titled("Memory", _memory(measured)))
        compiled = [
            row for row in measured if row.record.compile and row.record.workload != "load"
        ]  # which has its own table
        parts.append(_titled("Compilation", _folded(tables.compile_table(compiled), compiled) if compiled else ""))
        if self.baseline is not None:
            comparison = compare(self.baseline.records, records)
            name = f"[{self.baseline.name}]({self.baseline.link})" if self.baseline.link else f"`{self.baseline.name}`"
            parts.append(_titled("Before and after", comparison_text(comparison, name)))
        failed = [row for row in self.rows if row.record.error is not None]
        parts.append(_titled("Failed", tables.failed_table(failed) if failed else ""))
        parts.append(_titled("Remarks", _remarks(self.rows)))
        parts.append(_titled("Provenance", _provenance(records)))
        parts.append(_titled("Not readable", "\n".join(f"- {_one_line(_without_folder(line))}" for line in self.problems)))
        return "\n\n".join(part for part in parts if part) + "\n"

    def _how_to(self) -> str:
        sweeps = sorted({str(name) for row in self.rows if (name := fields.mapping(row.record.sweep).get("name"))})
        measured = f"Measured as {', '.join(map(_sweep, sweeps))}. " if sweeps else ""
        plots = (
            "" if self.images is not None else f"\n\n{HOW_TO_GET.capitalize()}.".replace("No plots", "There are no plots")
        )
        return f"{measured}Written by:\n\n    {self.command}\n\n{HOW_TO_READ}{plots}"

    def _section(
        self, heading: str, table: Callable[[Sequence[fields.Row]], str], plot: str | None, rows: Sequence[fields.Row]
    ) -> str:
        text = table(rows)
        if text and plot and plot in (self.images or {}):
            text += f"\n\n{self._image(plot)}"
        return _titled(heading, text)

    def _image(self, name: str) -> str:
        return f"![{PLOTS[name]}]({name})"


def header(records: Sequence[Record]) -> str:
    """A line per environment (hardware, versions, commit, runs) and its roofline."""
    records = [r for r in records if r.error is None] or records
    letters = fields.environment_letters(records)
    groups = fields.group(records, fields.environment_key)
    lines = [f"Measured in {len(letters)} environments, column `env`:\n"] if len(letters) > 1 else []
    for key, letter in letters.items():
        mark = f"- **{letter}**: " if len(letters) > 1 else ""
        lines.append(f"{mark}{_environment(groups[key])}. {_roofline(groups[key])}")
    return "\n".join(lines)


def command(folder: pathlib.Path, results: str, baseline: str | None, title: str | None) -> str:
    """The command line that writes the entry again, with no path from outside the working directory."""
    options = {"output": shown_path(folder.parent), "name": folder.name, "baseline": baseline, "title": title}
    if baseline is not None and baseline.endswith(".jsonl"):
        options["baseline"] = shown_path(pathlib.Path(baseline))
    path = f"{options['output']}/{folder.name}/{results}"
    words = [f"--{name}={shlex.quote(value)}" for name, value in options.items() if value is not None]
    return " ".join(["python scripts/report.py", shlex.quote(path), *words])


def shown_path(path: pathlib.Path) -> str:
    """The path from the working directory; its last part alone where it lies elsewhere."""
    try:
        return path.expanduser().absolute().relative_to(pathlib.Path.cwd()).as_posix()
    except ValueError:
        return path.name


def link(name: str) -> str:
    """A file's name as the target of a link."""
    return urllib.parse.quote(name)


def day(record: Record) -> str:
    """The day on which the record was measured, `2026-11-21`."""
    date = fields.measured_at(record)
    return "undated" if date == fields.NO_DATE else date.date().isoformat()


def _sweep(name: str) -> str:
    """The sweep of that name, and how to run it where its config is at hand."""
    config = f"configs/{name}.py"
    if not pathlib.Path(config).exists():
        return f"sweep `{name}`"
    return f"sweep `{name}` (`python scripts/sweep.py --config={config}`, with the models and clips below as its base)"


def _without_folder(problem: str) -> str:
    """`FILE:LINE: why` without the file's folder."""
    place, separator, why = problem.partition(": ")
    return pathlib.PurePath(place).name + separator + why


def _folded(table: str, rows: Sequence[fields.Row]) -> str:
    """The table of compilations, a line per record and so a long one, behind its sum."""
    programs = sum(int(fields.number(row.record.compile.get("count")) or 0) for row in rows)
    inside = sum(fields.recompiles(row.record) for row in rows)
    summary = f"{len(rows)} records: {programs} programs made ready, {inside} of them inside measured runs"
    return f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>"


def _titled(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text}" if text else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _dates(records: Sequence[Record]) -> str:
    days = sorted({day(r) for r in records if fields.measured_at(r) != fields.NO_DATE})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "Undated"


def _environment(records: Sequence[Record]) -> str:
    first = records[0]
    env = {name: fields.DASH if (value := first.env.get(name)) in (None, "") else str(value) for name in fields.ENVIRONMENT}
    parts = [f"{env['cpu']}, {env['cores']} cores"]
    if first.env.get("gpu"):
        parts.append(f"{env['gpu']}, driver {env['driver']}")
    threads = _range(r.threads for r in records)
    parts.append(f"backend {first.backend}" + (f" on {first.device}" if str(first.device) not in parts[0] else ""))
    parts[-1] += f", {_several(threads, 'thread')}" if threads else ""
    parts.append(", ".join(f"{name} {env[name]}" for name in ("python", "jax", "jaxlib", "flax")))
    parts.append(f"XLA_FLAGS `{env['xla_flags']}`" if first.env.get("xla_flags") else "no XLA_FLAGS")
    dirty = " with **uncommitted changes**" if first.env.get("dirty") else ""
    parts.append(f"commit `{env['commit'][:12]}`{dirty}" if first.env.get("commit") else f"commit unknown{dirty}")
    runs, warmup = _range(len(r.runs) for r in records if r.runs), _range(r.settings.get("warmup") for r in records)
    parts.append(_several(runs or "no", "run") + (f" after {_several(warmup, 'warm-up')}" if warmup else ""))
    return _one_line("; ".join(parts))


def _range(values: Iterable[object], show: Callable[[float], str] = fields.count) -> str:
    """The numbers among the values, `2` or `1 to 4`."""
    found = sorted({value for v in values if (value := fields.number(v)) is not None})
    return " to ".join(dict.fromkeys([show(found[0]), show(found[-1])])) if found else ""


def _several(number: str, thing: str) -> str:
    return f"{number} {thing}{'' if number == '1' else 's'}"


def _roofline(records: Sequence[Record]) -> str:
    known = [roofline for r in records if (roofline := fields.mapping(r.roofline))]
    if not known:
        return "No roofline, so no floors."
    units = {"read_gb_s": "GB/s read", "f32_gflop_s": "GFLOP/s f32", "bf16_gflop_s": "GFLOP/s bf16"}
    limits = [
        f"{found} {unit}" for key, unit in units.items() if (found := _range((r.get(key) for r in known), fields.digits))
    ]
    days = sorted({str(roofline.get("date") or "date unknown").partition("T")[0] for roofline in known})
    return f"Roofline: {', '.join(limits)} ({', '.join(days)})."


def _invalid(records: Sequence[Record]) -> str:
    count = sum(fields.recompiles(r) > 0 for r in records)
    if not count:
        return ""
    return (
        f"> **INVALID: {count} of {len(records)} records were compiling inside measured runs.** Their figures are not those of"
        " the engine; they are marked in every table and left out of plots and of the index."
    )


def _memory(rows: Sequence[fields.Row]) -> str:
    text = tables.memory_table(rows)
    note = (
        "The most over all workloads; peaks are those of the whole process. Saved: less than fp32 needs for the same work."
    )
    return text and f"{text}\n\n{note}"


def _remarks(rows: Sequence[fields.Row]) -> str:
    """The records' notes, each with what it belongs to."""
    owners: dict[str, dict[str, None]] = {}
    key = fields.model_and_policy([row.record for row in rows])
    for row in rows:
        for note in row.record.notes:
            name = (row.record.workload, *key(row.record)) if row.record.model else (row.record.workload,)
            owners.setdefault(_one_line(str(note)), {})[" ".join(name)] = None
    return "\n".join(f"- {note} ({', '.join(names)})" for note, names in owners.items())


def _provenance(records: Sequence[Record]) -> str:
    """The footnote of the marked rows."""
    gaps: dict[str, collections.Counter[str]] = {}
    for record in records:
        for gap in record.provenance_gaps() if record.error is None else ():
            gaps.setdefault(gap, collections.Counter())[record.workload] += 1
    lines = []
    for gap, counts in gaps.items():
        where = ", ".join(f"{workload} {counts[workload]}" for workload in WORKLOADS if counts[workload])
        lines.append(f"- {gap if gap == 'uncommitted changes' else f'without {gap}'}: {where}")
    note = f"{tables.DAGGER} These rows cannot be reproduced from what their records say:"
    return "\n".join([note, "", *lines]) if lines else ""
