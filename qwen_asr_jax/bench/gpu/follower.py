"""Hears what the steps' processes write, while they are running: a line for each measurement."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable
from types import TracebackType

from qwen_asr_jax.bench import record
from qwen_asr_jax.bench.fields import digits, figure_label
from qwen_asr_jax.bench.gpu import measurement
from qwen_asr_jax.bench.gpu.measurement import COSTS, PROGRAMS, STEPS
from qwen_asr_jax.bench.gpu.sheet import RECORDS, RESULTS

_INTERVAL_S = 0.3
_MOST_FIGURES = 4


class Follower:
    """Says a line for every line that is appended to a report's files from its beginning to its end; a context manager."""

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None]):
        self._say = say
        self._files = {folder / RESULTS: _measurement_line, folder / RECORDS: _record_line}
        self._read = {path: path.stat().st_size if path.exists() else 0 for path in self._files}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        for path, line_of in self._files.items():
            if not path.exists():
                continue
            with open(path, "rb") as f:
                f.seek(self._read[path])
                whole = f.read().rpartition(b"\n")[0]
            self._read[path] += len(whole) + bool(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                if said := line_of(line):
                    self._say(said)


def _measurement_line(line: str) -> str | None:
    """The measurement for people; None for what is said elsewhere."""
    try:
        found = measurement.parse(line)
    except ValueError:
        return None
    if found.section in (STEPS, PROGRAMS, COSTS):
        return None if found.error else _step_line(found)
    if found.error is not None:
        return f"{found.title()}: {found.error}"
    return (
        f"{found.title()}: {', '.join(_shown(name, value) for name, value in list(found.figures.items())[:_MOST_FIGURES])}"
    )


def _step_line(found: measurement.Measurement) -> str | None:
    return f"{found.name}: done in {digits(found.figure('wall_s'))} s" if found.section == STEPS else None


def _record_line(line: str) -> str | None:
    try:
        found = record.parse(line)
    except ValueError:
        return None
    name = record.MAIN_FIGURE[found.workload]
    median = found.summary.get(name, {}).get("median")
    what = [found.workload, *(str(part) for part in ((found.model or {}).get("name"), found.policy) if part)]
    if found.audio:
        what.append(str(found.audio.get("name")))
    return f"{' '.join(what)}: {_shown(name, median)}"


def _shown(name: str, value: float | None) -> str:
    label, unit = figure_label(name)
    if unit == "bytes":
        return f"{label} {digits(None if value is None else value / 1e6)} MB"
    return f"{label} {digits(value)} {unit}".rstrip()
