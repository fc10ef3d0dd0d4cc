"""Writes records of measurements as an entry of a log: tables, plots, and what changed since an earlier entry.

    python scripts/report.py runs/*.jsonl --output=docs/benchmarks/ [--baseline=NAME_OR_JSONL] [--title="..."]

The entry goes to OUTPUT/NAME/, with the records in results.jsonl; OUTPUT/README.md lists all entries. An entry of a given name
is replaced; one of the default name only if nothing of it is lost. Points of a sweep that failed are left out where they were
measured later. Exit status: 0 written, 1 nothing could be read or written, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import UsageError

flags.DEFINE_string("output", "docs/benchmarks", "Folder of the log.", short_name="o")
flags.DEFINE_string(
    "name", None, "Name of the entry, which is replaced; date, backend and commit of the newest record if not given."
)
flags.DEFINE_string("baseline", None, "Compare with this earlier entry, or with the records of a .jsonl file.")
flags.DEFINE_string("title", None, "Headline of the entry.")
FLAGS = flags.FLAGS


def main(names: Sequence[str]) -> int:
    """Writes the entry and returns the exit status."""
    if not names:
        raise UsageError("no records given; usage: report.py RECORDS.jsonl [...] --output=DIR")

    from qwen_asr_jax.bench.record import read_records
    from qwen_asr_jax.bench.report import write_report

    records, problems = read_records([pathlib.Path(name) for name in names])
    for problem in problems:
        cli.warn(problem)
    written = write_report(
        records,
        pathlib.Path(FLAGS.output).expanduser(),
        name=FLAGS.name,
        baseline=FLAGS.baseline,
        title=FLAGS.title,
        problems=problems,
    )
    for remark in written.remarks:
        cli.warn(remark)
    done = "replaced" if written.replaced else "wrote"
    cli.warn(f"{done} {written.folder}: {written.records} records, {written.plots} plots")
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
