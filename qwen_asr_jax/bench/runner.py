"""From a model, clips and settings to records: measures, adds floors, memory, compiles and provenance."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench import memory, roofline, startup, workloads
from qwen_asr_jax.bench.cost import Limits, bytes_by_dtype, num_parameters
from qwen_asr_jax.bench.environment import device_name, environment, fingerprint
from qwen_asr_jax.bench.profile import profile_table
from qwen_asr_jax.bench.record import MAIN_FIGURE, Record
from qwen_asr_jax.bench.summary import summarize
from qwen_asr_jax.bench.timing import Figures, Measured, measure
from qwen_asr_jax.bench.workloads import Plan
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.config import read_config
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of every workload.

    Attributes:
      runs, warmup: measured runs, and runs before them that are not.
      decode_tokens: steps of `decode`, most tokens of `full` and `batch`; 0 for 32, and for as many as transcribing allows.
      contexts: where `decode` is measured again, in tokens.
      profile_dir: where one more run is traced to; None for no trace.
    """

    runs: int = 5
    warmup: int = 2
    decode_tokens: int = 0
    contexts: Sequence[int] = workloads.CONTEXTS
    profile_dir: pathlib.Path | None = None

    def settings(self) -> dict[str, Any]:
        """The `settings` of a record."""
        return {"runs": self.runs, "warmup": self.warmup, "decode_tokens": self.decode_tokens}


class Listener:
    """Hears of progress; the default says nothing."""

    def status(self, text: str) -> None:
        """What is being done now."""

    def run(self, number: int, runs: int, figures: Figures, main: str, audio_s: float | None) -> None:
        """A measured run has ended."""

    def profile(self, table: str) -> None:
        """A traced run's costliest operations."""


def headline(model: QwenASR, workload: str, clips: Sequence[Waveform]) -> str:
    """What is about to be measured, in one line."""
    where = provenance_line()
    audio = _audio(clips)
    return f"{workload}: {model.name}, {model.engine.policy.name}, {audio['name']} ({audio['seconds']:.2f} s), {where}"


def bench_model(
    model: QwenASR, model_dir: pathlib.Path, workload: str, clips: Sequence[Waveform], options: Options, listener: Listener
) -> Record:
    """Measures one workload on one batch of clips."""
    log = compilations()
    before = (log.count, log.cached, log.compile_s + log.cache_s)
    plan = _plan(model, workload, clips, options)
    seconds = sum(clip.duration_s for clip in clips)
    listener.status(f"{options.warmup} warm-up runs")
    measure(plan.run, runs=0, warmup=options.warmup)
    # What follows needs buffers of its own, so memory is read here, when everything has run once.
    used = {
        "weights": bytes_by_dtype(model.engine.checkpoint.params),
        "cache_bytes": plan.cache_bytes,
        "temp_bytes": memory.temp_bytes(),
        "peak_device_bytes": memory.device_bytes("peak_bytes_in_use"),
        "peak_rss_bytes": memory.peak_rss_bytes(),
    }
    after = (log.count, log.cached, log.compile_s + log.cache_s)
    compiled = dict(zip(("count", "cached", "seconds"), (b - a for a, b in zip(before, after, strict=True)), strict=True))
    limits = _limits(listener)
    measured, contexts = _measure_beside_reads(model, workload, plan, len(clips), seconds, limits, options, listener)
    memory.forget_peak()
    if options.profile_dir is not None:
        trace_dir = options.profile_dir / f"{workload}-{model.engine.policy.name}"
        listener.status(f"one more run, traced to {trace_dir}")
        listener.profile(profile_table(plan.run, trace_dir))
    notes = list(dict.fromkeys(plan.notes))
    if measured.recompiled:
        notes.append(f"INVALID: compiled inside measured runs: {', '.join(sorted(set(measured.recompiled)))}")
    record = Record(
        workload=workload,
        model=identity(model.name, model_dir, model.engine.checkpoint.params),
        policy=model.engine.policy.name,
        **provenance(),
        batch_size=len(clips),
        audio=_audio(clips),
        settings=options.settings(),
        runs=measured.runs,
        summary=summaries(measured.runs),
        tokens=plan.tokens,
        contexts=contexts,
        transcript=plan.transcript,
        memory=used,
        compile=compiled | {"recompiles": len(measured.recompiled)},
        notes=tuple(notes),
    )
    return _with_rates(record, plan, limits, model.engine.policy)


