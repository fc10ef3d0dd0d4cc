"""What a report of a GPU may have measured: lines for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwen_asr_jax.bench.gpu.matrices import STORED, TURNED, products
from qwen_asr_jax.bench.gpu.measurement import COSTS, PROGRAMS, STEPS, Measurement
from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.summary import summarize
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from tests.bench_records import ENV, record

DEVICE = "NVIDIA H200"
READ_GB_S, BF16_GFLOP_S = 4200.0, 700e3
ROOFLINE = {"read_gb_s": READ_GB_S, "f32_gflop_s": 50e3, "bf16_gflop_s": BF16_GFLOP_S, "date": "2026-01-02"}
STEP_BYTES = {"0.6b": 1.19e9, "1.7b": 3.44e9}
STEP_MS = {"0.6b": 0.9, "1.7b": 1.6}


def gpu_record(workload: str, preset: str | None, figures: dict[str, float], **changes: Any) -> Record:
    """A record of the GPU with three runs of these figures."""
    runs = [{name: value * factor for name, value in figures.items()} for factor in (1.0, 1.01, 0.99)]
    values = {
        "workload": workload,
        "model": None if preset is None else {"name": preset, "fingerprint": preset * 8, "parameters": 600_000_000},
        "policy": None if preset is None else "bf16",
        "backend": "gpu",
        "device": DEVICE,
        "threads": None,
        "runs": runs,
        "summary": {name: summarize([run[name] for run in runs]) for name in figures},
        "env": ENV | {"gpu": DEVICE, "driver": "580.1"},
        "roofline": ROOFLINE,
        "audio": None if workload == "roofline" else {"name": "sound 11 s", "sha256": "ab", "seconds": 11.0},
        "implementation": None if preset is None else "xla",
    }
    return record(**(values | changes))


def records() -> list[Record]:
    """The bench's workloads for both presets."""
    roofline = {"read_gb_s": READ_GB_S, "dispatch_us": 15.0, "loop_step_us": 1.5}
    roofline |= {f"{dtype}_{n}_gflop_s": 5e4 for dtype in ("f32", "bf16") for n in (1024, 2048, 4096)}
    found = [gpu_record("roofline", None, roofline)]
    for preset, ms in STEP_MS.items():
        stages = {"mel_ms": 0.5, "encode_ms": 2.0, "prefill_ms": 1.5, "decode_ms": 29 * ms}
        total = {"total_ms": 5 + 29 * ms, "ttft_ms": 4.5, "tokens": 30.0, "cpu_per_wall": 1.0, "ms_per_token": ms}
        rtfx = 11e3 / total["total_ms"]
        cut = {"sha256": "ab", "finish_reason": "length"}
        found.append(gpu_record("full", preset, stages | total, rtf=1 / rtfx, rtfx=rtfx, tokens=30.0, transcript=cut))
        found.append(gpu_record("decode", preset, {"total_ms": 32 * ms, "ms_per_token": ms, "cpu_per_wall": 1.0}))
        found.append(
            gpu_record("prefill", preset, {"total_ms": 2.0, "cpu_per_wall": 1.0}, ms_per_token=2 / 158, tokens=158.0)
        )
        clips = {"name": "sound 30 s x128", "sha256": "cd", "seconds": 3840.0}
        batch = {"total_ms": 800.0, "audio_s_per_s": 4800.0, "tokens": 11520.0, "tokens_per_s": 14400.0, "cpu_per_wall": 1.0}
        found.append(gpu_record("batch", preset, batch, batch_size=128, audio=clips, transcript=cut))
    return found


def measurements() -> list[Measurement]:
    """Measurements of every section, failures among them."""
    return [*_machine(), *_costs(), *_parity(), *_matvec(), *_loop(), *_conv(), *_memory(), *_steps()]


def _machine() -> Iterator[Measurement]:
    facts = {
        "backend": "gpu",
        "device": DEVICE,
        "driver": "580.1",
        "compute_capability": "9.0",
        "cpu": "Test CPU",
        "cores": 16,
    }
    facts |= {"python": "3.12.1", "commit": "0123456789ab", "dirty": False, "xla_flags": ""}
    facts["versions"] = {"jax": "0.11.2", "jaxlib": "0.11.2", "flax": "0.12.12"}
    yield Measurement("machine", "device", {}, {"bytes_limit": 1.3e11}, facts)
    yield Measurement("machine", "copy", {"buffer_mib": 1024}, {"read_and_write_gb_s": 4000.0, "copied_gb_s": 2000.0})
    yield Measurement("machine", "kernels in a row", {}, {"kernel_us": 1.4, "product_us": 1.4, "kernels": 32})
    yield Measurement("machine", "loop that looks", {}, {"pass_us": 21.0})
    for dtype, rate in (("bfloat16", BF16_GFLOP_S), ("float32", 5e4), ("int8", 1.4e6)):
        yield Measurement("machine", "product", {"dtype": dtype, "precision": "default", "size": 8192}, {"gflop_s": rate})


