"""Shows results as they come: transcripts on stdout or in files, progress and problems on stderr."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from collections.abc import Sequence
from types import TracebackType

import jax
import tqdm

from qwen_asr_jax import kernels, runtime
from qwen_asr_jax.audio.read import duration_seconds
from qwen_asr_jax.cli import EXIT_FAILED, EXIT_OK, STARTED, warn
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.errors import OutputError, QwenASRError
from qwen_asr_jax.files import write_text
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.pipelines.output import render
from qwen_asr_jax.pipelines.result import Transcription

LONG_S = 60.0
"""Seconds of audio from which on a progress bar is worth its line."""


class Reporter:
    """Shows the results of one run of the transcribe script.

    Words stream to stdout while they are decoded when there is a person to read them: a terminal, one input, text format.
    Otherwise a progress bar with ETA is shown on stderr, for several inputs or long ones, if stderr is a terminal.

    Attributes:
      streams: whether to pass `show_text` to the model.
    """

    def __init__(
        self,
        model: QwenASR,
        names: Sequence[str],
        targets: Sequence[pathlib.Path | None],
        *,
        output_format: str,
        verbose: bool,
    ):
        self._model = model
        self._format = output_format
        self._verbose = verbose
        self._failed: list[str] = []
        self._count = len(names)
        self._streamed = ""
        self.streams = len(names) == 1 and targets[0] is None and output_format == "txt" and sys.stdout.isatty()
        hidden = self.streams or not sys.stderr.isatty()
        # Only for the bar: every file is opened.
        self._durations = {name: None if name == "-" or hidden else duration_seconds(name) for name in names}
        self._failed_s = 0.0
        total_s = sum(d for d in self._durations.values() if d is not None)
        hidden = hidden or (len(names) == 1 and total_s < LONG_S)
        self._bar = tqdm.tqdm(
            total=round(total_s, 1),
            disable=hidden,
            unit="s",
            unit_scale=True,
            desc=f"0/{len(names)} files",
            bar_format="{desc} |{bar}| {n:.0f}/{total:.0f} s of audio, {elapsed} gone, {remaining} left",
        )
        self._shown = 0
        self._begun, self._done_s = time.perf_counter(), 0.0
        if verbose:
            policy = model.engine.policy
            warn(
                f"model {model.name}, policy {policy.name}, kernels {kernels.describe(policy)},"
                f" {jax.default_backend()} x{jax.device_count()}, {os.environ.get('NPROC', '?')} CPU threads,"
                f" weights loaded in {model.load_s:.2f} s"
            )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def show_text(self, piece: str) -> None:
        """Prints a piece of a transcript that is still being decoded."""
        self._streamed += piece
        print(piece, end="", flush=True)

    def show_progress(self, seconds: float) -> None:
        """Moves the bar to so many seconds of audio."""
        self._bar.n = min(seconds + self._failed_s, self._bar.total or 0.0)
        self._bar.refresh()

    def show(self, name: str, target: pathlib.Path | None, result: Transcription | QwenASRError) -> None:
        """Prints or writes one result; an error is counted and said."""
        self._bar.clear()
        self._shown += 1
        if not isinstance(result, QwenASRError):
            try:
                self._show_result(target, result)
                self._done_s += result.duration
            except OutputError as e:
                result = e
        if isinstance(result, QwenASRError):
            self._failed.append(name)
            self._failed_s += self._durations.get(name) or 0.0
            warn(str(result))
        self._bar.set_description_str(f"{self._shown}/{self._count} files")

    def _show_result(self, target: pathlib.Path | None, result: Transcription) -> None:
        text = render(
            result,
            self._format,
            model=self._model.name,
            policy=self._model.engine.policy.name,
            backend=jax.default_backend(),
            ascii_only=target is None and "utf" not in (sys.stdout.encoding or "").lower(),
        )
        if target is not None:
            write_text(target, text + "\n")
        elif self._streamed and text.startswith(self._streamed):
            print(text[len(self._streamed) :], flush=True)
        else:  # nothing was streamed, or the finished text was repaired: say it whole
            print("\n" * bool(self._streamed) + text, flush=True)
        for line in result.warnings:
            warn(f"warning: {line}")
        if result.truncated:
            warn(
                f"warning: {result.name}: stopped after {len(result.tokens)} tokens, the text may be incomplete;"
                " raise --max_new_tokens"
            )
        if self._verbose:
            warn(self._describe(result))

    def _describe(self, result: Transcription) -> str:
        t, log = result.timings, compilations()
        stages = (
            f"load {t.load_audio_ms:.0f}, mel {t.mel_ms:.0f}, encode {t.encode_ms:.0f}, prefill {t.prefill_ms:.0f},"
            f" decode {t.decode_ms:.0f} ({len(result.tokens)} tokens)"
        )
        together = f" (a batch of {result.batch_size})" if result.batch_size > 1 else ""
        lines = (
            f"{result.name}: {result.duration:.2f} s of audio in {t.total_ms:.0f} ms{together}, first token after"
            f" {t.ttft_ms:.0f} ms, RTF {result.rtf:.4f}, RTFx {result.rtfx:.2f}; ms: {stages}"
        )
        if self._shown == 1:
            first_token_s = time.perf_counter() - STARTED - (t.total_ms - t.ttft_ms) / 1e3
            lines += f"; first token {first_token_s:.2f} s after process start"
        return (
            f"{lines}; compilations so far: {log.count - log.cached} in {log.compile_s:.2f} s, {log.cached} read from the"
            f" cache in {log.cache_s:.2f} s, tracing and lowering {log.trace_s + log.lower_s:.2f} s"
        )

    def finish(self) -> int:
        """Closes the bar, names what failed, and returns the exit status."""
        self._bar.close()
        if self._verbose and self._shown > 1:
            wall_s = time.perf_counter() - self._begun
            warn(
                f"{self._shown} inputs, {self._done_s:.1f} s of audio in {wall_s:.2f} s, RTFx {self._done_s / wall_s:.1f},"
                " compiling included"
            )
        if self._verbose and (peak := runtime.device_memory("peak_bytes_in_use")):
            warn(f"most memory in use on the device: {peak / 1e9:.2f} GB")
        if self._failed and self._count > 1:
            warn(f"{len(self._failed)} of {self._count} inputs failed: {', '.join(self._failed)}")
        return EXIT_FAILED if self._failed else EXIT_OK
