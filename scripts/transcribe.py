"""Transcribes audio files with a Qwen3-ASR checkpoint; without --model_dir, with the bundled demonstration model.

    python scripts/transcribe.py AUDIO [AUDIO ...] [--model_dir=DIR]

Transcripts go to stdout, everything else to stderr. `-` reads standard input. Exit status: 0 all done, 1 some input failed
(the others are done), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.errors import AudioError, QwenASRError, UsageError
from qwen_asr_jax.pipelines.batches import AUDIO_WORKERS_HELP, MAX_AUDIO_WORKERS, MAX_BATCH_SIZE

if TYPE_CHECKING:
    from qwen_asr_jax.audio.read import Waveform

cli.define_model_flags()
flags.adopt_module_key_flags(cli)
flags.DEFINE_string("language", None, "Force this language (name or code); detected when not given.")
flags.DEFINE_string("context", "", "Text that biases recognition: names, terms, a topic.")
flags.DEFINE_integer("max_new_tokens", 0, "Token budget per input; 0 scales it with the audio's length.", lower_bound=0)
flags.DEFINE_integer("batch_size", 1, "Inputs to run at once.", lower_bound=1, upper_bound=MAX_BATCH_SIZE)
flags.DEFINE_integer("audio_workers", None, AUDIO_WORKERS_HELP, lower_bound=0, upper_bound=MAX_AUDIO_WORKERS)
flags.DEFINE_enum("output_format", "txt", ["txt", "json"], "The transcript, or one JSON object per line.", short_name="f")
flags.DEFINE_string("output_dir", None, "Write one file per input there instead of printing.", short_name="o")
flags.DEFINE_enum("stdin_format", "auto", ["auto", "s16le"], "What - is: an audio file, or raw 16-bit 16 kHz mono PCM.")
FLAGS = flags.FLAGS


def read_stdin() -> Waveform:
    """Standard input as one clip."""
    from qwen_asr_jax.audio.read import raw_s16le, read_audio

    if sys.stdin is None:
        raise AudioError("-: standard input is closed")
    data = sys.stdin.buffer.read()
    return raw_s16le(data, "-") if FLAGS.stdin_format == "s16le" else read_audio(data, name="-")


def main(names: Sequence[str]) -> int:
    """Transcribes the named inputs and returns the exit status."""
    if not names:
        raise UsageError("no audio given; usage: transcribe.py AUDIO [AUDIO ...] [--model_dir=DIR]")
    if list(names).count("-") > 1:
        raise UsageError("- (standard input) can be read only once")

    from qwen_asr_jax.files import writable_directory
    from qwen_asr_jax.pipelines.output import output_paths

    targets: list[pathlib.Path | None] = [None] * len(names)
    if FLAGS.output_dir is not None:
        targets = [
            *output_paths(names, writable_directory(pathlib.Path(FLAGS.output_dir).expanduser()), FLAGS.output_format)
        ]
    model = cli.load_from_flags(min(FLAGS.batch_size, len(names)))

    from qwen_asr_jax.pipelines.reporter import Reporter

    inputs = [read_stdin if name == "-" else name for name in names]
    request = {"language": FLAGS.language, "context": FLAGS.context, "max_new_tokens": FLAGS.max_new_tokens}
    with Reporter(model, names, targets, output_format=FLAGS.output_format, verbose=FLAGS.verbose) as reporter:
        if reporter.streams:
            try:
                reporter.show(names[0], None, model.transcribe(inputs[0], on_text=reporter.show_text, **request))
            except UsageError:
                raise
            except QwenASRError as e:
                reporter.show(names[0], None, e)
            return reporter.finish()
        how = {"batch_size": FLAGS.batch_size, "audio_workers": FLAGS.audio_workers}
        results = model.transcribe_iter(inputs, on_progress=reporter.show_progress, **how, **request)
        for name, target, result in zip(names, targets, results, strict=True):
            reporter.show(name, target, result)
        return reporter.finish()


if __name__ == "__main__":
    cli.run(main)
