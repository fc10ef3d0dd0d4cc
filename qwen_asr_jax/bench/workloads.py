"""What is timed: one function per workload, from a model and its clips to a run that can be repeated.

Every run synchronises with the device before a clock is read. Total and stages come from one run wherever the real path waits
between stages anyway; only the encoder's halves are timed in a pass of their own, behind the total.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from qwen_asr_jax.audio.frames import num_frames
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench.cost import Cost, decode_cost, encoder_cost, prefill_cost
from qwen_asr_jax.bench.timing import Figures, Stopwatch
from qwen_asr_jax.engine.engine import AudioFeatures
from qwen_asr_jax.engine.state import DecodeState, cache_bytes, new_state
from qwen_asr_jax.engine.verbs import NO_TOKEN
from qwen_asr_jax.errors import QwenASRError
from qwen_asr_jax.models.functional import Definition
from qwen_asr_jax.pipelines.job import Job
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.pipelines.result import Transcription
from qwen_asr_jax.typing import Array, Params

CONTEXTS = (64, 256, 1024, 4096)
"""Tokens of context at which `decode` is measured again."""

DECODE_TOKENS = 32
"""Steps of the `decode` workload unless told otherwise."""


@dataclasses.dataclass
class Plan:
    """A workload that is ready to run.

    Attributes:
      run: does it once and returns its figures.
      costs: the least work behind figures, where a floor makes sense; of `full`, known when it has run.
      tokens: see `Record.tokens`, known before a run or filled by it.
      cache_bytes: size of the KV cache that it uses.
      transcript: see `Record.transcript`; filled by runs.
      notes: see `Record.notes`; filled by runs.
    """

    run: Callable[[], Figures]
    costs: Mapping[str, Cost]
    tokens: float | None = None
    cache_bytes: int = 0
    transcript: dict[str, str] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


def batch(model: QwenASR, clips: Sequence[Waveform], max_new_tokens: int) -> Plan:
    """`full`, with the clips as one batch, and its throughput."""
    plan = full(model, clips, max_new_tokens)
    run, seconds = plan.run, sum(clip.duration_s for clip in clips)

    def run_with_rates() -> Figures:
        figures = run()
        rates = {"audio_s_per_s": seconds, "tokens_per_s": figures["tokens"]}
        return figures | {name: amount / figures["total_ms"] * 1e3 for name, amount in rates.items()}

    plan.run = run_with_rates
    return plan


def full(model: QwenASR, clips: Sequence[Waveform], max_new_tokens: int) -> Plan:
    """Complete transcription of one clip, or of several as one batch, through `QwenASR.transcribe`.

    The clips are in memory, so reading files is not part of it.
    """
    jobs = [model.prepare(clip, max_new_tokens=max_new_tokens) for clip in clips]
    plan = Plan(run=dict, costs={}, cache_bytes=_cache_bytes(model, jobs))

    def run() -> Figures:
        watch = Stopwatch()
        results = model.transcribe(list(clips), max_new_tokens=max_new_tokens, batch_size=len(clips))
        watch.stop()
        t = results[0].timings
        steps = max(_chosen(result) for result in results) - 1  # the first token is prefill's
        figures = {
            "total_ms": watch.ms,
            "mel_ms": t.mel_ms,
            "encode_ms": t.encode_ms,
            "prefill_ms": t.prefill_ms,
            "decode_ms": t.decode_ms,
            "ttft_ms": t.ttft_ms,
            "tokens": float(sum(map(_chosen, results))),
            "cpu_per_wall": watch.cpu_per_wall,
        }
        if steps:
            figures["ms_per_token"] = t.decode_ms / steps
        _keep_transcript(plan, results)
        plan.tokens = figures["tokens"]
        plan.costs = _stage_costs(model, jobs, [_chosen(result) for result in results])
        return figures

    plan.run = run
    return plan


def encoder(model: QwenASR, clips: Sequence[Waveform], max_new_tokens: int) -> Plan:
    """The encoder on log-mel features that are made once; then its two halves, each timed for itself."""
    engine = model.engine
    jobs = [model.prepare(clip, max_new_tokens=max_new_tokens) for clip in clips]
    counts = [job.prompt.num_audio_tokens for job in jobs]
    mel = jax.block_until_ready(engine.log_mel([clip.samples for clip in clips]))
    definition, params = engine.checkpoint.audio, engine.checkpoint.params["audio_tower"]
    padded = np.zeros(mel.shape[0], np.int32)
    padded[: len(counts)] = counts

    def run() -> Figures:
        total = Stopwatch()
        jax.block_until_ready(engine.encode(mel, counts))
        total.stop()
        stem = Stopwatch()
        convolved = jax.block_until_ready(_convolve(definition, params, mel))
        stem.stop()
        rest = Stopwatch()
        jax.block_until_ready(_transform(definition, params, convolved, padded))
        rest.stop()
        return {
            "total_ms": total.ms,
            "conv_stem_ms": stem.ms,
            "transformer_ms": rest.ms,
            "per_layer_ms": rest.ms / engine.config.audio.num_layers,
            "cpu_per_wall": total.cpu_per_wall,
        }

    return Plan(run, {"total_ms": _encoder_cost(model, jobs)}, tokens=float(sum(counts)))


@functools.partial(jax.jit, static_argnames="definition")
def _convolve(definition: Definition, params: Params, log_mel: Array) -> Array:
    return definition.bind(params).convolve(log_mel)


@functools.partial(jax.jit, static_argnames="definition")
def _transform(definition: Definition, params: Params, x: Array, num_tokens: Array) -> Array:
    return definition.bind(params).transform(x, num_tokens)


def prefill(model: QwenASR, clips: Sequence[Waveform], max_new_tokens: int) -> Plan:
    """The clips' prompts into an empty cache, up to the first chosen token."""
    jobs, features = _encoded(model, clips, max_new_tokens)

    def run() -> Figures:
        watch = Stopwatch()
        state = _prefill(model, jobs, features)
        watch.stop()
        model.engine.release(state)
        return {"total_ms": watch.ms, "cpu_per_wall": watch.cpu_per_wall}

    return Plan(
        run,
        {"total_ms": _prefill_cost(model, jobs)},
        tokens=float(sum(len(job.prompt.ids) for job in jobs)),
        cache_bytes=_cache_bytes(model, jobs),
    )


