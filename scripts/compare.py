"""Says whether B is slower than A, with an interval.

    python scripts/compare.py --pairs=10 -- 'COMMAND A' 'COMMAND B'
    python scripts/compare.py A.jsonl B.jsonl [--across=policy]

Commands are run without a shell, by turns (A B, B A, A B, ...), each time in a fresh process. {json} in a command stands for
a file to which it appends its record, as in: python scripts/bench.py ... --output_json={json}; the figures of that record can
be compared then. Two files of records are compared run by run where they hold the same workload, model, policy and so on.

The table goes to stdout, everything else to stderr. Exit status: 0 compared, 1 a command failed or --fail_above was exceeded,
2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.bench import compare
from qwen_asr_jax.bench.compare import Command, Comparison
from qwen_asr_jax.bench.record import check_appendable, read_records
from qwen_asr_jax.errors import OutputError, UsageError

flags.DEFINE_integer("pairs", 10, "Runs of each command that count.", lower_bound=1)
flags.DEFINE_integer("warmup", 1, "Runs of each command before, that do not count.", lower_bound=0)
flags.DEFINE_string("metric", None, "Figure to compare; for commands wall_s, or with {json} the workload's main figure.")
flags.DEFINE_float("fail_above", None, "Exit with 1 if B is worse by more than this ratio, e.g. 1.10.", lower_bound=1.0)
flags.DEFINE_list("across", [], f"Fields that records may differ in: {', '.join(compare.ACROSS)}.")
flags.DEFINE_string("output_json", None, "Append one JSON object per row there.")
FLAGS = flags.FLAGS

USAGE = "usage: compare.py [--pairs=10] -- 'COMMAND A' 'COMMAND B', or compare.py A.jsonl B.jsonl"
NOT_INTERLEAVED = "The runs of A and B were not interleaved: a drift of the machine between them is in these ratios."


def name_files(arguments: Sequence[str]) -> bool:
    """Whether the arguments are two files of records, and not two commands.

    Raises:
      UsageError: one looks like such a file, but they are not two.
    """
    named = [name for name in arguments if name.endswith(".jsonl")]
    absent = [name for name in named if not pathlib.Path(name).is_file()]
    if named and len(named) == len(arguments) and not absent:
        return True
    for name in (*absent, *named):  # a command may end like a file, but not in one word
        if len(name.split()) == 1:
            raise UsageError(f"{name}: " + ("no such file" if name in absent else "compare it with another file of records"))
    return False


def compare_commands(arguments: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """The rows for two commands, the figure asked for first, and no remarks."""
    if FLAGS.across:
        raise UsageError("--across is for two files of records, not for commands")
    if FLAGS.fail_above is not None:
        compare.require_pairs(FLAGS.pairs)
    a, b = (Command.parse(name, text) for name, text in zip("AB", arguments, strict=True))
    options = {"pairs": FLAGS.pairs, "warmup": FLAGS.warmup, "metric": FLAGS.metric}
    return compare.compare_commands(a, b, show_progress, **options), []


def compare_files(arguments: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """The rows for two files of records, and what to remark under the table."""
    for name in ("pairs", "warmup"):
        if FLAGS[name].present:
            raise UsageError(f"--{name} is for two commands, not for files of records")
    sets = []
    for path in arguments:
        records, problems = read_records([pathlib.Path(path)])
        sets.append(records)
        for problem in problems:
            cli.warn(problem)
    rows, remarks = compare.compare_sets(*sets, metric=FLAGS.metric, across=FLAGS.across)
    return rows, [NOT_INTERLEAVED, *remarks]


def append(path: pathlib.Path, rows: Sequence[Comparison], a: str, b: str) -> None:
    """Appends one JSON object per row; `a` and `b` are the commands or files.

    Raises:
      OutputError: the file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as f:
            f.write("".join(f"{row.to_json(a, b)}\n" for row in rows))
    except OSError as e:
        raise OutputError(f"{path}: cannot be written ({e.strerror}); choose another --output_json") from None


def show_progress(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def show_table(arguments: Sequence[str], rows: Sequence[Comparison], remarks: Sequence[str]) -> None:
    """What A and B are, a row per figure, and the remarks; on stdout."""
    from tabulate import tabulate

    for name, argument in zip("AB", arguments, strict=True):
        print(f"{name} = {argument}")
    print()
    print(tabulate([row.cells() for row in rows], headers=compare.HEADERS, disable_numparse=True))
    print(*remarks, sep="\n", end="\n" if remarks else "", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Compares what the arguments name and returns the exit status."""
    if len(arguments) != 2:
        raise UsageError(f"two commands or two files of records are compared, got {len(arguments)}; {USAGE}")
    if FLAGS.fail_above is not None and math.isnan(FLAGS.fail_above):
        raise UsageError("--fail_above=nan: a ratio such as 1.10 is needed")
    target = pathlib.Path(FLAGS.output_json).expanduser() if FLAGS.output_json else None
    if target:
        check_appendable(target)
    are_files = name_files(arguments)
    rows, remarks = (compare_files if are_files else compare_commands)(arguments)
    gated = rows if are_files else rows[:1]
    worse, unclear = compare.check_gate(FLAGS.fail_above, gated) if FLAGS.fail_above is not None else ([], [])
    if target:
        append(target, rows, *arguments)

    show_table(arguments, rows, remarks)
    for line in (*unclear, *worse):
        cli.warn(line)
    return cli.EXIT_FAILED if worse else cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