def _measure_beside_reads(
    model: QwenASR,
    workload: str,
    plan: Plan,
    rows: int,
    audio_s: float,
    limits: Limits,
    options: Options,
    listener: Listener,
) -> tuple[Measured, list[dict[str, float]]]:
    """The measured runs with the read bandwidth behind each, then for `decode` the contexts. The buffers end with the call."""
    read = roofline.prepare_read()

    def run() -> Figures:
        return plan.run() | {"read_gb_s": read()}

    def on_run(number: int, figures: Figures) -> None:
        listener.run(number, options.runs, figures, MAIN_FIGURE[workload], audio_s)

    measured = measure(run, runs=options.runs, warmup=0, on_run=on_run)
    if workload != "decode":
        return measured, []
    contexts, recompiled = _contexts(model, options, rows, limits, read, listener)
    return Measured(measured.runs, measured.recompiled + recompiled), contexts


def bench_roofline(options: Options, listener: Listener) -> Record:
    """Measures what the machine can do, and keeps it for the floors of later workloads."""
    listener.status("preparing operands")
    run = roofline.prepare()

    def on_run(number: int, figures: Figures) -> None:
        listener.run(number, options.runs, figures, "read_gb_s", None)

    log = compilations()
    measure(run, runs=0, warmup=options.warmup)
    compiled = {"count": log.count, "cached": log.cached, "seconds": log.compile_s + log.cache_s}
    measured = measure(run, runs=options.runs, warmup=0, on_run=on_run)
    limits = roofline.limits_of(measured.runs, _today())
    roofline.keep(limits)
    return Record(
        workload="roofline",
        model=None,
        policy=None,
        **provenance(),
        batch_size=1,
        audio=None,
        settings=options.settings(),
        runs=measured.runs,
        summary=summaries(measured.runs),
        gb_s=limits.read_gb_s,
        gflop_s=max(limits.f32_gflop_s, limits.bf16_gflop_s),
        roofline=dataclasses.asdict(limits),
        memory={"peak_rss_bytes": memory.peak_rss_bytes(), "peak_device_bytes": memory.device_bytes("peak_bytes_in_use")},
        compile=compiled | {"recompiles": len(measured.recompiled)},
    )


def bench_load(
    model_dir: pathlib.Path,
    policy: Policy,
    engine: EngineOptions,
    backend: str,
    clip: Waveform,
    options: Options,
    listener: Listener,
) -> Record:
    """Measures starting: fresh processes, with an empty compilation cache and with a full one."""

    def run() -> Figures:
        return startup.start_twice(model_dir, clip, policy, engine, backend)

    def on_run(number: int, figures: Figures) -> None:
        seconds = {name: value for name, value in figures.items() if name.endswith("_s")}
        listener.run(number, options.runs, seconds, MAIN_FIGURE["load"], None)

    listener.status(f"{options.warmup} warm-up runs, each a cold and a warm start")
    measured = measure(run, runs=options.runs, warmup=options.warmup, on_run=on_run)
    summary = summaries(measured.runs)
    peak = {name: summary.get(f"warm_peak_{name}_bytes", {}).get("max") for name in ("rss", "device")}
    config = read_config(model_dir)
    _, _, abstract = abstract_model(config, policy)
    return Record(
        workload="load",
        model=identity(model_dir.resolve().name, model_dir, abstract),
        policy=policy.name,
        **provenance(),
        batch_size=1,
        audio=_audio([clip]),
        settings=options.settings(),
        runs=measured.runs,
        summary=summary,
        memory={f"peak_{name}_bytes": value for name, value in peak.items()},
        compile={
            "count": int(summary["cold_programs"]["max"]),
            "cached": int(summary["warm_from_cache"]["max"]),
            "seconds": summary["cold_compile_s"]["median"] + summary["cold_decode_compile_s"]["median"],
            "recompiles": len(measured.recompiled),
        },
    )


