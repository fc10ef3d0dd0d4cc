"""Complete transcription of audio inputs, one by one or in batches."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

import jax
import numpy as np

from qwen_asr_jax.audio.ahead import HELD_S, Read, ReadAhead, Source, default_workers, read_source
from qwen_asr_jax.audio.frames import SAMPLE_RATE, num_audio_tokens, num_frames
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.engine.engine import Engine
from qwen_asr_jax.engine.verbs import NO_TOKEN
from qwen_asr_jax.errors import AudioTooLongError, BackendError, QwenASRError, UsageError
from qwen_asr_jax.pipelines.batches import check_batching, group_size, groups
from qwen_asr_jax.pipelines.health import overflow_remedy
from qwen_asr_jax.pipelines.job import Job, plan_of
from qwen_asr_jax.pipelines.result import Timings, Transcription
from qwen_asr_jax.pipelines.stage_clock import StageClock
from qwen_asr_jax.text.languages import resolve_language
from qwen_asr_jax.text.parse import parse_output, transcript_so_far
from qwen_asr_jax.text.prompt import Prompt, build_prompt
from qwen_asr_jax.text.tokenizer import Tokenizer

STREAM_STEPS = 4
"""Tokens per device call while text streams out; without a listener whole chunks run."""

_TOKENS_PER_SECOND = 4.0  # rough speech rate, for progress estimates only


def default_max_new_tokens(seconds: float) -> int:
    """Token budget for a clip: `min(4096, 64 + 16 * seconds)`, several times what fast speech needs."""
    return min(4096, 64 + 16 * math.ceil(seconds))


class QwenASR:
    """A loaded transcription model; made by `load_model`.

    Attributes:
      name: the model directory's name.
      engine: the compiled verbs and the weights.
      tokenizer: text to ids and back.
      load_s: seconds that loading took.
      path: its directory; None for a model that was not loaded from one.
      warnings: what loading had to say about it, one line each.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        name: str,
        load_s: float,
        path: pathlib.Path | None = None,
        warnings: tuple[str, ...] = (),
    ):
        self.engine = engine
        self.tokenizer = tokenizer
        self.name = name
        self.load_s = load_s
        self.path = path
        self.warnings = warnings

    @overload
    def transcribe(
        self, audio: list[Source], language: str | None = ..., context: str = ..., **options: object
    ) -> list[Transcription]: ...

    @overload
    def transcribe(
        self, audio: Source, language: str | None = ..., context: str = ..., **options: object
    ) -> Transcription: ...

    def transcribe(  # type: ignore[misc]
        self,
        audio: Source | list[Source],
        language: str | None = None,
        context: str = "",
        *,
        max_new_tokens: int = 0,
        batch_size: int = 16,
        audio_workers: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Transcription | list[Transcription]:
        """Transcribes one input, or a list of them in batches.

        Args:
          audio: a path, an encoded file as bytes or binary file object, a 16 kHz float array, `(array, sample_rate)`, or a
            list of these.
          language: force this language (a name or code); None lets the model detect it.
          context: free text that biases recognition: names, terms, a topic.
          max_new_tokens: token budget; 0 scales it with the audio's length.
          batch_size: with a list, most inputs to run at once.
          audio_workers: with a list, as for `transcribe_iter`.
          on_text: called with each new piece of text as it is decoded; one input only. The pieces make up the result's text,
            unless a loop had to be taken out of that in the end.

        Returns:
          The result, or a list of results in the order of the inputs.

        Raises:
          AudioError, UsageError: an input or argument cannot be used; in a list, the first one that cannot, before any that is
            sorted with it is run.
        """
        language = self._checked(language, context, max_new_tokens)
        if isinstance(audio, list):
            if on_text is not None:
                raise UsageError("on_text works for one input at a time, not for a list")
            check_batching(batch_size, audio_workers)
            request = (language, context, max_new_tokens)
            return [_raised(each) for each in self._run_all(audio, request, batch_size, audio_workers, strict=True)]
        job = self.prepare(audio, language, context, max_new_tokens)
        return _raised(self._run([job], language, on_text=on_text)[0])

    def transcribe_iter(
        self,
        inputs: Iterable[Source],
        *,
        language: str | None = None,
        context: str = "",
        max_new_tokens: int = 0,
        batch_size: int = 1,
        audio_workers: int | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[Transcription | QwenASRError]:
        """Transcribes many inputs; yields results in order, and the error in the place of each input that fails.

        With a batch size above 1, clips are sorted by length a few batches at a time, so that a batch holds similar ones. The
        next few batches are read while these run; any number of inputs takes bounded memory.

        Args:
          batch_size: clips to run at once.
          audio_workers: threads that read inputs ahead, in which functions and file objects are not read; 0 reads each in the
            calling thread when its turn comes; None is 0 for a batch size of 1, else up to one per core.
          on_progress: called with seconds of audio done so far; within a batch this is an estimate.

        Raises:
          UsageError: an argument cannot be used (before the first input is read).
        """
        check_batching(batch_size, audio_workers)
        language = self._checked(language, context, max_new_tokens)
        yield from self._run_all(inputs, (language, context, max_new_tokens), batch_size, audio_workers, on_progress)

    def _run_all(
        self,
        inputs: Iterable[Source],
        request: tuple[str | None, str, int],
        batch_size: int,
        audio_workers: int | None,
        on_progress: Callable[[float], None] | None = None,
        strict: bool = False,
    ) -> Iterator[Transcription | QwenASRError]:
        """Results in the order of the inputs; `strict` raises the first error of a group before that is run.

        Args:
          request: what `prepare` takes behind the input.
        """
        workers = default_workers(batch_size) if audio_workers is None else audio_workers
        done_s = 0.0
        with ReadAhead(inputs, workers, clips=max(group_size(batch_size), 2 * workers)) as reads:
            for group in groups(reads, batch_size, HELD_S * SAMPLE_RATE):
                results: dict[int, Transcription | QwenASRError] = {}
                jobs: dict[int, Job] = {}
                for i, read in enumerate(group):
                    try:
                        jobs[i] = self._job(read, *request)
                    except QwenASRError as e:
                        if strict:
                            raise
                        results[i] = e
                next_one = 0
                for done, result in self._run_sorted(jobs, request[0], batch_size, on_progress, done_s):
                    results[done] = result
                    while next_one in results:
                        yield results.pop(next_one)
                        next_one += 1
                yield from (results[i] for i in range(next_one, len(group)))
                done_s += sum(job.waveform.duration_s for job in jobs.values())
                del read, jobs  # the next group is gathered before the names are used again
                group.clear()

    def _run_sorted(
        self,
        jobs: dict[int, Job],
        language: str | None,
        batch_size: int,
        on_progress: Callable[[float], None] | None = None,
        done_s: float = 0.0,
    ) -> Iterator[tuple[int, Transcription | QwenASRError]]:
        """Runs the jobs in batches of similar length; yields `(key, result)` as batches finish."""
        by_length = sorted(jobs, key=lambda i: len(jobs[i].waveform.samples))
        for at in range(0, len(by_length), batch_size):
            batch = by_length[at : at + batch_size]
            seconds = sum(jobs[i].waveform.duration_s for i in batch)

            def report(share: float, base: float = done_s, seconds: float = seconds) -> None:
                if on_progress is not None:
                    on_progress(base + share * seconds)

            results = self._run([jobs[i] for i in batch], language, on_share=report)
            done_s += seconds
            report(1.0)
            yield from zip(batch, results, strict=True)

    def _checked(self, language: str | None, context: str, max_new_tokens: int) -> str | None:
        """The resolved language, once all of a request's arguments are known to be usable."""
        if not isinstance(max_new_tokens, int) or max_new_tokens < 0:
            raise UsageError(f"max_new_tokens must be 0 (automatic) or a positive integer, got {max_new_tokens!r}")
        self.tokenizer.encode(context)
        return resolve_language(language, self.engine.config.languages)

    def prepare(self, audio: Source, language: str | None = None, context: str = "", max_new_tokens: int = 0) -> Job:
        """Reads one input and fits it into the model's positions.

        Args:
          language: as `resolve_language` names it.

        Raises:
          AudioError: it cannot be read, or is too long.
        """
        return self._job(read_source(audio), language, context, max_new_tokens)

    def _job(self, read: Read, language: str | None, context: str, max_new_tokens: int) -> Job:
        """The input, fitted into the model's positions; or the error that came of it."""
        if isinstance(read.found, QwenASRError):
            raise read.found
        waveform = read.found
        prompt = build_prompt(
            self.tokenizer, self.engine.num_audio_tokens(len(waveform.samples)), context=context, language=language
        )
        budget = max_new_tokens or default_max_new_tokens(waveform.duration_s)
        self._check_fits(waveform, prompt, budget, scaled=max_new_tokens == 0)
        return Job(waveform, read.load_ms, prompt, budget)

    def _check_fits(self, waveform: Waveform, prompt: Prompt, budget: int, scaled: bool) -> None:
        positions = self.engine.config.text.max_positions
        if len(prompt.ids) + budget <= positions:
            return
        text_tokens = len(prompt.ids) - prompt.num_audio_tokens

        def fits(seconds: int) -> bool:
            tokens = num_audio_tokens(num_frames(seconds * SAMPLE_RATE), self.engine.config.audio)
            return text_tokens + tokens + (default_max_new_tokens(seconds) if scaled else budget) <= positions

        longest = 0
        for step in (1 << k for k in range(17, -1, -1)):
            longest += step * fits(longest + step)
        remedy = f"one pass can hold {longest} s, split the audio" if longest else "shorten the context or the token budget"
        raise AudioTooLongError(
            f"{waveform.name}: {waveform.duration_s:.1f} s of audio need {len(prompt.ids)} prompt tokens and {budget} for the"
            f" text, the model has {positions} positions; {remedy}"
        )

    def _run(
        self,
        jobs: Sequence[Job],
        language: str | None,
        on_text: Callable[[str], None] | None = None,
        on_share: Callable[[float], None] | None = None,
    ) -> list[Transcription | QwenASRError]:
        """Runs one batch through all stages, in halves where the device has no memory for all of it at once.

        Running out of memory is an error of the batch's inputs, not of the whole run.
        """
        plan = plan_of(self.engine, jobs)
        if not plan.fits and len(jobs) > 1:
            half = (len(jobs) + 1) // 2
            return self._run(jobs[:half], language, on_text, on_share) + self._run(jobs[half:], language, on_text, on_share)
        try:
            plan.check()
            return self._run_stages(jobs, language, on_text, on_share)
        except BackendError as e:
            return [QwenASRError(f"{job.waveform.name}: {e}") for job in jobs]
        except (jax.errors.JaxRuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            remedy = "reduce the batch size" if len(jobs) > 1 else "split the audio, or use a smaller model or policy"
            return [QwenASRError(f"{job.waveform.name}: the device is out of memory; {remedy}") for job in jobs]

    def _run_stages(
        self,
        jobs: Sequence[Job],
        language: str | None,
        on_text: Callable[[str], None] | None,
        on_share: Callable[[float], None] | None,
    ) -> list[Transcription | QwenASRError]:
        engine = self.engine
        clock = StageClock()
        # Every stage is enqueued before the one in front of it is waited for: the device goes on without the host. Spectra
        # are given up before the prompt takes its memory.
        with clock.stage("mel"):
            mel = engine.log_mel([job.waveform.samples for job in jobs])
        with clock.stage("encode"):
            features = engine.encode(mel, [job.prompt.num_audio_tokens for job in jobs])
        with clock.stage("mel"):
            jax.block_until_ready(mel)
            del mel
        with clock.stage("prefill"):
            state = engine.prefill([job.prompt for job in jobs], features, [job.budget for job in jobs])
        with clock.stage("encode"):
            jax.block_until_ready(features)
            del features
        with clock.stage("prefill"):
            first, done, finite = map(np.array, (state.token, state.done, state.finite))
        rows = [[int(token)] for token in first[: len(jobs)]]
        ttft_ms = clock.total()
        expected = sum(8 + _TOKENS_PER_SECOND * job.waveform.duration_s for job in jobs)
        shown = ""
        held = np.arange(len(jobs))  # which job is in which row of the state
        with clock.stage("decode"):
            while not done.all():
                state, chosen = engine.decode(state, STREAM_STEPS if on_text else engine.buckets.decode_chunk)
                for i, new in zip(held, chosen.tokens, strict=False):
                    rows[i].extend(new[new != NO_TOKEN].tolist())
                done = np.asarray(chosen.done)
                finite[held] = chosen.finite[: len(held)]
                if not done.all():
                    state, kept = engine.compact(state, done)
                    if kept is not None:
                        held, done = held[kept], done[kept]
                if on_text is not None:
                    said = [token for token in rows[0] if token not in engine.config.eos_token_ids]
                    text = transcript_so_far(self.tokenizer.decode(said), forced=language is not None)
                    if len(text) > len(shown) and text.startswith(shown):
                        on_text(text[len(shown) :])
                        shown = text
                if on_share is not None:
                    on_share(0.4 + 0.5 * min(1.0, sum(map(len, rows)) / expected))
        engine.release(state)
        results: list[Transcription | QwenASRError] = []
        for row, job, ok in zip(rows, jobs, finite, strict=False):
            if not ok:
                results.append(self._overflowed(job))
                continue
            ended = row[-1] in engine.config.eos_token_ids
            ids = row[:-1] if ended else row
            found, text = parse_output(self.tokenizer.decode(ids), language)
            if on_text is not None and len(text) > len(shown) and text.startswith(shown):
                on_text(text[len(shown) :])
            timings = Timings(
                load_audio_ms=job.load_ms,
                mel_ms=clock.ms["mel"],
                encode_ms=clock.ms["encode"],
                prefill_ms=clock.ms["prefill"],
                decode_ms=clock.ms["decode"],
                ttft_ms=job.load_ms + ttft_ms,
                total_ms=job.load_ms + clock.total(),
            )
            results.append(
                Transcription(
                    text=text,
                    language=found,
                    tokens=tuple(ids),
                    finish_reason="eos" if ended else "length",
                    truncated=not ended,
                    timings=timings,
                    duration=job.waveform.duration_s,
                    name=job.waveform.name,
                    batch_size=len(jobs),
                    warnings=job.waveform.warnings,
                )
            )
        return results

    def _overflowed(self, job: Job) -> QwenASRError:
        policy = self.engine.policy.name
        return QwenASRError(f"{job.waveform.name}: the model overflowed under policy {policy} {self._overflow_remedy}")

    @functools.cached_property
    def _overflow_remedy(self) -> str:
        return overflow_remedy(self.engine, self.tokenizer)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the device, or the host, has no memory left."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError)


def _raised(result: Transcription | QwenASRError) -> Transcription:
    if isinstance(result, QwenASRError):
        raise result
    return result
