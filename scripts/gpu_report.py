"""Measures a GPU and what the engine makes of it, and writes a report with what to do next.

    python scripts/gpu_report.py --output=DIR [--sections=machine,loop] [--time_limit_s=460]
    python scripts/gpu_report.py --output=DIR --quick    # every section with tiny shapes, also on a CPU: checks the report
    python scripts/gpu_report.py --output=DIR --rewrite  # the page again, from the files in DIR

Nothing is needed but this package: models have random weights, clips are made by formula. Every step is a process of its own,
and the most valuable ones come first; what they measure is appended to DIR/results.jsonl and DIR/records.jsonl at once. When
the time is over, a step crashes or hangs, or the whole is interrupted, DIR/README.md is written from what is there, and says
what is missing and why. Measuring again into the same DIR adds to it.

Progress goes to stderr, a line per measurement. Exit status: 0 complete, 1 something is missing, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.bench.gpu import device, page
from qwen_asr_jax.bench.gpu.conductor import TIME_LIMIT_S, Conductor
from qwen_asr_jax.bench.gpu.follower import Follower
from qwen_asr_jax.bench.gpu.plan import SECTIONS, make_plan
from qwen_asr_jax.bench.gpu.sheet import RESULTS
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.files import scratch_directory, writable_directory
from qwen_asr_jax.json_lines import alone

flags.DEFINE_string("output", None, "Folder of the report.", short_name="o")
flags.DEFINE_list("sections", [], f"Only these of: {', '.join(SECTIONS)}.")
flags.DEFINE_bool("quick", False, "Tiny shapes, one run of each: checks the report, measures nothing.")
flags.DEFINE_float("time_limit_s", TIME_LIMIT_S, "Seconds for all, the page included.", lower_bound=10.0)
flags.DEFINE_string(
    "work_dir", None, "Keep checkpoints and compiled programs there for the next time; else nothing is kept."
)
flags.DEFINE_bool("rewrite", False, "Only write the page again.")
flags.DEFINE_bool("any_device", False, "Measure what JAX runs on, also where no GPU is seen.")
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Measures, writes the page and returns the exit status."""
    if argv or not FLAGS.output:
        raise UsageError("usage: gpu_report.py --output=DIR")
    plan = make_plan(FLAGS.sections, FLAGS.quick)
    if not (FLAGS.quick or FLAGS.rewrite or FLAGS.any_device):
        device.check_gpu()
    output = pathlib.Path(FLAGS.output).expanduser()
    if FLAGS.rewrite:
        if not (output / RESULTS).exists():
            raise UsageError(f"{output}: holds no {RESULTS}, so there is no page to write again")
        return finish(output, [])
    writable_directory(output)
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:6.1f}  {line}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(output / RESULTS, "report"))
        if FLAGS.work_dir:
            folder = writable_directory(pathlib.Path(FLAGS.work_dir).expanduser().absolute())
        else:
            folder = stack.enter_context(scratch_directory())
        conductor = Conductor(plan, output.absolute(), folder, FLAGS.time_limit_s, FLAGS.quick, say)
        stack.enter_context(Follower(output, say))
        interrupted = end_at_signals(conductor)
        say(f"{len(plan.steps)} steps, about {plan.expected_s:.0f} s on an H200 that has compiled nothing, best ones first")
        well = conductor.run()
    took_s = time.monotonic() - begun
    remarks = [f"{conductor.done} of {len(plan.steps)} steps in {took_s:.0f} s, of {FLAGS.time_limit_s:.0f} allowed."]
    if FLAGS.quick:
        remarks.append("**A quick run: tiny shapes, one run of each. It checks the report; its figures mean nothing.**")
    if interrupted:
        remarks.append("**Interrupted.**")
    status = finish(output, remarks)
    if interrupted:
        return cli.EXIT_INTERRUPTED
    return status if well else cli.EXIT_FAILED


def finish(output: pathlib.Path, remarks: Sequence[str]) -> int:
    """Writes the page and returns the exit status that its files deserve."""
    findings = page.write_page(output, FLAGS.sections, remarks, quick=FLAGS.quick)
    gaps = findings.gaps()
    counts = f"{len(findings.measurements)} measurements, {len(findings.records)} records, {len(gaps)} missing"
    cli.warn(f"{output / page.PAGE}: {counts}")
    return cli.EXIT_FAILED if gaps else cli.EXIT_OK


def end_at_signals(conductor: Conductor) -> list[int]:
    """From now on the first interrupt ends measuring, not the process; returns a list that is empty until then."""
    came: list[int] = []
    at_once = signal.getsignal(signal.SIGINT)

    def end(number: int, frame: object) -> None:
        del frame
        came.append(number)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, at_once)
        conductor.interrupt()

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, end)
    return came


if __name__ == "__main__":
    cli.run(main)