def identity(name: str, model_dir: pathlib.Path, params: Params) -> dict[str, Any]:
    """The `model` of a record; `params` may be shapes alone."""
    return {"name": name, "fingerprint": fingerprint(model_dir), "parameters": num_parameters(params)}


def provenance() -> dict[str, Any]:
    """The fields of a record that say where it was measured."""
    backend = jax.default_backend()
    threads = os.environ.get("NPROC", "")
    return {
        "backend": backend,
        "device": device_name(backend),
        "threads": int(threads) if threads.isdecimal() else None,
        "env": environment(backend),
    }


def provenance_line() -> str:
    """The device and its threads, for people."""
    backend = jax.default_backend()
    threads = f", {os.environ.get('NPROC', '?')} of {os.cpu_count()} CPU threads" if backend == "cpu" else ""
    return f"{device_name(backend)}{threads}"


def summaries(runs: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Per figure, the summary of all runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: summarize([run[name] for run in runs if name in run]) for name in names}


def _plan(model: QwenASR, workload: str, clips: Sequence[Waveform], options: Options) -> Plan:
    if workload == "decode":
        return workloads.decode(model, clips, options.decode_tokens or workloads.DECODE_TOKENS)
    make = {"full": workloads.full, "batch": workloads.full, "encoder": workloads.encoder, "prefill": workloads.prefill}
    return make[workload](model, clips, options.decode_tokens)


def _limits(listener: Listener) -> Limits:
    """The kept roofline; where there is none, a short measurement."""
    limits = roofline.kept()
    if limits is None:
        listener.status("no roofline of this machine yet: measuring it, a few seconds")
        run = roofline.prepare()
        limits = roofline.limits_of(measure(run, runs=2, warmup=1).runs, _today())
        roofline.keep(limits)
    return limits


def _contexts(
    model: QwenASR,
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
        plan = workloads.decode_at(model, context, steps, rows)
        if plan is None:
            listener.status(f"no decoding at {context} tokens of context: the model's positions end before")
            continue
        listener.status(f"decoding at {context} tokens of context")
        measured = measure(lambda p=plan: p.run() | {"read_gb_s": read()}, runs=options.runs, warmup=1)  # type: ignore[misc]
        recompiled += measured.recompiled
        summary = summaries(measured.runs)
        ms, cost = summary["ms_per_token"]["median"], plan.costs["ms_per_token"]
        now = dataclasses.replace(limits, read_gb_s=summary["read_gb_s"]["median"])
        found.append(
            {
                "context_tokens": context,
                "ms_per_token": ms,
                **{f"{each}_ms_per_token": summary["ms_per_token"][each] for each in ("min", "max")},
                "gb_s": cost.bytes / ms / 1e6,
                "floor_fraction": now.floor(cost, model.engine.policy)[0] / ms,
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


def _audio(clips: Sequence[Waveform]) -> dict[str, Any]:
    """The `audio` of a record; for a batch, its clips together."""
    names = dict.fromkeys(os.path.basename(clip.name) for clip in clips)
    digest = hashlib.sha256(b"".join(clip.samples.tobytes() for clip in clips)).hexdigest()
    return {
        "name": ", ".join(names) + (f" x{len(clips)}" if len(clips) > 1 else ""),
        "sha256": digest,
        "seconds": sum(clip.duration_s for clip in clips),
    }


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
