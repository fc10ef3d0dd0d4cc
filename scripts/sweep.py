"""Measures a list of points with bench.py, each in a fresh process.

    python scripts/sweep.py --config=configs/sweep_policies.py [--config.base.model_dir=DIR] [--output=runs/]

Flags for all points are set with --config.base.FLAG=VALUE: model_dir, audio, runs, and so on as bench.py has them. Results
land in OUTPUT/NAME.jsonl as they come, NAME being the config's. What is there already is not measured again: an interrupted
sweep goes on where it stopped. A point that fails is kept with its error, and the others go on. Exit status: 0 all points
measured, now or before; 1 some failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tqdm
from absl import flags
from ml_collections import config_flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import UsageError

if TYPE_CHECKING:
    from qwen_asr_jax.bench.sweep import Sweep

_CONFIG = config_flags.DEFINE_config_file("config", None, "The sweep, e.g. configs/sweep_policies.py.")
flags.DEFINE_string("output", "runs", "Folder for the results.", short_name="o")
flags.DEFINE_string("name", None, "Name of the results' file; by default the config's, without .py.")
flags.DEFINE_bool("retry_failed", False, "Measure points again that have failed before.")
flags.DEFINE_float("timeout_s", 3600.0, "Longest that one point may take, in seconds.", lower_bound=1.0)
flags.DEFINE_bool("list", False, "Only show the points that are left.")
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Runs the sweep and returns the exit status."""
    if argv or FLAGS.config is None:
        raise UsageError("usage: sweep.py --config=configs/sweep_policies.py [--config.base.model_dir=DIR] [--output=runs/]")

    from qwen_asr_jax.bench.sweep import Sweep, points_of
    from qwen_asr_jax.json_lines import alone

    name = FLAGS.name or pathlib.Path(config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]).stem
    path = pathlib.Path(FLAGS.output).expanduser() / f"{name}.jsonl"
    points = points_of(FLAGS.config)
    if FLAGS.list:
        left = Sweep(name, path, points, retry_failed=FLAGS.retry_failed).remaining()
        print(*(f"{point.id}  {point}" for point in left), sep="\n")
        return cli.EXIT_OK
    with alone(path, "sweep"):
        return run(Sweep(name, path, points, retry_failed=FLAGS.retry_failed))


def run(sweep: Sweep) -> int:
    """Measures what is left and returns the exit status."""
    for problem in sweep.problems:
        cli.warn(problem)
    left, path = sweep.remaining(), sweep.path
    done = len(sweep.points) - len(left)
    if done:
        measured = ", ".join(sorted(sweep.commits))
        cli.warn(f"{done} of {len(sweep.points)} points are in {path} already, measured at commit {measured}")
    failed = sweep.failed_before()
    with tqdm.tqdm(total=len(sweep.points), initial=done, unit="point", disable=not sys.stderr.isatty()) as bar:
        bar.set_description_str(str(left[0]) if left else "")
        for i, (point, error) in enumerate(sweep.run(pathlib.Path(__file__).with_name("bench.py"), FLAGS.timeout_s)):
            bar.clear()
            cli.warn(f"{done + i + 1}/{len(sweep.points)}  {point}" + (f": FAILED, {error}" if error else ""))
            if error:
                failed.append(point)
            bar.update()
            bar.set_description_str(str(left[i + 1]) if i + 1 < len(left) else "")
    if failed:
        cli.warn(
            f"{len(failed)} of {len(sweep.points)} points failed ({path.with_suffix('.log')} has all that they said);"
            " again with --retry_failed"
        )
    cli.warn(f"results: {path}")
    return cli.EXIT_FAILED if failed else cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
