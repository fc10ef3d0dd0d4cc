"""The workloads that need no model in this process: the machine's limits, and starting."""

from __future__ import annotations

import dataclasses
import pathlib

from qwen_asr_jax import kernels
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench import memory, roofline, startup
from qwen_asr_jax.bench.environment import now
from qwen_asr_jax.bench.options import Listener, Options
from qwen_asr_jax.bench.provenance import audio_identity, identity, kernel_notes, provenance
from qwen_asr_jax.bench.record import MAIN_FIGURE, Record
from qwen_asr_jax.bench.timing import Figures, measure
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.config import read_config
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.pipelines.load import with_chosen_kernels
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import Policy


def bench_roofline(options: Options, listener: Listener) -> Record:
    """Measures what the machine can do, and keeps it for the floors of later workloads."""
    origin = provenance()
    listener.status("preparing operands")
    with memory.out_of_memory("the roofline's operands"):
        run = roofline.prepare()

    def on_run(number: int, figures: Figures) -> None:
        listener.run(number, options.runs, figures, "read_gb_s", None)

    log = compilations()
    measure(run, runs=0, warmup=options.warmup)
    compiled = {"count": log.count, "cached": log.cached, "seconds": log.compile_s + log.cache_s}
    measured = measure(run, runs=options.runs, warmup=0, on_run=on_run)
    limits = roofline.limits_of(measured.runs, now())
    roofline.keep(limits)
    return Record(
        workload="roofline",
        model=None,
        policy=None,
        **origin,
        batch_size=1,
        audio=None,
        settings=options.settings(),
        runs=measured.runs,
        summary=measured.summary,
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
    """Measures starting: fresh processes, with an empty compilation cache and with a full one.

    Raises:
      BackendError: the policy's kernels are not available.
    """
    policy = with_chosen_kernels(policy)

    def run() -> Figures:
        return startup.start_twice(model_dir, clip, policy, engine, backend)

    origin = provenance()

    def on_run(number: int, figures: Figures) -> None:
        seconds = {name: value for name, value in figures.items() if name.endswith("_s")}
        listener.run(number, options.runs, seconds, MAIN_FIGURE["load"], None)

    listener.status(f"{options.warmup} warm-up runs, each a cold and a warm start")
    measured = measure(run, runs=options.runs, warmup=options.warmup, on_run=on_run)
    summary = measured.summary
    peak = {name: summary.get(f"warm_peak_{name}_bytes", {}).get("max") for name in ("rss", "device")}
    config = read_config(model_dir)
    _, _, abstract = abstract_model(config, policy)
    return Record(
        workload="load",
        model=identity(model_dir.resolve().name, model_dir, abstract),
        policy=policy.name,
        implementation=kernels.describe(policy),
        **origin,
        batch_size=1,
        audio=audio_identity([clip]),
        settings=options.settings(policy, engine),
        runs=measured.runs,
        summary=summary,
        memory={f"peak_{name}_bytes": value for name, value in peak.items()},
        notes=kernel_notes(),
        compile={
            "count": int(summary["cold_programs"]["max"]),
            "cached": int(summary["cold_from_cache"]["max"]),
            "seconds": summary["cold_compile_s"]["median"] + summary["cold_decode_compile_s"]["median"],
            "recompiles": len(measured.recompiled),
        },
    )
