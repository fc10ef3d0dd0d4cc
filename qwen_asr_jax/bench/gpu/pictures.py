"""Plots of what only this report measures; the bench's own plots show its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_asr_jax.bench import fields, plots
from qwen_asr_jax.bench.gpu.bars import bars, floor_of_step, is_h200
from qwen_asr_jax.bench.gpu.findings import Findings
from qwen_asr_jax.bench.gpu.matrices import STORED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = {
    "targets.png": "How near to the least possible time",
    "matvec.png": "Products of one row against the memory's rate",
    "loop.png": "A step of decoding, by the loop's settings",
}
"""File names, and what is on them."""

_WIDTH = 7.0
_BAR = 0.24


def draw(findings: Findings) -> dict[str, bytes] | None:
    """The plots that there are data for, by file name, those of the bench's records behind; None without matplotlib."""
    of_records = plots.draw(fields.make_rows(findings.records))
    if of_records is None:
        return None
    drawn = {"targets.png": _targets(findings), "matvec.png": _matvec(findings), "loop.png": _loop(findings)}
    return {name: plots.png(figure) for name, figure in drawn.items() if figure is not None} | of_records


def _targets(findings: Findings) -> Figure | None:
    rows = [bar for bar in bars(findings) if bar.fraction is not None]
    if not rows:
        return None
    figure = plots.new_figure(_WIDTH, 1.2 + 2 * _BAR * len(rows))
    axes = figure.subplots()
    for i, bar in enumerate(rows):
        met = bar.is_met(is_h200(findings.device))
        axes.barh(i, 100 * (bar.fraction or 0), height=0.6, color="C2" if met else "C3")
        if bar.target_fraction is not None:
            axes.plot([100 * bar.target_fraction] * 2, [i - 0.42, i + 0.42], color="0.1", linewidth=2)
        axes.annotate(
            fields.percent(bar.fraction),
            (100 * (bar.fraction or 0), i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    _explain(axes, "C2", "target met")
    _explain(axes, "C3", "not met")
    axes.plot([], [], color="0.1", linewidth=2, label="target, as on an H200")
    labels = [f"{bar.what}, {fields.digits(bar.target)} {bar.unit}" for bar in rows]
    axes.set_yticks(range(len(rows)), [plots.wrapped(label) for label in labels], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(
        xlabel="least possible time / measured time (%)", xlim=(0, max(112, *(115 * (bar.fraction or 0) for bar in rows)))
    )
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return _finished(figure, PICTURES["targets.png"])


def _matvec(findings: Findings) -> Figure | None:
    rates = findings.rates
    cases = findings.select("matvec", "product", rows=1, layout=STORED, variant="")
    if rates is None or not cases:
        return None
    presets = list(dict.fromkeys(str(each.setting("preset")) for each in cases))
    dtypes = list(dict.fromkeys(str(each.setting("dtype")) for each in cases))
    figure = plots.new_figure(_WIDTH, 0.9 + 2.4 * len(presets))
    panels = figure.subplots(len(presets), 1, squeeze=False, sharey=True)[:, 0]
    for axes, preset in zip(panels, presets, strict=True):
        own = [each for each in cases if each.setting("preset") == preset]
        names = list(dict.fromkeys(str(each.setting("product")) for each in own))
        shown = [dtype for dtype in dtypes if any(each.setting("dtype") == dtype for each in own)]
        width = 0.8 / len(shown)
        for i, dtype in enumerate(shown):
            found = {
                str(each.setting("product")): each.figure("gb_s") or 0.0 for each in own if each.setting("dtype") == dtype
            }
            at = [names.index(name) + (i - (len(shown) - 1) / 2) * width for name in found]
            axes.bar(
                at, [100 * rate / rates.read_gb_s for rate in found.values()], width=width, color=f"C{dtypes.index(dtype)}"
            )
        shapes = {str(each.setting("product")): " x ".join(map(str, each.settings["shape"])) for each in own}
        axes.set_xticks(range(len(names)), [f"{name}\n{shapes[name]}" for name in names], fontsize=8)
        axes.axhline(100, color="0.2", linestyle="--", linewidth=1)
        axes.axhline(75, color="0.5", linestyle=":", linewidth=1)
        axes.set_ylabel("of read rate (%)", fontsize=8)
        axes.set_title(preset, fontsize=9, loc="left")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    for i, dtype in enumerate(dtypes):
        _explain(panels[0], f"C{i}", dtype)
    return _finished(figure, PICTURES["matvec.png"])


def _loop(findings: Findings) -> Figure | None:
    rows = [each for each in findings.select("loop", "loop") if each.figure("ms_per_token_at_158")]
    if not rows:
        return None
    floors = {preset: floor_of_step(findings, preset) for preset in {str(each.setting("preset")) for each in rows}}
    figure = plots.new_figure(_WIDTH, 1.3 + 1.5 * _BAR * len(rows))
    axes = figure.subplots()
    for i, each in enumerate(rows):
        ms = each.figures["ms_per_token_at_158"]
        profiles = findings.select("loop", "profile", **each.settings)
        busy = profiles[0].figures["kernel_ms_per_step"] if profiles else None
        axes.barh(i, ms, height=0.7, color="C1" if busy is not None else "0.7")
        if busy is not None:
            axes.barh(i, min(busy, ms), height=0.7, color="C0")
        if floor := floors.get(str(each.setting("preset"))):
            axes.plot([floor] * 2, [i - 0.42, i + 0.42], color="0.1", linewidth=2)
        text = fields.digits(ms) + ("" if each.figure("equal_tokens") == each.figure("inputs") else ", OTHER TOKENS")
        axes.annotate(text, (ms, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    _explain(axes, "C0", "in kernels")
    _explain(axes, "C1", "between them")
    if any(not findings.select("loop", "profile", **each.settings) for each in rows):
        _explain(axes, "0.7", "not profiled")
    if any(floors.values()):
        axes.plot([], [], color="0.1", linewidth=2, label="floor")
    axes.set_yticks(range(len(rows)), [plots.wrapped(each.title().removeprefix("loop ")) for each in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set(xlabel="ms per token", xlim=(0, 1.2 * max(each.figures["ms_per_token_at_158"] for each in rows)))
    return _finished(figure, PICTURES["loop.png"])


def _explain(axes: Axes, color: str, label: str) -> None:
    """An entry of the legend for bars of that color."""
    axes.plot([], [], color=color, marker="s", markersize=8, linestyle="none", label=label)


def _finished(figure: Figure, title: str) -> Figure:
    """With a title, and one legend below, where it hides nothing."""
    figure.suptitle(title, fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    for axes in figure.axes:
        axes.tick_params(axis="x", labelsize=8)
    return figure