def decode(model: QwenASR, clips: Sequence[Waveform], steps: int) -> Plan:
    """Exactly `steps` steps behind the clips' prompts, whatever is chosen; the prompt is run anew each time, untimed."""
    jobs, features = _encoded(model, clips, steps + 1)

    def run() -> Figures:
        return _timed_steps(model, _prefill(model, jobs, features), len(jobs), steps)

    longest = max(len(job.prompt.ids) for job in jobs)
    return Plan(
        run,
        {"ms_per_token": _decode_cost(model, longest + (steps + 1) / 2, len(jobs))},
        tokens=float(steps * len(jobs)),
        cache_bytes=_cache_bytes(model, jobs),
    )


def mean_context(context: int, steps: int) -> float:
    """Tokens that a step of `decode_at` reads on average: `context` to a half, or as few as so many steps allow."""
    return _start(context, steps) + (steps + 1) / 2


def _start(context: int, steps: int) -> int:
    """Tokens in the cache before the first of so many steps around `context`."""
    return max(0, context - (steps + 1) // 2)


def decode_at(model: QwenASR, context: int, steps: int, rows: int) -> Plan | None:
    """`steps` steps around `context` tokens of cached context; None where the model's positions end before.

    Time does not depend on what is in the cache, so an empty state that claims to be long stands in for a long prompt.
    """
    engine, text = model.engine, model.engine.config.text
    start = _start(context, steps)
    if start + steps + 1 > text.max_positions:
        return None
    engine.drop_spare()  # one cache at a time
    slots, padded = engine.buckets.cache(start, steps + 1), engine.buckets.rows(rows)

    def state() -> DecodeState:
        fresh = new_state(text, engine.policy, padded, slots)
        active = np.arange(padded) < rows
        return dataclasses.replace(
            fresh,
            length=jax.device_put(np.where(active, start, 0).astype(np.int32)),
            done=jax.device_put(~active),
            budget=jax.device_put(np.where(active, steps, 0).astype(np.int32)),
        )

    def run() -> Figures:
        figures = _timed_steps(model, jax.block_until_ready(state()), rows, steps)
        engine.drop_spare()
        return figures

    return Plan(
        run,
        {"ms_per_token": _decode_cost(model, mean_context(context, steps), rows)},
        tokens=float(steps * rows),
        cache_bytes=cache_bytes(text, engine.policy, padded, slots),
    )


def _timed_steps(model: QwenASR, state: DecodeState, rows: int, steps: int) -> Figures:
    """Decodes exactly `steps` tokens for each row.

    Raises:
      QwenASRError: another number came out, so the time would be that of something else.
    """
    engine, chosen = model.engine, 0
    watch = Stopwatch()
    for _ in range(steps):
        state, found = engine.decode(state, steps - chosen // rows, ignore_eos=True)
        chosen += int((found.tokens[:rows] != NO_TOKEN).sum())
        if chosen >= steps * rows:
            break
    watch.stop()
    engine.release(state)
    if chosen != steps * rows:
        raise QwenASRError(f"decode chose {chosen} tokens where {steps * rows} were to be timed")
    return {
        "total_ms": watch.ms,
        "ms_per_token": watch.ms / steps,
        "tokens_per_s": chosen / watch.ms * 1e3,
        "cpu_per_wall": watch.cpu_per_wall,
    }


def _encoded(model: QwenASR, clips: Sequence[Waveform], max_new_tokens: int) -> tuple[list[Job], AudioFeatures]:
    jobs = [model.prepare(clip, max_new_tokens=max_new_tokens) for clip in clips]
    mel = model.engine.log_mel([clip.samples for clip in clips])
    return jobs, jax.block_until_ready(model.engine.encode(mel, [job.prompt.num_audio_tokens for job in jobs]))


def _prefill(model: QwenASR, jobs: Sequence[Job], features: AudioFeatures) -> DecodeState:
    prompts, budgets = [job.prompt for job in jobs], [job.budget for job in jobs]
    state = model.engine.prefill(prompts, features, budgets, ignore_eos=True)
    jax.block_until_ready(state)
    return state


def _chosen(result: Transcription) -> int:
    """Tokens that the model chose, the end token included."""
    return len(result.tokens) + (result.finish_reason == "eos")


def _keep_transcript(plan: Plan, results: Sequence[Transcription]) -> None:
    text = "\n".join(result.text for result in results)
    found = {
        "sha256": hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest(),
        "finish_reason": ",".join(sorted({result.finish_reason for result in results})),
    }
    if plan.transcript not in (None, found):
        plan.notes.append("transcripts differ between runs")
    plan.transcript = found


def _stage_costs(model: QwenASR, jobs: Sequence[Job], chosen: Sequence[int]) -> dict[str, Cost]:
    """The floors' work of a transcription; decode steps are shared by the batch, and a row that has ended needs none."""
    steps = Cost(0.0, 0.0)
    lengths = [len(job.prompt.ids) for job in jobs]
    for i in range(1, max(chosen)):
        running = [length + i for length, n in zip(lengths, chosen, strict=True) if n > i]
        steps += _decode_cost(model, sum(running) / len(running), len(running))
    stages = {"encode_ms": _encoder_cost(model, jobs), "prefill_ms": _prefill_cost(model, jobs)}
    return stages | ({"decode_ms": steps} if max(chosen) > 1 else {})


def _encoder_cost(model: QwenASR, jobs: Sequence[Job]) -> Cost:
    config, params = model.engine.config.audio, model.engine.checkpoint.params["audio_tower"]
    clips = [encoder_cost(config, params, num_frames(len(job.waveform.samples))) for job in jobs]
    return Cost(sum(cost.flops for cost in clips), clips[0].bytes)  # the batch shares the weights


def _prefill_cost(model: QwenASR, jobs: Sequence[Job]) -> Cost:
    engine = model.engine
    params, screen = engine.checkpoint.params, engine.screen
    rows = [prefill_cost(engine.config, params, engine.policy, len(job.prompt.ids), screen) for job in jobs]
    caches = sum(cache_bytes(engine.config.text, engine.policy, 1, len(job.prompt.ids)) for job in jobs[1:])
    return Cost(sum(cost.flops for cost in rows), rows[0].bytes + caches)


def _decode_cost(model: QwenASR, context: float, rows: int) -> Cost:
    engine = model.engine
    return decode_cost(engine.config, engine.checkpoint.params, engine.policy, context, rows, engine.screen)


def _cache_bytes(model: QwenASR, jobs: Sequence[Job]) -> int:
    engine = model.engine
    slots = engine.buckets.cache(max(len(job.prompt.ids) for job in jobs), max(job.budget for job in jobs))
    return cache_bytes(engine.config.text, engine.policy, engine.buckets.rows(len(jobs)), slots)
