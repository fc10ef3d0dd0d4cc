"""One traced run, and its costliest operations per stage.

The stages are the engine's compiled verbs. The trace gives each operation's time by its name in the compiled program; the
program's text says what that is: which kind of operation, of which shape, from which module of the model.
"""

from __future__ import annotations

import collections
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator

import jax
from tabulate import tabulate

from qwen_asr_jax.errors import OutputError, QwenASRError
from qwen_asr_jax.files import writable_directory

TOP = 10
"""Operations shown per stage."""

Operation = tuple[str, str]
"""Where an operation comes from (`CausalAttention dot_general`), and the shape of its result."""


def profile_table(run: Callable[[], object], profile_dir: pathlib.Path) -> str:
    """Runs once under `jax.profiler`, leaves the trace in `profile_dir`, and returns a table of the costliest operations.

    On a CPU an operation's time is that of all threads that worked on it.

    Raises:
      OutputError: the trace cannot be written.
      QwenASRError: the trace holds no operations.
    """
    writable_directory(profile_dir)
    before = set(profile_dir.rglob("*.xplane.pb"))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would crowd the trace
    with jax.profiler.trace(str(profile_dir), profiler_options=options):
        run()
    written = sorted(set(profile_dir.rglob("*.xplane.pb")) - before)
    if not written:
        raise OutputError(f"{profile_dir}: the profiler wrote no trace there")
    stages = stage_times(written[-1])
    if not stages:
        raise QwenASRError(f"{written[-1]}: the trace holds no operations of this backend")
    return "\n\n".join(_stage_table(stage, times) for stage, times in stages.items())


def stage_times(trace: pathlib.Path) -> dict[str, dict[Operation, tuple[float, int]]]:
    """Per stage, the costliest first, milliseconds and number of calls of each kind of operation."""
    events = list(_events(trace))
    seen: dict[str, set[str]] = {}
    for stage, operation, _ in events:
        seen.setdefault(stage, set()).add(operation)
    # A verb has a program per shape; the one that ran knows most of the operations seen.
    sources: dict[str, dict[str, Operation]] = {}
    for stage, text in _program_texts():
        found = operation_sources(text) if stage in seen else {}
        if len(seen.get(stage, set()) & set(found)) > len(seen.get(stage, set()) & set(sources.get(stage, {}))):
            sources[stage] = found
    times: dict[str, dict[Operation, tuple[float, int]]] = {}
    for stage, operation, ms in events:
        key = sources.get(stage, {}).get(operation, (operation.rstrip("0123456789."), ""))
        total, calls = times.setdefault(stage, {}).get(key, (0.0, 0))
        times[stage][key] = (total + ms, calls + 1)
    return dict(sorted(times.items(), key=lambda item: -sum(ms for ms, _ in item[1].values())))


def _events(trace: pathlib.Path) -> Iterator[tuple[str, str, float]]:
    """`(stage, operation, milliseconds)` of every operation in the trace, whichever thread or stream it is on.

    Where the trace has planes of devices, only those count: the host's hold the launches of the same operations. And where
    these have lines of streams, only those: others say the same again, by module or by step.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the binding's own making
        planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in devices or planes:
            lines = list(plane.lines)
            streams = [line for line in lines if line.name.startswith("Stream")]
            for line in streams or lines:
                for event in line.events:
                    stats = dict(event.stats)
                    # A loop's own event lasts as long as all that it runs.
                    if "hlo_op" in stats and "hlo_module" in stats and not str(stats["hlo_op"]).startswith("while"):
                        stage = str(stats["hlo_module"]).removeprefix("jit_").split("(")[0]
                        yield stage, str(stats["hlo_op"]), event.duration_ns / 1e6


def _program_texts() -> Iterator[tuple[str, str]]:
    for program in jax.local_devices()[0].client.live_executables():
        module = program.hlo_modules()[0]
        yield module.name.removeprefix("jit_"), module.to_string()


_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(?[a-z0-9]+\[[\d,]*\])")
_NATIVE = re.compile(r'custom_call_target="(qwen_asr_\w+?)(?:_v\d+)?"')
_METADATA = re.compile(r'op_name="([^"]*)"(?:.*?stack_frame_id=(\d+))?')
_TABLE_ROW = re.compile(r"^(\d+) (.*)$")


def operation_sources(text: str) -> dict[str, Operation]:
    """For every instruction of a compiled program: the model's function that it comes from with its kind, and its shape."""
    frames = _frame_functions(text)
    found = {}
    for line in text.splitlines():
        instruction = _INSTRUCTION.match(line)
        metadata = _METADATA.search(line)
        if instruction and metadata:
            native = _NATIVE.search(line)
            kind = native[1] if native else metadata[1].rsplit("/", 1)[-1]
            function = frames.get(metadata[2] or "", "")
            found[instruction[1]] = (f"{function} {kind}".strip(), instruction[2].lstrip("("))
    return found


_MODEL_FILES = re.compile(r"/(?:nn|models|engine)/(?!layers|functional)\w+\.py$|/ops/mel\.py$")


def _frame_functions(text: str) -> dict[str, str]:
    """Per stack frame of the program's own table, the innermost function that belongs to the model and not to its tools."""
    tables: dict[str, dict[str, str]] = collections.defaultdict(dict)
    title = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            title = line
        elif title and (row := _TABLE_ROW.match(line)):
            tables[title][row[1]] = row[2]
        elif line:
            title = ""
    locations = {
        key: (
            tables["FileNames"].get(_field(row, "file_name_id"), "").strip('"'),
            tables["FunctionNames"].get(_field(row, "function_name_id"), "").strip('"'),
        )
        for key, row in tables["FileLocations"].items()
    }

    def function(frame: str, depth: int = 0) -> str:
        row = tables["StackFrames"].get(frame)
        if row is None or depth > 40:
            return ""
        file, name = locations.get(_field(row, "file_location_id"), ("", ""))
        if _MODEL_FILES.search(file):
            return name.removesuffix(".__call__").split(".<locals>")[0]
        parent = str(int(_field(row, "parent_frame_id") or 0) - 1)  # parents are counted from one more, 1 being none
        return function(parent, depth + 1) if parent != frame else ""

    return {frame: function(frame) for frame in tables["StackFrames"]}


def _field(row: str, name: str) -> str:
    found = re.search(rf"{name}=(\d+)", row)
    return found[1] if found else ""


def _stage_table(stage: str, times: dict[Operation, tuple[float, int]]) -> str:
    total = sum(ms for ms, _ in times.values())
    costliest = sorted(times.items(), key=lambda item: -item[1][0])[:TOP]
    rows = [
        [where, shape, str(calls), f"{ms:.2f}", f"{100 * ms / total:.1f} %"] for (where, shape), (ms, calls) in costliest
    ]
    headers = [f"{stage}: {total:.1f} ms", "result", "calls", "ms", "share"]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "left", "right", "right", "right"))
