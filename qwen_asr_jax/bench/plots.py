"""Records as plots (PNG). matplotlib is an extra: imported here when a plot is drawn, and never needed for the rest."""

from __future__ import annotations

import io
import math
import re
import statistics
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_asr_jax.bench.fields import (
    STAGES,
    Row,
    audio_name,
    audio_seconds,
    clip,
    floor_fraction,
    is_cut,
    is_silence,
    is_valid,
    mapping,
    model_name,
    number,
)
from qwen_asr_jax.bench.record import WORKLOADS
from qwen_asr_jax.bench.tables import CUT, sorted_contexts, stage_ms, throughput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = {
    "rtfx.png": "RTFx against audio length",
    "stages.png": "Time per stage and clip",
    "decode-context.png": "Decode time per token against context",
    "batch.png": "Throughput against batch size",
    "floor.png": "Fraction of the floor",
}
"""File names, and what is on them."""

HOW_TO_GET = 'no plots: matplotlib is not installed (pip install -e ".[plots]")'

_DPI = 110
_WIDTH = 7.0
_MARKERS = "osD^vP*X"
_MOST_BARS = 40
_MOST_LETTERS = 90

Series = Mapping[str, list[tuple[float, float]]]


def draw(rows: Sequence[Row]) -> dict[str, bytes] | None:
    """The plots that there are data for, by file name; None without matplotlib. Invalid and failed records are left out."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return None
    rows = [row for row in rows if is_valid(row.record)]
    full = [row for row in rows if row.record.workload == "full"]
    decode = [row for row in rows if row.record.workload == "decode" and row.record.contexts]
    figures = {
        "rtfx.png": _rtfx(full),
        "stages.png": _stages(full),
        "decode-context.png": _contexts(decode),
        "batch.png": _batch([row for row in rows if row.record.workload == "batch"]),
        "floor.png": _floors(rows),
    }
    return {name: png(figure) for name, figure in figures.items() if figure is not None}


def _rtfx(rows: Sequence[Row]) -> Figure | None:
    points = [(row, audio_seconds(row.record), number(row.record.rtfx)) for row in rows]
    series = _series(points, [_silence], at_one_x=_clips, mark=_cut)
    if not series:
        return None
    figure, axes = _new(PLOTS["rtfx.png"])
    _lines(axes, series)
    _log_if_wide(axes, series)
    axes.axhline(1, color="0.4", linestyle=":", label="real time")
    _explain_cut(axes, rows)
    axes.set(xlabel="audio length (s)", ylabel="RTFx (audio time / processing time)", ylim=(0, None))
    return _with_legend(figure, axes)


def _batch(rows: Sequence[Row]) -> Figure | None:
    points = [(row, number(row.record.batch_size), throughput(row.record)) for row in rows]
    series = _series(points, [_clips], mark=_cut)
    if not series:
        return None
    figure, axes = _new(PLOTS["batch.png"])
    _lines(axes, series)
    _log_if_wide(axes, series)
    _explain_cut(axes, rows)
    axes.set(xlabel="batch size (clips)", ylabel="throughput (s of audio / s)", ylim=(0, None))
    return _with_legend(figure, axes)


def _contexts(rows: Sequence[Row]) -> Figure | None:
    measured, floors = [], []
    for row in rows:
        read = number(mapping(row.record.roofline).get("read_gb_s"))
        for at in sorted_contexts(row.record):
            context, ms, rate = (number(at.get(key)) for key in ("context_tokens", "ms_per_token", "gb_s"))
            measured.append((row, context, ms))
            floors.append((row, context, _floor_ms(ms, number(at.get("floor_fraction")), rate, read)))
    series = _series(measured, [_batch_size])
    if not series:
        return None
    figure, axes = _new(PLOTS["decode-context.png"])
    colors = _lines(axes, series)
    least = _series(floors, [_batch_size])
    for label, points in least.items():
        axes.plot(*zip(*points, strict=True), linestyle="--", color=colors.get(label, "0.4"), linewidth=1)
    if least:  # one entry for all: the color says whose
        axes.plot([], [], linestyle="--", color="0.4", linewidth=1, label="floor")
    axes.set(xlabel="context (tokens)", ylabel="decode (ms per token)", ylim=(0, None))
    return _with_legend(figure, axes)


def _floor_ms(ms: float | None, fraction: float | None, rate: float | None, read: float | None) -> float | None:
    """Least ms per token: by the known fraction, else what was read per token at the GB/s at which the machine can read."""
    if ms is not None and fraction is not None:
        return ms * fraction
    return ms * rate / read if ms is not None and rate is not None and read else None


def _stages(rows: Sequence[Row]) -> Figure | None:
    rows = [row for row in rows if stage_ms(row.record, "other") is not None]
    clips: dict[str, list[Row]] = {}
    for row in rows[:_MOST_BARS]:
        clips.setdefault(clip(row.record) or "no clip", []).append(row)
    if not clips:
        return None
    title = PLOTS["stages.png"] + (f" ({_MOST_BARS} of {len(rows)})" if len(rows) > _MOST_BARS else "")
    bar = _bar_height(_label(row, repeats=True) for row in rows[:_MOST_BARS])
    heights = [len(members) + 0.27 / bar for members in clips.values()]
    figure = new_figure(_WIDTH, 1.1 + bar * sum(heights) + 0.3 * len(heights))
    panels = figure.subplots(len(clips), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (heading, members) in zip(panels, clips.items(), strict=True):
        labels = [wrapped(_label(row, repeats=True)) for row in members]
        left = [0.0] * len(members)
        for stage, name in {**STAGES, "other": "other"}.items():
            widths = [stage_ms(row.record, stage) or 0.0 for row in members]
            axes.barh(range(len(members)), widths, left=left, height=0.7, label=name)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(members)), labels, fontsize=8)
        axes.set_title(_plain(heading), fontsize=9, loc="left")
        axes.set_ylim(len(members) - 0.4, -0.6)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", labelsize=8)
    panels[-1].set_xlabel("time (ms)")
    figure.suptitle(title, fontsize=11)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    return figure


def _floors(rows: Sequence[Row]) -> Figure | None:
    """A bar per workload, model and policy: the median over its records; a whisker from the least to the most."""
    groups: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        fraction = floor_fraction(row.record)
        if fraction is not None:
            workload = WORKLOADS.index(row.record.workload)
            groups.setdefault((workload, _label(row)), []).append(100 * fraction)
    if not groups:
        return None
    bars = dict(sorted(groups.items())[:_MOST_BARS])
    middle = [statistics.median(values) for values in bars.values()]
    figure = new_figure(_WIDTH, 1.0 + _bar_height(label for _, label in bars) * len(bars))
    axes = figure.subplots()
    shown: set[int] = set()
    for i, ((workload, _), values) in enumerate(bars.items()):
        value, high = middle[i], max(values)
        label = "_" if workload in shown else WORKLOADS[workload]
        shown.add(workload)
        axes.barh(i, value, height=0.7, color=f"C{workload}", label=label)
        if len(values) > 1:
            error = [[value - min(values)], [high - value]]
            axes.errorbar(value, i, xerr=error, fmt="none", ecolor="0.2", elinewidth=1, capsize=2)
        axes.annotate(f"{value:.0f} %", (high, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(100, color="0.2", linestyle="--", linewidth=1, label="floor")
    axes.set_yticks(range(len(bars)), [wrapped(label) for _, label in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set(xlabel="least possible time / measured time (%)", xlim=(0, max(110, 1.12 * max(map(max, bars.values())))))
    axes.set_title(PLOTS["floor.png"], fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return _with_legend(figure, axes)


def _series(
    points: Iterable[tuple[Row, float | None, float | None]],
    details: Sequence[Callable[[Row], str]],
    at_one_x: Callable[[Row], str] | None = None,
    mark: Callable[[Row], str] | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """Points by label, sorted by x; of several at one x the median, so that a line stays a line.

    Args:
      points: row, x and y.
      details: put into the labels of series that would mix them.
      at_one_x: put into the labels of points that would meet at one x, and only of those.
      mark: put into labels wherever there is one.
    """
    known = [(_label(row), row, x, y) for row, x, y in points if x is not None and y is not None]
    for detail in details:
        found: dict[str, set[str]] = {}
        for label, row, _, _ in known:
            found.setdefault(label, set()).add(detail(row))
        known = [(_joined(n, detail(r) if len(found[n]) > 1 else ""), r, x, y) for n, r, x, y in known]
    if at_one_x is not None:
        met: dict[tuple[str, float], set[str]] = {}
        for label, row, x, _ in known:
            met.setdefault((label, x), set()).add(at_one_x(row))
        known = [(_joined(n, at_one_x(r) if len(met[n, x]) > 1 else ""), r, x, y) for n, r, x, y in known]
    if mark is not None:
        known = [(_joined(n, mark(r)), r, x, y) for n, r, x, y in known]
    series: dict[str, dict[float, list[float]]] = {}
    for label, _, x, y in known:
        series.setdefault(label, {}).setdefault(x, []).append(y)
    return {label: [(x, statistics.median(ys)) for x, ys in sorted(at.items())] for label, at in series.items()}


def _joined(label: str, detail: str) -> str:
    return f"{label} {_plain(detail)}" if detail else label


def _cut(row: Row) -> str:
    return CUT if is_cut(row.record) else ""


def _silence(row: Row) -> str:
    return "silence" if is_silence(row.record) else ""


def _clips(row: Row) -> str:
    """The clips of a batch, whatever its size."""
    return re.sub(r" x\d+$", "", audio_name(row.record))


def _batch_size(row: Row) -> str:
    return f"batch {row.record.batch_size}"


def _explain_cut(axes: Axes, rows: Sequence[Row]) -> None:
    if any(is_cut(row.record) for row in rows):
        axes.plot([], [], linestyle="none", label=f"{CUT} cut at the token budget")


def _lines(axes: Axes, series: Series) -> dict[str, str]:
    """Draws each series in a color and with a marker of its own; returns the colors."""
    colors = {label: f"C{i % 10}" for i, label in enumerate(series)}
    for i, (label, points) in enumerate(series.items()):
        marker = _MARKERS[i % len(_MARKERS)]
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, color=colors[label], label=label)
    return colors


def _log_if_wide(axes: Axes, series: Series) -> None:
    """A logarithmic x axis with a tick at each value, if the values are far apart."""
    values = sorted({x for points in series.values() for x, _ in points})
    if values[0] <= 0 or values[-1] / values[0] < 8:
        return
    axes.set_xscale("log", base=2)
    ticks = [x for i, x in enumerate(values) if i == 0 or x > 1.3 * values[i - 1]]
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xticks([], minor=True)


def _label(row: Row, repeats: bool = False) -> str:
    parts = [
        model_name(row.record),
        str(row.record.policy or ""),
        row.implementation,
        row.backend,
        f"({row.environment})" if row.environment else "",
    ]
    parts += [f"{row.threads} threads" if row.threads else "", row.point, row.repeat if repeats else ""]
    return _plain(" ".join(part for part in parts if part))


def wrapped(label: str) -> str:
    """The label in lines that leave half of the plot to the bars."""
    return textwrap.fill(label, _MOST_LETTERS // 2, break_on_hyphens=False)


def _bar_height(labels: Iterable[str]) -> float:
    """Inches per bar, so that no label touches the next."""
    return 0.12 + 0.16 * max(wrapped(label).count("\n") + 1 for label in labels)


def _plain(text: str) -> str:
    """The text without meaning for matplotlib: no formulas, and not hidden from legends by a leading underscore."""
    return text.replace("$", r"\$").lstrip("_")


def new_figure(width: float, height: float) -> Figure:
    """An empty one, so many inches wide and high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _new(title: str) -> tuple[Figure, Axes]:
    figure = new_figure(_WIDTH, 3.7)
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    return figure, axes


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    """Below the axes, where it hides nothing; the figure grows with it."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, _MOST_LETTERS, break_on_hyphens=False) for label in labels]
    columns = min(len(labels), max(1, _MOST_LETTERS // (max(map(len, labels)) + 7)))
    lines = max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.19 * lines * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def png(figure: Any) -> bytes:
    """The figure as the bytes of a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a clip's name in a script that the font has not
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
