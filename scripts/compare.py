"""Says whether B is slower than A, with an interval.

    python scripts/compare.py --pairs=10 -- 'COMMAND A' 'COMMAND B'
    python scripts/compare.py A.jsonl B.jsonl [--across=policy]

Commands are run without a shell, by turns (A B, B A, A B, ...), each time in a fresh process. {json} in a command stands for
a file to which it appends its record, as in: python scripts/bench.py ... --output_json={json}; the figures of that record can
be compared then. Two files of records are compared run by run where they hold the same workload, model, policy and so on.

The table goes to stdout, everything else to stderr. Exit status: 0 compared, 1 a command failed, or with --fail_above B is
worse by more or lacks a valid result of what A has; 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.bench import commands, compare
from qwen_asr_jax.bench.commands import Command
from qwen_asr_jax.bench.compare import Compared
from qwen_asr_jax.bench.record import read_records
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.json_lines import append_lines, check_appendable

flags.DEFINE_integer("pairs", 10, "Runs of each command that count.", lower_bound=1)
flags.DEFINE_integer("warmup", 1, "Runs of each command before, that do not count.", lower_bound=0)
flags.DEFINE_string("metric", None, "Figure to compare; for commands wall_s, or with {json} the workload's main figure.")
flags.DEFINE_float("fail_above", None, "Exit with 1 if B is worse by more than this ratio, e.g. 1.10.", lower_bound=1.0)
flags.DEFINE_bool("allow_missing", False, "With --fail_above: B may lack measurements that A has.")
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


def compare_commands(arguments: Sequence[str]) -> Compared:
    """The rows for two commands, the figure asked for first, and no remarks."""
    for name in ("across", "allow_missing"):
        if FLAGS[name].present:
            raise UsageError(f"--{name} is for two files of records, not for commands")
    if FLAGS.fail_above is not None:
        compare.require_pairs(FLAGS.pairs)
    a, b = (Command.parse(name, text) for name, text in zip("AB", arguments, strict=True))
    options = {"pairs": FLAGS.pairs, "warmup": FLAGS.warmup, "metric": FLAGS.metric}
    rows = commands.compare_commands(a, b, show_progress, **options)
    return Compared(rows, remarks=[], missing=[], measured=1)


def compare_files(arguments: Sequence[str]) -> Compared:
    """The rows for two files of records, what to remark under the table, and what B lacks."""
    for name in ("pairs", "warmup"):
        if FLAGS[name].present:
            raise UsageError(f"--{name} is for two commands, not for files of records")
    sets = []
    for path in arguments:
        records, problems = read_records([pathlib.Path(path)])
        sets.append(records)
        for problem in problems:
            cli.warn(problem)
    found = compare.compare_sets(*sets, metric=FLAGS.metric, across=FLAGS.across)
    return found._replace(remarks=[NOT_INTERLEAVED, *found.remarks])


def show_progress(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def show_table(arguments: Sequence[str], compared: Compared) -> None:
    """What A and B are, a row per figure, and the remarks; on stdout."""
    from tabulate import tabulate

    for name, argument in zip("AB", arguments, strict=True):
        print(f"{name} = {argument}")
    print()
    print(tabulate([row.cells() for row in compared.rows], headers=compare.HEADERS, disable_numparse=True))
    print(*compared.remarks, sep="\n", end="\n" if compared.remarks else "", flush=True)


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
    compared = (compare_files if are_files else compare_commands)(arguments)
    worse: list[str] = []
    unclear: list[str] = []
    if FLAGS.fail_above is not None:
        worse, unclear = compare.check_gate(FLAGS.fail_above, compared.rows if are_files else compared.rows[:1])
        if compared.missing and not FLAGS.allow_missing:
            worse.append(missing_line(compared))
    if target:
        append_lines(target, [row.to_json(*arguments) for row in compared.rows])

    show_table(arguments, compared)
    for line in (*unclear, *worse):
        cli.warn(line)
    return cli.EXIT_FAILED if worse else cli.EXIT_OK


def missing_line(compared: Compared) -> str:
    """How much of A has no valid counterpart, and the first few."""
    named = "; ".join([*compared.missing[:3], *["..."] * (len(compared.missing) > 3)])
    many = f"{len(compared.missing)} of A's {compared.measured} measurements"
    return f"without a valid counterpart in B: {many} ({named}); --allow_missing permits that"


if __name__ == "__main__":
    cli.run(main)
