"""The report's page: the targets first, what to decide, then every section's tables, and what is missing and why."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from qwen_asr_jax.bench import plots, tables
from qwen_asr_jax.bench.fields import digits
from qwen_asr_jax.bench.gpu import bars, decisions, pictures
from qwen_asr_jax.bench.gpu.findings import Findings, read_findings
from qwen_asr_jax.bench.gpu.measurement import STEPS, Measurement
from qwen_asr_jax.bench.gpu.plan import SECTIONS
from qwen_asr_jax.bench.gpu.section_tables import TABLES, time_table
from qwen_asr_jax.bench.gpu.sheet import RECORDS, RESULTS
from qwen_asr_jax.files import write_bytes, write_text

PAGE = "README.md"

_UNDECIDED = " (of a quick run: nothing, these lines only show that they are written)"


def write_page(
    folder: pathlib.Path, sections: Sequence[str] = (), remarks: Sequence[str] = (), *, quick: bool = False
) -> Findings:
    """Writes the page and its plots from the files in the folder, and returns what these hold.

    Args:
      sections: those that were asked for; all for none.
      remarks: lines about the run, for the page's top.
      quick: nothing was measured that anything could be decided by.

    Raises:
      OutputError: something cannot be written.
    """
    findings = read_findings(folder)
    images = pictures.draw(findings)
    for name, data in (images or {}).items():
        write_bytes(folder / name, data)
    write_text(folder / PAGE, to_markdown(findings, images, sections, remarks, quick=quick))
    return findings


def to_markdown(
    findings: Findings,
    images: Mapping[str, bytes] | None,
    sections: Sequence[str] = (),
    remarks: Sequence[str] = (),
    *,
    quick: bool = False,
) -> str:
    """The whole page."""
    parts = [
        f"# {findings.device or 'Unknown device'}: what it can do, and what the engine makes of it",
        _header(findings),
        *remarks,
        f"Measured by `scripts/gpu_report.py`; [{RESULTS}]({RESULTS}) has every figure, [{RECORDS}]({RECORDS}) the records of"
        " the bench's workloads (`scripts/report.py` reads them). Of several runs the median, where it does not say otherwise."
        " A floor is the least time that the bytes and operations of the work allow at the rates measured here.",
        plots.HOW_TO_GET.capitalize() + "." if images is None else "",
        _titled("Targets" + _UNDECIDED * quick, _targets(findings, images)),
        _titled("What to decide" + _UNDECIDED * quick, decisions.as_list(decisions.decisions(findings))),
        *[
            _titled(title, _section(name, findings, images))
            for name, title in SECTIONS.items()
            if name in (sections or SECTIONS)
        ],
        _titled("Missing", _missing(findings)),
        _titled("Not available here", _lines(findings.unavailable())),
        _titled("Time", time_table(findings)),
        _titled("Not readable", "\n".join(f"- {pathlib.PurePath(line).name}" for line in findings.problems)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _titled(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _header(findings: Findings) -> str:
    facts = findings.facts
    if not facts:
        return "The machine's own section is missing: rates and floors are unknown."
    versions = facts.get("versions") or {}
    shown = [f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax") if name in versions]
    shown += [
        f"{name} {version}" for name, version in versions.items() if name.endswith(("plugin", "runtime-cu12", "nvrtc"))
    ]
    memory = findings.figure("bytes_limit", "machine", "device")
    parts = [
        f"driver {facts['driver']}" if facts.get("driver") else "",
        f"compute capability {facts['compute_capability']}" if facts.get("compute_capability") else "",
        "" if memory is None else f"{digits(memory / 1e9)} GB of memory for JAX",
        f"host {facts.get('cpu')}, {facts.get('cores')} cores",
        f"Python {facts.get('python')}",
        *shown,
        f"XLA_FLAGS `{facts['xla_flags']}`" if facts.get("xla_flags") else "",
        f"commit {facts.get('commit') or 'unknown'}{' with changes' if facts.get('dirty') else ''}",
    ]
    return ", ".join(part for part in parts if part) + "."


def _targets(findings: Findings, images: Mapping[str, bytes] | None) -> str:
    rows = [bar.cells(bars.is_h200(findings.device)) for bar in bars.bars(findings)]
    text = tables.plain_table(rows, bars.HEADERS, left=["what", "", "measured as"])
    if (rates := findings.rates) is not None:
        text += (
            f"\n\nFloors and fractions are by {digits(rates.read_gb_s)} GB/s, the best read anywhere in these files, and"
            f" {digits(rates.bf16_gflop_s / 1e3)} TFLOP/s in bf16."
        )
    if not bars.is_h200(findings.device):
        text += "\n\nThe targets are an H200's; here they are met where the fraction of the floor is."
    return text + _image("targets.png", images)


def _image(name: str, images: Mapping[str, bytes] | None) -> str:
    titles = {**plots.PLOTS, **pictures.PICTURES}
    return f"\n\n![{titles[name]}]({name})" if images and name in images else ""


def _section(name: str, findings: Findings, images: Mapping[str, bytes] | None) -> str:
    text = TABLES[name](findings)
    if not text:
        return "Nothing was measured."
    shown = {
        "matvec": ["matvec.png"],
        "loop": ["loop.png"],
        "workloads": ["rtfx.png", "stages.png", "decode-context.png", "batch.png", "floor.png"],
    }
    return text + "".join(_image(image, images) for image in shown.get(name, []))


def _missing(findings: Findings) -> str:
    return _lines(findings.gaps())


def _lines(measurements: Sequence[Measurement]) -> str:
    return "\n".join(f"- {_title(each)}: {tables.escape(each.error or '')}" for each in measurements)


def _title(each: Measurement) -> str:
    return f"**{each.name}**" if each.section == STEPS else tables.escape(each.title())
