"""What a person sees of a bench: a line per run, a table, and the figures around it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate

from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.runner import Listener
from qwen_asr_jax.bench.summary import STATISTICS
from qwen_asr_jax.bench.timing import Figures

_LABELS = {"rtf": "RTF", "rtfx": "RTFx", "cpu_per_wall": "CPU/wall", "ttft_ms": "first token", "gb_s": "GB/s"}
_UNITS = {"_gb_s": "GB/s", "_gflop_s": "GFLOP/s", "_ms": "ms", "_us": "us", "_s": "s", "_bytes": "bytes"}


def label(figure: str) -> str:
    """A figure's name for people: `conv_stem_ms` is `conv stem, ms`."""
    if figure in _LABELS:
        return _LABELS[figure] + (", ms" if figure.endswith("_ms") else "")
    if "_per_" in figure:
        return figure.replace("audio_s", "audio seconds").replace("_per_s", " per second").replace("_", " ")
    for suffix, unit in _UNITS.items():
        if figure.endswith(suffix):
            return f"{figure.removesuffix(suffix).replace('_', ' ')}, {unit}"
    return figure.replace("_", " ")


def number(value: float | None, digits: int = 4) -> str:
    """The value with so many significant digits, plainly written; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def megabytes(size: float | None) -> str:
    """Bytes as MB or GB (powers of ten); a dash for None."""
    if size is None:
        return "-"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def run_line(index: int, runs: int, figures: Figures, main: str, audio_s: float | None) -> str:
    """One measured run in one line."""
    parts = [f"run {index}/{runs}"]
    first = [main] if main in figures else []
    rest = [name for name in figures if name not in (main, "cpu_per_wall", "read_gb_s")]
    parts += [f"{label(name).removesuffix(', ms')} {number(figures[name])}" for name in first + rest]
    if audio_s and "total_ms" in figures and "tokens" in figures:
        rtf = figures["total_ms"] / 1e3 / audio_s
        parts.append(f"RTF {number(rtf)}  RTFx {number(1 / rtf)}")
    if "cpu_per_wall" in figures:
        parts.append(f"CPU/wall {figures['cpu_per_wall']:.2f}")
    return "  ".join(parts)


def summary_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Figures down, statistics across."""
    rows = [[label(name), *(number(values[each]) for each in STATISTICS)] for name, values in summary.items()]
    return tabulate(rows, headers=["", *STATISTICS], disable_numparse=True, colalign=["left"] + ["right"] * len(STATISTICS))


PHASES = ("process", "import", "backend", "weights", "compile", "first_token", "total", "decode_compile")
"""Of a start, in their order; all up to `first_token` make the total, and the decoding loop is compiled behind it."""


def start_line(index: int, runs: int, figures: Figures) -> str:
    """One pair of starts in one line."""
    return (
        f"run {index}/{runs}  first token after {figures['cold_total_s']:.2f} s cold, {figures['warm_total_s']:.2f} s warm"
    )


