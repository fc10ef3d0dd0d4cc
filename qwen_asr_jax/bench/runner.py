"""From a model, clips and settings to records: measures, adds floors, memory, compiles and provenance."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from qwen_asr_jax import kernels
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench import memory, roofline, workloads
from qwen_asr_jax.bench.cost import Limits, bytes_by_dtype
from qwen_asr_jax.bench.environment import now
from qwen_asr_jax.bench.options import Listener, Options
from qwen_asr_jax.bench.profile import profile_table
from qwen_asr_jax.bench.provenance import audio_identity, identity, kernel_notes, provenance
from qwen_asr_jax.bench.record import MAIN_FIGURE, Record
from qwen_asr_jax.bench.timing import Figures, Measured, measure
from qwen_asr_jax.bench.workloads import Plan
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.errors import QwenASRError
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import Policy


def bench_model(
    model: QwenASR,
    model_dir: pathlib.Path,
    workload: str,
    clips: Sequence[Waveform],
    options: Options,
    listener: Listener,
    engine: EngineOptions | None = None,
) -> Record:
    """Measures one workload on one batch of clips.

    Args:
      model_dir: where the model was loaded from.
      engine: the options it was loaded with.

    Raises:
      QwenASRError: the device is out of memory, or decoding did not take the steps it should have.
    """
    origin, log = provenance(), compilations()
    policy = model.engine.policy
    before = (log.count, log.cached, log.compile_s + log.cache_s)
    listener.status(f"{options.warmup} warm-up runs")
    with memory.out_of_memory(f"{workload} of {len(clips)} clips"):
        plan = _plan(model, workload, clips, options)
        measure(plan.run, runs=0, warmup=options.warmup)
    # What follows needs buffers of its own, so memory is read here, when everything has run once.
    used = {
        "weights": bytes_by_dtype([model.engine.checkpoint.params, model.engine.screen]),
        "cache_bytes": plan.cache_bytes,
        "temp_bytes": memory.temp_bytes(),
        "peak_device_bytes": memory.device_bytes("peak_bytes_in_use"),
        "peak_rss_bytes": memory.peak_rss_bytes(),
    }
    after = (log.count, log.cached, log.compile_s + log.cache_s)
    compiled = dict(zip(("count", "cached", "seconds"), (b - a for a, b in zip(before, after, strict=True)), strict=True))
    limits = _limits(listener)
    with memory.out_of_memory("the bench's own buffers"):
        measured, contexts = _measure_beside_reads(model, workload, plan, clips, limits, options, listener)
    model.engine.drop_spare()
    memory.forget_peak()
    if options.profile_dir is not None:
        _profile(plan, options.profile_dir / f"{workload}-{policy.name}", listener)
    if measured.recompiled:
        plan.notes.append(f"INVALID: compiled inside measured runs: {', '.join(sorted(set(measured.recompiled)))}")
    record = Record(
        workload=workload,
        model=identity(model.name, model_dir, model.engine.checkpoint.params),
        policy=policy.name,
        implementation=kernels.describe(policy),
        **origin,
        batch_size=len(clips),
        audio=audio_identity(clips),
        settings=options.settings(policy, engine) | ({"contexts": list(options.contexts)} if workload == "decode" else {}),
        runs=measured.runs,
        summary=measured.summary,
        tokens=plan.tokens,
        contexts=contexts,
        transcript=plan.transcript,
        memory=used,
        compile=compiled | {"recompiles": len(measured.recompiled)},
        notes=(*dict.fromkeys(plan.notes), *kernel_notes()),
    )
    record = _with_rates(record, plan, limits, policy)
    if any(floor["fraction"] > 1 for floor in record.floor.values()):
        stale = "faster than the floor: the kept roofline is too low; measure it again with --workload=roofline"
        record = dataclasses.replace(record, notes=(*record.notes, stale))
    return record


def _profile(plan: Plan, trace_dir: pathlib.Path, listener: Listener) -> None:
    """Traces one more run. What was measured is worth more than a trace: where there can be none, that is only noted."""
    listener.status(f"one more run, traced to {trace_dir}")
    try:
        listener.profile(profile_table(plan.run, trace_dir))
    except (QwenASRError, RuntimeError, OSError) as e:
        plan.notes.append(f"no profile: {(str(e).splitlines() or [type(e).__name__])[0]}")


def _measure_beside_reads(
    model: QwenASR,
    workload: str,
    plan: Plan,
    clips: Sequence[Waveform],
    limits: Limits,
    options: Options,
    listener: Listener,
) -> tuple[Measured, list[dict[str, float]]]:
    """The measured runs with the read bandwidth behind each, then for `decode` the contexts. The buffers end with the call."""
    read = roofline.prepare_read()
    audio_s = sum(clip.duration_s for clip in clips)

    def run() -> Figures:
        return plan.run() | {"read_gb_s": read()}

    def on_run(number: int, figures: Figures) -> None:
        listener.run(number, options.runs, figures, MAIN_FIGURE[workload], audio_s)

    measured = measure(run, runs=options.runs, warmup=0, on_run=on_run)
    if workload != "decode":
        return measured, []
    contexts, recompiled = _contexts(model, plan, options, len(clips), limits, read, listener)
    return Measured(measured.runs, measured.recompiled + recompiled), contexts


def _plan(model: QwenASR, workload: str, clips: Sequence[Waveform], options: Options) -> Plan:
    if workload == "decode":
        return workloads.decode(model, clips, options.decode_tokens or workloads.DECODE_TOKENS)
    make = {"full": workloads.full, "batch": workloads.batch, "encoder": workloads.encoder, "prefill": workloads.prefill}
    return make[workload](model, clips, options.decode_tokens)


def _limits(listener: Listener) -> Limits:
    """The kept roofline; where there is none, a short measurement."""
    limits = roofline.kept()
    if limits is None:
        listener.status("no roofline of this machine yet: measuring it, a few seconds")
        run = roofline.prepare()
        limits = roofline.limits_of(measure(run, runs=2, warmup=1).runs, now())
        roofline.keep(limits)
    return limits


def _contexts(
    model: QwenASR,
    main: Plan,
    options: Options,
    rows: int,
    limits: Limits,
    read: Callable[[], float],
    listener: Listener,
) -> tuple[list[dict[str, float]], tuple[str, ...]]:
    """Decode speed at each context, and what was compiled inside measured runs."""
    steps = options.decode_tokens or workloads.DECODE_TOKENS
    found: list[dict[str, float]] = []
    recompiled: tuple[str, ...] = ()
    for context in options.contexts:
        listener.status(f"decoding at {context} tokens of context")
        try:
            with memory.out_of_memory(f"decoding at {context} tokens of context"):
                plan = workloads.decode_at(model, context, steps, rows)
                if plan is None:
                    main.notes.append(f"not decoded at {context} tokens of context: the model's positions end before")
                    continue
                run = functools.partial(lambda p: p.run() | {"read_gb_s": read()}, plan)
                measured = measure(run, runs=options.runs, warmup=options.warmup)
        except QwenASRError as e:
            main.notes.append(str(e))
            continue
        recompiled += measured.recompiled
        summary = measured.summary
        ms, cost = summary["ms_per_token"]["median"], plan.costs["ms_per_token"]
        beside = dataclasses.replace(limits, read_gb_s=summary["read_gb_s"]["median"])
        found.append(
            {
                "context_tokens": round(workloads.mean_context(context, steps)),
                "ms_per_token": ms,
                **{f"{each}_ms_per_token": summary["ms_per_token"][each] for each in ("min", "max")},
                "tokens_per_s": summary["tokens_per_s"]["median"],
                "gb_s": cost.bytes / ms / 1e6,
                "floor_fraction": beside.floor(cost, model.engine.policy)[0] / ms,
                "read_gb_s": beside.read_gb_s,
                "cache_bytes": plan.cache_bytes,
            }
        )
    return found, recompiled


def _with_rates(record: Record, plan: Plan, limits: Limits, policy: Policy) -> Record:
    """The record with everything that follows from its medians, the plan's work and the machine's limits."""
    median = {name: values["median"] for name, values in record.summary.items()}
    limits = dataclasses.replace(limits, read_gb_s=median["read_gb_s"])
    main = MAIN_FIGURE[record.workload]
    floors: dict[str, dict[str, Any]] = {}
    for name, cost in plan.costs.items():
        ms, bound = limits.floor(cost, policy)
        floors[name] = {"ms": ms, "fraction": ms / median[name], "bound": bound}
    if main not in floors:
        largest = max(floors.values(), key=lambda floor: floor["ms"])
        ms = sum(floor["ms"] for floor in floors.values())
        floors = {main: {"ms": ms, "fraction": ms / median[main], "bound": largest["bound"]}} | floors
    rates: dict[str, float | None] = {"ms_per_token": median.get("ms_per_token")}
    if record.workload in ("full", "batch") and record.audio:
        rtf = median["total_ms"] / 1e3 / record.audio["seconds"]
        rates |= {"rtf": rtf, "rtfx": 1 / rtf}
    if record.workload in ("encoder", "prefill"):
        rates["gflop_s"] = plan.costs["total_ms"].flops / median["total_ms"] / 1e6
    if record.workload == "prefill" and record.tokens:
        rates["ms_per_token"] = median["total_ms"] / record.tokens
    if "ms_per_token" in plan.costs:
        rates["gb_s"] = plan.costs["ms_per_token"].bytes / median["ms_per_token"] / 1e6
    return dataclasses.replace(
        record,
        floor=floors,
        floor_fraction=floors[main]["fraction"],
        roofline=dataclasses.asdict(limits),
        **rates,  # type: ignore[arg-type]
    )
