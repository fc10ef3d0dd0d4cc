"""Compiles ahead of time what transcribing clips of given lengths will run, so that no clip has to wait for the compiler.

    python scripts/warmup.py --model_dir=DIR [--buckets=1-30] [--batch_sizes=1,64]

Needs a model's config.json and tokenizer, not its weights. Programs are compiled beside each other and kept in the compilation
cache (BUILD.md says where), from which every later process reads them, as long as jaxlib, device, flags and geometry stay the
same. What loading runs, the probe of a float16 model for one, is not among them. Printed: each program, how long it took and
what memory it needs besides its arguments; how long all took, and how long reading them back takes. Exit status: 0 done, 1
something failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from qwen_asr_jax import cli, demo
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.pipelines.batches import MAX_BATCH_SIZE

cli.define_model_flags()
flags.adopt_module_key_flags(cli)
flags.DEFINE_list(
    "buckets", ["1-30"], "Lengths of clips to be ready for, in seconds; 1-30 stands for all between, at every half second."
)
flags.DEFINE_list(
    "batch_sizes",
    ["1"],
    "Clips at once, all of one length. The last batch of many files is smaller, and mixed lengths may compile something.",
)
flags.DEFINE_integer("max_new_tokens", 0, "Token budget per clip; 0 as transcribe.py scales it.", lower_bound=0)
flags.DEFINE_integer("jobs", 0, "Programs to compile beside each other; 0 for one per CPU.", lower_bound=0)
FLAGS = flags.FLAGS


STEP_S = 0.5


def numbers(name: str, kind: type, least: float, most: float) -> list:
    """The values of a list flag, `a-b` standing for all between at steps of `STEP_S`.

    Raises:
      UsageError: there are none, or one is no such number.
    """
    found: list = []
    for each in FLAGS[name].value:
        first, _, last = each.partition("-")
        try:
            if kind is int or not last:
                found.append(kind(each))
                continue
            begin, end = float(first), float(last)
        except ValueError:
            found.append(most + 1)  # refused below
            continue
        if not least <= begin <= end <= most:
            raise UsageError(f"--{name}: {each!r} is no range from {least:g} to {most:g}, the shorter length first")
        found += [begin + STEP_S * i for i in range(int((end - begin) / STEP_S) + 1)] + [end]
    found = sorted(set(found))
    if not found or not least <= found[0] <= found[-1] <= most:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{name} must be {what} from {least:g} to {most:g}, got {','.join(FLAGS[name].value)!r}")
    return found


def main(argv: Sequence[str]) -> int:
    """Compiles, prints a table, and returns the exit status."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}; usage: warmup.py --model_dir=DIR --buckets=SECONDS[,SECONDS...]")
    lengths, sizes = numbers("buckets", float, 0.01, 3600), numbers("batch_sizes", int, 1, MAX_BATCH_SIZE)

    import tqdm
    from tabulate import tabulate

    from qwen_asr_jax import runtime
    from qwen_asr_jax.pipelines.load import open_model
    from qwen_asr_jax.pipelines.warmup import warm_up

    policy, options = cli.policy_from_flags()
    opened = open_model(
        cli.model_dir_from_flags(),
        policy,
        backend=FLAGS.backend,
        threads=FLAGS.threads,
        memory_fraction=FLAGS.memory_fraction,
        options=options,
    )
    if FLAGS.model_dir is None:
        cli.warn(demo.NOTICE)
    cli.warn_of_missing_kernels(policy)
    cli.warn(f"memory for {opened.plan(lengths[-1], sizes[-1], FLAGS.max_new_tokens)}")
    with tqdm.tqdm(unit="program", disable=not sys.stderr.isatty()) as bar:
        done = warm_up(
            opened,
            lengths,
            sizes,
            new_tokens=FLAGS.max_new_tokens,
            jobs=FLAGS.jobs or runtime.default_threads(),
            on_start=bar.reset,
            on_done=lambda _: bar.update(),
        )
    cells = [
        [each.name, f"{each.seconds:.2f}", "-" if each.temp_bytes is None else f"{each.temp_bytes / 1e6:.1f}"]
        for each in done.compiled
    ]
    headers = ["program", "seconds", "temporaries, MB"]
    print(tabulate(cells, headers=headers, disable_numparse=True, colalign=("left", "right", "right")))
    print(
        f"{len(cells)} programs ready in {done.seconds:.1f} s, {done.from_cache} of them read from {runtime.cache_dir()};"
        f" from there, all take {done.again_s:.1f} s"
    )
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
