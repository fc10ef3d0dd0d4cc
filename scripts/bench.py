"""Measures the engine on this machine.

    python scripts/bench.py --model_dir=DIR [--workload=full] [--audio=FILE[,FILE...]]

Workloads (-w), and what is timed:

  full (0)     log-mel, encoder, prefill and decoding, exactly as transcribe.py runs them; audio files are read before
  encoder (1)  the audio encoder on features made once; then the conv stem and the transformer apart
  prefill      the clip's prompt into the cache, to the first token
  decode       exactly --decode_tokens steps behind the prompt, end tokens ignored; again at other lengths of context
  batch        --batch_size clips at once (files are repeated to fill it)
  roofline     this machine: memory reads, matrix products, launches; kept as the floors of the other workloads
  load         process start, imports, weights, compiling, first token: with an empty compilation cache (cold) and with a
               full one (warm); the weights' files are in the system's cache both times

Every clock is read after the device has finished. Warm-up runs come first and are not counted. Stage times of full and
batch are those of the measured runs themselves, since transcribing waits between stages anyway; those of encoder come from
a separate pass behind each measured run. Between runs the memory's read rate is measured, because on shared machines it
changes; floors use it. Compiling inside a measured run makes the result invalid and the exit status 1.

Without --model_dir the bundled demonstration model is used; --model_dir=random:0.6b or random:1.7b makes a model of the real
size with random weights. Without --audio, silence. Results go to stdout, everything else to stderr. Exit status: 0 measured, 1
something failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.bench.record import IGNORED_FLAGS, WORKLOADS
from qwen_asr_jax.errors import UsageError

if TYPE_CHECKING:
    from qwen_asr_jax.bench.options import Options
    from qwen_asr_jax.bench.record import Record
    from qwen_asr_jax.bench.show import Terminal

ALIASES = {"0": "full", "1": "encoder"}

cli.define_model_flags()
flags.adopt_module_key_flags(cli)
flags.DEFINE_enum("workload", "full", [*WORKLOADS, *ALIASES], "What to measure; see above.", short_name="w")
flags.DEFINE_integer("runs", 5, "Measured runs.", lower_bound=1, short_name="n")
flags.DEFINE_integer("warmup", 2, "Runs before them that are not counted.", lower_bound=1)
flags.DEFINE_list("audio", [], "Audio files; each is measured for itself, but for the batch workload.", short_name="i")
flags.DEFINE_float(
    "silence_s", 5.0, "Seconds of silence to use without --audio.", lower_bound=0.01, upper_bound=86400, short_name="s"
)
flags.DEFINE_integer("batch_size", 1, "Clips at once.", lower_bound=1)
flags.DEFINE_integer(
    "decode_tokens", 0, "decode: steps (0: 32). full, batch: most tokens per clip (0: as transcribe.py).", lower_bound=0
)
flags.DEFINE_list("contexts", ["64", "256", "1024", "4096"], "decode: tokens of context to measure at; empty for none.")
flags.DEFINE_string("output_json", None, "Append each result to this file, as one line of JSON.")
flags.DEFINE_string("profile_dir", None, "Trace one more run into this directory and print its costliest operations.")
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Runs the workload and returns the exit status."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}; audio files are given with --audio=FILE[,FILE...]")

    from qwen_asr_jax.bench.record import append_records
    from qwen_asr_jax.files import writable_directory
    from qwen_asr_jax.json_lines import check_appendable

    check_flags()
    output = pathlib.Path(FLAGS.output_json).expanduser() if FLAGS.output_json else None
    if output is not None:
        check_appendable(output)
    if FLAGS.profile_dir:
        writable_directory(pathlib.Path(FLAGS.profile_dir).expanduser())

    from qwen_asr_jax.bench.show import Terminal

    terminal, status = Terminal(FLAGS.verbose), cli.EXIT_OK
    for record in measure(terminal):
        terminal.result(record)
        if output is not None:
            append_records(output, [record])
        if record.compile["recompiles"]:
            cli.warn(
                f"{record.workload}: {record.compile['recompiles']} compilations inside measured runs: not a valid result"
            )
            status = cli.EXIT_FAILED
    return status


def check_flags() -> None:
    """Refuses flags that the workload would ignore.

    Raises:
      UsageError: there is one.
    """
    workload = ALIASES.get(FLAGS.workload, FLAGS.workload)
    for name in ("output_json", "profile_dir"):
        if FLAGS[name].value == "":
            raise UsageError(f"--{name} is empty")
    for name in IGNORED_FLAGS.get(workload, ()):
        if FLAGS[name].present:
            raise UsageError(f"--{name} means nothing to --workload={workload}")


def measure(terminal: Terminal) -> Iterator[Record]:
    """Measures what the flags ask for, result by result."""
    from qwen_asr_jax import runtime
    from qwen_asr_jax.bench import inputs, machine, provenance, runner
    from qwen_asr_jax.pipelines.load import load_model

    workload = ALIASES.get(FLAGS.workload, FLAGS.workload)
    options = bench_options()
    policy, engine = cli.policy_from_flags()
    batches = inputs.bench_batches(workload, FLAGS.audio, FLAGS.silence_s, FLAGS.batch_size)
    if workload == "roofline":
        runtime.configure(FLAGS.backend, FLAGS.threads, FLAGS.memory_fraction)
        yield machine.bench_roofline(options, terminal)
        return
    model_dir, notice = inputs.bench_model_dir(FLAGS.model_dir)
    if notice:
        cli.warn(notice)
    if workload == "load":
        runtime.configure(FLAGS.backend, FLAGS.threads, FLAGS.memory_fraction)
        cli.warn_of_missing_kernels(policy)
        for clips in batches:
            yield machine.bench_load(model_dir, policy, engine, FLAGS.backend, clips[0], options, terminal)
        return
    terminal.status(f"loading {model_dir}")
    model = load_model(
        model_dir,
        policy,
        backend=FLAGS.backend,
        threads=FLAGS.threads,
        memory_fraction=FLAGS.memory_fraction,
        options=engine,
    )
    cli.warn_of_missing_kernels(policy)
    cli.warn_of_model(model)
    for clips in batches:
        print(provenance.headline(model, workload, clips), flush=True)
        yield runner.bench_model(model, model_dir, workload, clips, options, terminal, engine)


def bench_options() -> Options:
    """The flags as `Options`."""
    from qwen_asr_jax.bench.options import Options

    try:
        contexts = [int(context) for context in FLAGS.contexts if context]
    except ValueError:
        contexts = [0]
    if any(context < 1 for context in contexts):
        raise UsageError(f"--contexts must be numbers of tokens, got {','.join(FLAGS.contexts)!r}")
    return Options(
        runs=FLAGS.runs,
        warmup=FLAGS.warmup,
        decode_tokens=FLAGS.decode_tokens,
        contexts=contexts,
        profile_dir=pathlib.Path(FLAGS.profile_dir).expanduser() if FLAGS.profile_dir else None,
    )


if __name__ == "__main__":
    cli.run(main)
