"""Comparing commands: whose turn it is, which ratios, which exit status; through the real script.

Ratios come from records written beforehand, never from a clock.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys

import pytest

from qwen_asr_jax.bench import commands
from qwen_asr_jax.bench.commands import Command, Run
from qwen_asr_jax.bench.compare import Comparison
from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.errors import UsageError
from tests.compare_script import FAILED, INTERRUPTED, ROOT, USAGE, fails, record, script, write

NEXT_LINE = """
lines=$1 turn=$2 log=$3 name=$4 target=$5
echo $name >> $log
echo x >> $turn
sed -n "$(($(wc -l < $turn)))p" $lines >> $target
"""


@pytest.fixture
def recording(tmp_path):
    """Makes a command that appends one prepared record per run to {json}, and its name to the log."""
    helper = tmp_path / "next_line.sh"
    helper.write_text(NEXT_LINE)

    def make(name: str, *records: Record) -> str:
        lines = write(tmp_path / f"{name}.prepared", records)
        return shlex.join(["sh", *map(str, (helper, lines, tmp_path / f"{name}.turn", tmp_path / "log", name)), "{json}"])

    return make


@pytest.fixture
def measured(monkeypatch):
    """Replaces processes by prepared runs; returns the order in which they were asked for."""
    order: list[str] = []

    def replace(figures, workloads=("full", "full")):
        def measure(command):
            order.append(command.name)
            return Run(dict(figures[command.name]), dict(zip("AB", workloads, strict=True))[command.name])

        monkeypatch.setattr(commands, "measure", measure)
        return order

    return replace


def by_turns(metric=None, pairs=3, warmup=1, records=True) -> tuple[list[Comparison], list[str]]:
    lines: list[str] = []
    words = ("true", "{json}") if records else ("true",)
    a, b = (Command(name, " ".join(words), words) for name in "AB")
    return commands.compare_commands(a, b, lines.append, pairs=pairs, warmup=warmup, metric=metric), lines


USED = {"wall_s": 2.0, "cpu_s": 4.0, "peak_rss_bytes": 1000}


def test_commands_take_turns_and_the_asked_figure_comes_first(measured):
    order = measured({"A": {**USED, "total_ms": 10}, "B": {**USED, "wall_s": 3.0, "total_ms": 12}})
    rows, lines = by_turns()
    assert "".join(order) == "AB" + "ABBAAB"
    assert [row.figure for row in rows] == ["total_ms", *commands.PROCESS_FIGURES]
    assert rows[0].values_a == (10.0,) * 3
    assert rows[0].values_b == (12.0,) * 3
    assert rows[1].ratio.median == 1.5
    assert lines[0] == "warmup 1/1  A 10 ms  B 12 ms  B/A 1.200"
    assert lines[1:] == [f"pair {i}/3  A 10 ms  B 12 ms  B/A 1.200" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "workloads, figure",
    [
        (("full", "full"), "total_ms"),
        (("full", "batch"), "total_ms"),
        (("decode", "decode"), "ms_per_token"),
        (("load", "load"), "warm_total_s"),
        ((None, None), "wall_s"),
        (("full", None), "wall_s"),
    ],
)
def test_the_main_figure_of_the_workload_is_the_default(measured, workloads, figure):
    figures = {**USED, "total_ms": 1, "ms_per_token": 1, "warm_total_s": 1}
    measured({"A": figures, "B": figures}, workloads)
    assert by_turns(pairs=1, warmup=0)[0][0].figure == figure


@pytest.mark.parametrize("workloads", [("roofline", "roofline"), ("full", "decode")])
def test_where_there_is_no_main_figure_the_message_says_which_there_are(measured, workloads):
    figures = {**USED, "read_gb_s": 20.0}
    order = measured({"A": figures, "B": figures}, workloads)
    with pytest.raises(UsageError, match="choose a --metric: cpu_s, peak_rss_bytes, read_gb_s, wall_s"):
        by_turns()
    assert len(order) == 2
    assert by_turns("read_gb_s")[0][0].figure == "read_gb_s"


def test_an_unknown_figure_of_plain_commands_is_found_before_they_run(measured):
    order = measured({})
    with pytest.raises(UsageError, match=r"no figure 'total_ms' .*: cpu_s, peak_rss_bytes, wall_s"):
        by_turns("total_ms", records=False)
    assert order == []


@pytest.mark.parametrize("value", [None, "fast", True, 0, -1.0, float("nan"), 10**400])
def test_what_is_not_a_positive_number_has_no_ratio(measured, value):
    measured({"A": {**USED, "total_ms": 1}, "B": {**USED, "total_ms": value}})
    with pytest.raises(UsageError, match=r"command B: total_ms is .*: only positive numbers"):
        by_turns()


def test_a_command_without_cpu_time_has_no_row_for_it(measured):
    measured({"A": USED, "B": {**USED, "cpu_s": 0.0}}, (None, None))
    assert [row.figure for row in by_turns()[0]] == ["wall_s", "peak_rss_bytes"]


def test_the_script_runs_real_processes_by_turns_and_reads_their_last_record(recording, tmp_path):
    earlier, slower = record([99.0]), record([9.0, 11.0, 10.0])
    a = recording("A", *[record([8.0])] * 7)
    b = recording("B", *[slower] * 7).replace("next_line", "twice")
    before = f"echo '{earlier.to_json()}' >> $5\n"
    (tmp_path / "twice.sh").write_text(before + NEXT_LINE)
    out, err = script("--pairs=6", "--fail_above=1.1", f"--output_json={tmp_path}/kept.jsonl", "--", a, b, status=FAILED)
    assert (tmp_path / "log").read_text().split() == list("AB" + "ABBA" * 3)
    assert f"A = {a}\nB = {b}\n" in out
    row = next(line for line in out.splitlines() if "total_ms" in line)
    assert row.split("  ")[0] == "full"
    for cell in ("8 ms", "10 ms", "1.250", "1.250 to 1.250", "96.9 %", "B slower by 25 %"):
        assert f"  {cell}" in row
    assert err.splitlines()[0] == "warmup 1/1  A 8 ms  B 10 ms  B/A 1.250"
    assert err.splitlines()[1] == "pair 1/6  A 8 ms  B 10 ms  B/A 1.250"
    assert err.splitlines()[-1] == "compare.py: full: B/A of total_ms is 1.250, above 1.1"
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [line["figure"] for line in kept] == ["total_ms", "wall_s", "cpu_s", "peak_rss_bytes"]
    assert kept[0]["ratio"]["median"] == 1.25


def test_what_only_seems_slower_is_a_warning(recording):
    a = recording("A", *[record([10.0])] * 6)
    b = recording("B", *(record([value]) for value in (12.0, 12.0, 9.0, 12.0, 12.0, 12.0)))
    out, err = script("--pairs=6", "--warmup=0", "--fail_above=1.1", "--", a, b)
    assert "no difference shown" in out
    assert err.splitlines()[-1].startswith("compare.py: inconclusive: more pairs")


def test_wall_cpu_and_memory_are_of_the_command():
    code = "x = bytearray(80_000_000); sum(range(10**5))"
    run = commands.measure(Command("A", "", (sys.executable, "-c", code)))
    assert run.workload is None
    assert run.figures["peak_rss_bytes"] > 80e6
    assert run.figures["wall_s"] > 0
    assert run.figures["cpu_s"] > 0


@pytest.mark.parametrize(
    "status, arguments, said",
    [
        (USAGE, ["--pairs=0", "true", "true"], "--pairs=0"),
        (USAGE, ["--warmup=-1", "true", "true"], "--warmup=-1"),
        (USAGE, ["--fail_above=nan", "true", "true"], "--fail_above=nan"),
        (USAGE, ["--fail_above=1.1", "--pairs=5", "true", "true"], "needs 6 pairs"),
        (USAGE, ["--across=policy", "true", "true"], "--across is for two files"),
        (USAGE, ["--allow_missing", "true", "true"], "--allow_missing is for two files"),
        (USAGE, ["true"], "got 1; usage: "),
        (USAGE, ["true", "true", "true"], "got 3; usage: "),
        (USAGE, ["true", "no-such-program x"], "command B (no-such-program x) cannot be run"),
        (USAGE, ["true", ""], "command B () cannot be run"),
        (USAGE, ["true", "echo 'open"], "cannot be split into words: No closing quotation"),
        (USAGE, ["--metric=speed", "true", "true"], "no figure 'speed'"),
        (USAGE, ["absent.jsonl", "true"], "absent.jsonl: no such file"),
        (FAILED, ["true", "cat absent.jsonl"], "command B (cat absent.jsonl) failed with exit status 1: cat"),
        (FAILED, ["sh -c 'echo one >&2; echo two >&2; exit 3'", "true"], ") failed with exit status 3: two"),
        (FAILED, ["sh -c 'exit 4'", "true"], "failed: exit status 4 without a word"),
        (FAILED, ["sh -c 'kill -TERM $$'", "true"], "failed: ended by SIGTERM"),
        (FAILED, ["echo {json}", "true"], "command A (echo {json}) wrote no record to {json}"),
        (FAILED, ["sh -c 'echo broken > {json}'", "true"], "what is no record: line 1: skipped, not JSON"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(status, arguments, said):
    assert said in fails(status, "--", *arguments) if not arguments[0].startswith("--") else fails(status, *arguments)


@pytest.mark.parametrize(
    "broken, said",
    [
        (record([], error="out of memory"), "has no valid result: out of memory"),
        (record([1.0], compile={"recompiles": 2}), "has no valid result: compilations inside measured runs"),
    ],
)
def test_a_recorded_failure_is_one_line(recording, broken, said):
    assert said in fails(FAILED, "--", recording("A", broken), "true")


def test_what_is_killed_takes_the_running_command_along(tmp_path):
    """The command and its child hold a pipe open; it ends when both have."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = shlex.join(["sh", "-c", f"exec > {pipe}; (sleep 20; echo lived on) & echo started; wait"])
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as said:
        comparing = subprocess.Popen(
            [sys.executable, "scripts/compare.py", "--", command, "true"], stderr=subprocess.PIPE, cwd=ROOT
        )
        assert select.select([said], [], [], 30)[0]
        os.set_blocking(said.fileno(), True)
        assert said.readline() == "started\n"
        comparing.send_signal(signal.SIGTERM)
        _, err = comparing.communicate(timeout=30)
        assert said.read() == ""
    assert (comparing.returncode, err.decode()) == (INTERRUPTED, "compare.py: interrupted\n")
