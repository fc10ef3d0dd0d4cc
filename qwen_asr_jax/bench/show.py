"""What a person sees of a bench: a line per run, a table, and the figures around it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate

from qwen_asr_jax.bench.fields import PHASES, count, digits, figure_label, megabytes, percent
from qwen_asr_jax.bench.options import Listener
from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.summary import STATISTICS
from qwen_asr_jax.bench.timing import Figures


def label(figure: str) -> str:
    """A figure's name for people: `conv_stem_ms` is `conv stem, ms`."""
    return ", ".join(part for part in figure_label(figure) if part)


def with_unit(number_of_bytes: float | None) -> str:
    """Bytes as MB or GB (powers of ten); a dash for None."""
    if number_of_bytes is not None and number_of_bytes >= 1e9:
        return f"{digits(number_of_bytes / 1e9)} GB"
    return megabytes(number_of_bytes) + (" MB" if number_of_bytes is not None else "")


def _value(figure: str, value: float) -> str:
    return count(value) if figure == "tokens" else digits(value)


def run_line(index: int, runs: int, figures: Figures, main: str, audio_s: float | None) -> str:
    """One measured run in one line."""
    parts = [f"run {index}/{runs}"]
    first = [main] if main in figures else []
    rest = [name for name in figures if name not in (main, "cpu_per_wall", "read_gb_s")]
    parts += [f"{label(name).removesuffix(', ms')} {_value(name, figures[name])}" for name in first + rest]
    if audio_s and "total_ms" in figures and "tokens" in figures:
        rtf = figures["total_ms"] / 1e3 / audio_s
        parts.append(f"RTF {digits(rtf)}  RTFx {digits(1 / rtf)}")
    if "cpu_per_wall" in figures:
        parts.append(f"CPU/wall {figures['cpu_per_wall']:.2f}")
    return "  ".join(parts)


def summary_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Figures down, statistics across."""
    rows = [[label(name), *(_value(name, values[each]) for each in STATISTICS)] for name, values in summary.items()]
    return tabulate(rows, headers=["", *STATISTICS], disable_numparse=True, colalign=["left"] + ["right"] * len(STATISTICS))


def start_line(index: int, runs: int, figures: Figures) -> str:
    """One pair of starts in one line."""
    return (
        f"run {index}/{runs}  first token after {figures['cold_total_s']:.2f} s cold, {figures['warm_total_s']:.2f} s warm"
    )


def start_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Phases of a start down; seconds with an empty and with a full compilation cache, and the memory behind each, across."""

    def seconds(kind: str, phase: str) -> list[str]:
        found = summary.get(f"{kind}_{phase}_s")
        return [digits(found[each]) if found else "-" for each in ("min", "median", "max")]

    def resident(phase: str, of: str) -> str:
        found = summary.get(f"warm_{phase}_{of}_bytes")
        return with_unit(found["median"]) if found else "-"

    rows = [
        [
            phase.replace("_", " "),
            *seconds("cold", phase),
            *seconds("warm", phase),
            resident(phase, "rss"),
            resident(phase, "device"),
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
        yield f"RTF {digits(record.rtf)}  RTFx {digits(record.rtfx)}  ({audio})"
    per_step = record.batch_size > 1 and record.workload != "prefill"
    rates = {
        f"ms per {'step' if per_step else 'token'}": record.ms_per_token,
        "GB/s": record.gb_s,
        "GFLOP/s": record.gflop_s,
    }
    said = [f"{digits(value)} {name}" for name, value in rates.items() if value is not None]
    if record.tokens is not None:
        said.insert(0, f"{count(record.tokens)} tokens")
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
        [count(c["context_tokens"]), digits(c["ms_per_token"]), digits(c["gb_s"]), percent(c["floor_fraction"])]
        for c in contexts
    ]
    return tabulate(
        rows, headers=["context, tokens", "ms per token", "GB/s", "reached"], disable_numparse=True, colalign=["right"] * 4
    )


def floor_table(record: Record) -> str:
    """The least time of each stage on this machine, and how much of it is reached."""
    assert record.roofline is not None
    rows = [
        [label(name), digits(f["ms"]), percent(f["fraction"]), "memory" if f["bound"] == "bytes" else "arithmetic"]
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
        + f"\n(this machine: {digits(r['read_gb_s'])} GB/s read between the runs; {digits(r['f32_gflop_s'])} f32 and"
        f" {digits(r['bf16_gflop_s'])} bf16 GFLOP/s on {r['date'][:10]})"
    )


def memory_line(memory: Mapping[str, Any]) -> str:
    """Where the memory goes."""
    weights = memory.get("weights", {})
    parts = []
    if weights:
        kinds = ", ".join(f"{name} {with_unit(size)}" for name, size in weights.items())
        parts.append(f"weights {with_unit(sum(weights.values()))} ({kinds})")
    if memory.get("cache_bytes"):
        parts.append(f"cache {with_unit(memory['cache_bytes'])}")
    if temp := memory.get("temp_bytes"):
        largest = max(temp, key=temp.__getitem__)
        parts.append(f"temporaries up to {with_unit(temp[largest])} ({largest})")
    parts.append(f"peak RSS {with_unit(memory.get('peak_rss_bytes'))}")
    if memory.get("peak_device_bytes") is not None:
        parts.append(f"peak on the device {with_unit(memory['peak_device_bytes'])}")
    return ", ".join(parts)


class Terminal(Listener):
    """Runs and tables on stdout; on stderr what is being done, for a person who waits or one who asked."""

    def __init__(self, verbose: bool):
        self._says_status = verbose or sys.stderr.isatty()
        self._profile = ""

    def status(self, text: str) -> None:
        """See `Listener`."""
        if self._says_status:
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