def start_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Phases of a start down; seconds with an empty and with a full compilation cache, and the memory behind each, across."""

    def seconds(kind: str, phase: str) -> list[str]:
        found = summary.get(f"{kind}_{phase}_s")
        return [number(found[each], 3) if found else "-" for each in ("min", "median", "max")]

    def size(phase: str, of: str) -> str:
        found = summary.get(f"warm_{phase}_{of}_bytes")
        return megabytes(found["median"]) if found else "-"

    rows = [
        [
            phase.replace("_", " "),
            *seconds("cold", phase),
            *seconds("warm", phase),
            size(phase, "rss"),
            size(phase, "device"),
        ]
        for phase in PHASES
    ]
    each = [f"{kind} {name}, s" for kind in ("cold", "warm") for name in ("min", "median", "max")]
    headers = ["", *each, "RSS after", "device after"]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=["left"] + ["right"] * 8)


def result_lines(record: Record) -> Iterable[str]:
    """All that is said below the table."""
    if record.rtf is not None and record.audio:
        audio = f"{record.audio['seconds']:.2f} s of audio; medians of {len(record.runs)} runs"
        yield f"RTF {number(record.rtf)}  RTFx {number(record.rtfx)}  ({audio})"
    rates = {"ms per token": record.ms_per_token, "GB/s": record.gb_s, "GFLOP/s": record.gflop_s}
    said = [f"{number(value)} {name}" for name, value in rates.items() if value is not None]
    if record.tokens is not None:
        said.insert(0, f"{record.tokens:.0f} tokens")
    if said:
        yield ", ".join(said)
    if record.transcript:
        yield f"transcript sha256 {record.transcript['sha256'][:16]}, ended by {record.transcript['finish_reason']}"
    if record.contexts:
        yield context_table(record.contexts)
    if record.floor:
        yield floor_table(record)
    if record.memory:
        yield "memory: " + memory_line(record.memory)
    if record.compile:
        c = record.compile
        yield (
            f"compiles: {c['count']} programs in {c['seconds']:.2f} s, {c['cached']} of them from the cache;"
            f" {c['recompiles']} inside measured runs"
        )
    yield from (f"note: {note}" for note in record.notes)


def context_table(contexts: Iterable[Mapping[str, float]]) -> str:
    """Decode speed over context."""
    rows = [
        [f"{c['context_tokens']:.0f}", number(c["ms_per_token"]), number(c["gb_s"]), f"{100 * c['floor_fraction']:.0f} %"]
        for c in contexts
    ]
    return tabulate(
        rows, headers=["context, tokens", "ms per token", "GB/s", "reached"], disable_numparse=True, colalign=["right"] * 4
    )


def floor_table(record: Record) -> str:
    """The least time of each stage on this machine, and how much of it is reached."""
    assert record.roofline is not None
    rows = [
        [label(name), number(f["ms"]), f"{100 * f['fraction']:.0f} %", "memory" if f["bound"] == "bytes" else "arithmetic"]
        for name, f in record.floor.items()
    ]
    r = record.roofline
    return (
        tabulate(
            rows,
            headers=["floor", "ms", "reached", "bound by"],
            disable_numparse=True,
            colalign=("left", "right", "right", "left"),
        )
        + f"\n(this machine: {number(r['read_gb_s'])} GB/s read between the runs; {number(r['f32_gflop_s'])} f32 and"
        f" {number(r['bf16_gflop_s'])} bf16 GFLOP/s on {r['date'][:10]})"
    )


def memory_line(memory: Mapping[str, Any]) -> str:
    """Where the memory goes."""
    weights = memory.get("weights", {})
    parts = []
    if weights:
        kinds = ", ".join(f"{name} {megabytes(size)}" for name, size in weights.items())
        parts.append(f"weights {megabytes(sum(weights.values()))} ({kinds})")
    if memory.get("cache_bytes"):
        parts.append(f"cache {megabytes(memory['cache_bytes'])}")
    if temp := memory.get("temp_bytes"):
        largest = max(temp, key=temp.__getitem__)
        parts.append(f"temporaries up to {megabytes(temp[largest])} ({largest})")
    parts.append(f"peak RSS {megabytes(memory.get('peak_rss_bytes'))}")
    if memory.get("peak_device_bytes") is not None:
        parts.append(f"peak on the device {megabytes(memory['peak_device_bytes'])}")
    return ", ".join(parts)


class Terminal(Listener):
    """Runs and tables on stdout; what is being done on stderr, if asked for."""

    def __init__(self, verbose: bool):
        self._verbose = verbose
        self._profile = ""

    def status(self, text: str) -> None:
        """See `Listener`."""
        if self._verbose:
            print(f"... {text}", file=sys.stderr, flush=True)

    def run(self, number: int, runs: int, figures: Figures, main: str, audio_s: float | None) -> None:
        """See `Listener`."""
        line = (
            run_line(number, runs, figures, main, audio_s) if main != "warm_total_s" else start_line(number, runs, figures)
        )
        print(line, flush=True)

    def profile(self, table: str) -> None:
        """See `Listener`."""
        self._profile = table

    def result(self, record: Record) -> None:
        """The table of a finished workload and all that belongs to it."""
        table = start_table(record.summary) if record.workload == "load" else summary_table(record.summary)
        print("", table, "", *result_lines(record), "", sep="\n", flush=True)
        if self._profile:
            print(self._profile, "", sep="\n", flush=True)
            self._profile = ""