def _costs() -> Iterator[Measurement]:
    for preset, num_bytes in STEP_BYTES.items():
        for seconds, rows, steps, prompt in ((11.0, 1, 30, 158), (30.0, 128, 90, 405)):
            settings = {"preset": preset, "policy": "bf16", "clip_s": seconds, "rows": rows, "steps": steps}
            work = {"encode": (1e11 * rows, 4e8), "prefill": (1.4e11 * rows, num_bytes), "step": (1e9 * rows, num_bytes)}
            for stage, (flops, stage_bytes) in work.items():
                yield Measurement(COSTS, stage, settings, {"flops": flops, "bytes": stage_bytes, "tokens": prompt})


def _parity() -> Iterator[Measurement]:
    for policy, error in (("fp32", 1e-5), ("int8", 0.1)):
        settings = {"policy": policy, "implementation": "xla"}
        yield Measurement("parity", "transcripts", settings, {"clips": 5, "equal": 5, "right": 5})
        figures = {"max_error": 0.1, "mean_error": error, "spread": 1.0, "steps": 24, "agreed": 23, "clear": 22}
        yield Measurement("parity", "logits", {"preset": "0.6b", **settings}, figures | {"clear_agreed": 22, "prefix": 20})
    yield Measurement("parity", "transcripts", {"policy": "fp32", "implementation": "cuda"}, error="no kernels for fp32")


def _matvec() -> Iterator[Measurement]:
    kinds = [("bfloat16", STORED, "", 0.7), ("bfloat16", TURNED, "", 0.6), ("int8", STORED, "", 0.3)]
    kinds += [("bfloat16", STORED, "no Triton products", 0.8)]
    for preset in STEP_MS:
        for dtype, layout, variant, share in kinds if preset == "0.6b" else kinds[:1]:
            for product, shape in products(MODELS[preset].text).items():
                num_bytes = shape[0] * shape[1] * (1 if dtype == "int8" else 2)
                rate = READ_GB_S * share * (1.2 if product == "head" else 1)
                settings = {"preset": preset, "product": product, "shape": list(shape), "dtype": dtype, "rows": 1}
                figures = {"product_us": num_bytes / rate / 1e3, "gb_s": rate, "matrix_bytes": num_bytes}
                figures |= {"kernels_per_product": 1.0, "compile_s": 1.2}
                yield Measurement("matvec", "product", settings | {"layout": layout, "variant": variant}, figures)
    for programs, us in ((1, 90.0), (2, 100.0)):
        settings = {"preset": "0.6b", "programs": programs}
        yield Measurement("matvec", "head and argmax", settings, {"call_us": us, "gb_s": 3.1e5 / us})


def _loop() -> Iterator[Measurement]:
    kinds = [("", 1, 1.0), ("", 8, 0.9), ("", 32, 0.92), ("loops captured", 1, 0.7), ("smallest graphs", 1, 0.8)]
    for preset, ms in STEP_MS.items():
        for variant, check, factor in kinds if preset == "0.6b" else kinds[:2]:
            settings = {"preset": preset, "policy": "bf16", "implementation": "auto", "variant": variant}
            settings["steps_per_check"] = check
            equal = 1 if variant == "smallest graphs" else 2
            figures = {"ms_per_token_at_62": ms * factor, "ms_per_token_at_158": 1.02 * ms * factor, "kernels_in_loop": 420}
            figures |= {"compile_s": 9.0, "inputs": 2, "equal_tokens": equal, "different_tokens": 1}
            yield Measurement("loop", "loop", settings, figures)
            figures = {"kernels_per_step": 415.0, "kernel_ms_per_step": 0.6 * ms}
            yield Measurement("loop", "profile", settings, figures)


def _conv() -> Iterator[Measurement]:
    for chunks in (4, 64):
        for implementation, ms in (("views", 0.5), ("convolution", 0.4)):
            settings = {"preset": "0.6b", "dtype": "bfloat16", "chunks": chunks, "implementation": implementation}
            yield Measurement("conv", "stem", settings, {"ms": ms * chunks / 4, "gflop_s": 2e5})


def _memory() -> Iterator[Measurement]:
    for policy, gigabytes in (("fp32", 3.1), ("bf16", 1.9)):
        settings = {"preset": "0.6b", "policy": policy, "implementation": "auto", "compiled_before": True}
        for name, share in (("loaded", 0.8), ("transcribed", 1.0)):
            figures = {"device_peak_bytes_in_use": share * gigabytes * 1e9, "peak_rss_bytes": 2e9, "weight_bytes": 1.6e9}
            yield Measurement("memory", name, settings, figures)


def _steps() -> Iterator[Measurement]:
    for name, section in (("machine", "machine"), ("loop 0.6b", "loop")):
        figures = {"wall_s": 21.0, "cpu_s": 30.0, "peak_rss_bytes": 2e9}
        yield Measurement(STEPS, name, {"section": section}, figures, {"expected_s": 25.0})
    programs = {"programs": 7, "from_cache": 1, "compile_s": 9.0, "cache_s": 0.1, "jax_ready_s": 4.0}
    yield Measurement(PROGRAMS, "machine", {}, programs)
    yield Measurement(STEPS, "conv", {"section": "conv"}, error="ended by SIGSEGV", is_gap=True)
    yield Measurement(STEPS, "clips 1.7b", {"section": "workloads"}, error="not begun: no time left", is_gap=True)
