"""Measures how many words a checkpoint gets wrong, against reference texts.

    python scripts/evaluate.py --manifest=test.jsonl [--model_dir=DIR] [--policy=bf16] [--group_by=set,set+voice] [--worst=5]
    python scripts/evaluate.py --report=test.results.jsonl [--manifest=test.jsonl]    # the tables again, without a model

A manifest has one JSON object per line, `{"audio": "a.wav", "text": "What it says.", "language": "en"}`; or it is a
LibriSpeech folder, or a .tsv table of Common Voice. Each clip's transcript is kept in --output as it is done: an interrupted
run goes on where it stopped, and runs of several models and policies share a file. The tables go to stdout, everything else
to stderr. docs/evaluation.md has the details.

Exit status: 0 all done, 1 some clip failed (the others are done), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.evaluation.normalize import NORMALIZERS
from qwen_asr_jax.pipelines.batches import AUDIO_WORKERS_HELP, MAX_AUDIO_WORKERS, MAX_BATCH_SIZE

if TYPE_CHECKING:
    from qwen_asr_jax.evaluation.manifest import Clip
    from qwen_asr_jax.evaluation.results import Selection
    from qwen_asr_jax.evaluation.score import Scorer

RUN_FLAGS = (
    *("model_dir", "policy", "config", "backend", "implementation", "threads", "memory_fraction"),
    *("output", "batch_size", "audio_workers", "language"),
)

cli.define_model_flags()
flags.adopt_module_key_flags(cli)
flags.DEFINE_string(
    "manifest", None, "Clips and their texts: JSON lines, a LibriSpeech folder, or a .tsv table.", short_name="m"
)
flags.DEFINE_string("output", None, "File of results to append to; by default MANIFEST.results.jsonl here.", short_name="o")
flags.DEFINE_string("report", None, "Only print the tables of this file of results.")
flags.DEFINE_list("group_by", [], "Fields of the manifest whose values get rows of their own; set+voice for both together.")
flags.DEFINE_enum("normalizer", "whisper", list(NORMALIZERS), "What is done to texts before they are compared.")
flags.DEFINE_string("language", None, "Force this language (name or code); detected when not given.")
flags.DEFINE_integer("batch_size", 8, "Clips to run at once.", lower_bound=1, upper_bound=MAX_BATCH_SIZE)
flags.DEFINE_integer("audio_workers", None, AUDIO_WORKERS_HELP, lower_bound=0, upper_bound=MAX_AUDIO_WORKERS)
flags.DEFINE_integer("limit", 0, "Only so many of the manifest's first clips; 0 for all.", lower_bound=0)
flags.DEFINE_integer("worst", 0, "List so many clips with the most errors, words aligned.", lower_bound=0)
flags.DEFINE_string("markdown", None, "Write the tables to this file, too.")
FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Transcribes what is left, prints the tables and returns the exit status."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}; clips are given with --manifest=FILE")
    if not FLAGS.manifest and not FLAGS.report:
        raise UsageError(
            "--manifest is missing; usage: evaluate.py --manifest=test.jsonl [--model_dir=DIR], or --report=FILE"
        )

    from qwen_asr_jax.evaluation.manifest import check_groups, read_manifest, unknown_languages
    from qwen_asr_jax.evaluation.score import Scorer
    from qwen_asr_jax.files import writable_directory

    for name in RUN_FLAGS:
        if FLAGS.report and FLAGS[name].present:
            raise UsageError(f"--{name} means nothing to --report, which transcribes nothing")
    clips = read_manifest(pathlib.Path(FLAGS.manifest).expanduser(), FLAGS.limit) if FLAGS.manifest else None
    if clips is not None:
        check_groups(FLAGS.group_by, [clip.fields for clip in clips])
        for language, count in unknown_languages(clips).items():
            cli.warn(f"warning: no model knows the language {language!r}, in which {count} of the clips are said to be")
    scorer = Scorer(FLAGS.normalizer)
    if FLAGS.markdown:
        writable_directory(pathlib.Path(FLAGS.markdown).expanduser().absolute().parent)
    if FLAGS.report:
        show(scorer, report_only(pathlib.Path(FLAGS.report).expanduser(), clips))
        return cli.EXIT_OK
    assert clips is not None
    selection, status = transcribe(clips)
    show(scorer, selection)
    return status


def report_only(path: pathlib.Path, clips: Sequence[Clip] | None) -> Selection:
    """What counts in a file of results.

    Raises:
      UsageError: nothing does.
    """
    from qwen_asr_jax.evaluation.manifest import check_groups
    from qwen_asr_jax.evaluation.results import read_results, select

    results, problems = read_results(path)
    for problem in problems:
        cli.warn(problem)
    selection = select(results, clips)
    if not selection.results:
        of_what = "" if clips is None else f" of the clips in {FLAGS.manifest}"
        raise UsageError(f"{path}: holds no results{of_what}")
    check_groups(FLAGS.group_by, [result.fields for result in selection.results])
    return selection


def transcribe(clips: Sequence[Clip]) -> tuple[Selection, int]:
    """Transcribes the clips that are not in the file of results yet; returns what counts there, and the exit status."""
    from qwen_asr_jax.evaluation.results import default_output, open_results, read_results, reusable, select
    from qwen_asr_jax.json_lines import alone

    output = pathlib.Path(FLAGS.output).expanduser() if FLAGS.output else default_output(pathlib.Path(FLAGS.manifest))
    with alone(output, "evaluation"):
        results, remarks = open_results(output)
        for remark in remarks:
            cli.warn(remark)
        model = cli.load_from_flags(FLAGS.batch_size)

        from qwen_asr_jax.evaluation.transcribe import describe, run_of, transcribe_clips

        run = run_of(model, FLAGS.language, cli.policy_from_flags()[1])
        there = reusable(results, run, clips)
        if there:
            cli.warn(
                f"{len(there)} of {len(clips)} clips are in {output} already, transcribed by the same model and settings"
            )
        left = [clip for clip in clips if clip.id not in there]
        how = {"batch_size": FLAGS.batch_size, "audio_workers": FLAGS.audio_workers}
        done = transcribe_clips(model, run, left, output, **how)
        results, _ = read_results(output)
    if FLAGS.verbose:
        cli.warn(describe(model))
    if done.failed:
        cli.warn(f"{len(done.failed)} of {len(clips)} clips failed; the same command tries them again")
    cli.warn(f"results: {output}")
    return select(results, clips, there | done.audio), cli.EXIT_FAILED if done.failed else cli.EXIT_OK


def show(scorer: Scorer, selection: Selection) -> None:
    """Prints the tables, and the worst clips if asked for; writes them as Markdown, too, if asked for."""
    from qwen_asr_jax.evaluation.tables import report
    from qwen_asr_jax.evaluation.worst import worst_clips
    from qwen_asr_jax.files import write_text

    scores = scorer.score(selection.results)
    text = report(scores, FLAGS.group_by, outdated=selection.outdated)
    worst = worst_clips(scores.scored, FLAGS.worst) if FLAGS.worst else ""
    print("\n\n".join(filter(None, (text, worst))), flush=True)
    if FLAGS.markdown:
        name = pathlib.Path(FLAGS.manifest or FLAGS.report).name
        listed = f"## Worst clips\n\n```\n{worst}\n```\n" if worst else ""
        write_text(pathlib.Path(FLAGS.markdown).expanduser(), f"# Accuracy: {name}\n\n{text}\n\n{listed}".rstrip() + "\n")


if __name__ == "__main__":
    cli.run(main)
