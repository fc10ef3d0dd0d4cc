"""What tests of the log of measurements share: records with all figures, and reading the pages made of them."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.report import write_report
from qwen_asr_jax.bench.summary import summarize
from tests.bench_records import ENV, record

OLD = ENV | {"date": "2026-01-01T00:00:00+00:00", "commit": "ffffffffffff"}
NAME = "2026-01-02-cpu-0123456"


def full(scale: float = 1.0, runs: int = 3, **changes) -> Record:
    """A transcription with all stages; its medians are `scale` times 1000, 10, 500, 200, 250 and 250 ms."""
    factors = [scale * (1 + 0.01 * (i - runs // 2)) for i in range(runs)]
    stages = {"total_ms": 1000, "mel_ms": 10, "encode_ms": 500, "prefill_ms": 200, "decode_ms": 250, "ttft_ms": 720}
    measured = [{name: ms * factor for name, ms in stages.items()} | {"cpu_per_wall": 1.9} for factor in factors]
    values = {"tokens": 25.0, "ms_per_token": 10 * scale, "rtf": scale / 11, "rtfx": 11 / scale, "floor_fraction": 0.625}
    return with_runs(record(**(values | changes)), measured)


def with_runs(base: Record, measured: list[dict[str, float]]) -> Record:
    return dataclasses.replace(
        base, runs=measured, summary={k: summarize([run[k] for run in measured]) for k in measured[0]}
    )


def write(output: pathlib.Path, *records: Record, **options) -> str:
    """Writes an entry and returns its page."""
    return (write_report(records, output, **options).folder / "README.md").read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What is under a heading, up to the next of its level or above."""
    level = heading.split()[0]
    return re.split(rf"^#{{2,{len(level)}}} ", page.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def lines(text: str) -> list[dict[str, str]]:
    """The lines of the first table in a text, by column."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return [dict(zip(header, cells, strict=True)) for cells in body]
