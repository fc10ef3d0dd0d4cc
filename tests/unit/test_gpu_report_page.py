"""The page of a GPU's report, made of recorded lines: targets, decisions, tables, plots, and what is said to be missing."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from qwen_asr_jax.bench.gpu import measurement, pictures
from qwen_asr_jax.bench.gpu.bars import bars, is_h200
from qwen_asr_jax.bench.gpu.decisions import decisions, step_rate
from qwen_asr_jax.bench.gpu.findings import Findings, read_findings
from qwen_asr_jax.bench.gpu.measurement import STEPS, Measurement
from qwen_asr_jax.bench.gpu.page import PAGE, to_markdown, write_page
from qwen_asr_jax.bench.gpu.plan import SECTIONS
from qwen_asr_jax.bench.gpu.sheet import RECORDS, RESULTS
from qwen_asr_jax.bench.record import append_records
from qwen_asr_jax.errors import UsageError
from tests import gpu_lines


@pytest.fixture
def findings():
    return Findings(gpu_lines.measurements(), gpu_lines.records())


def without(findings, section):
    """The same without a section."""
    return dataclasses.replace(findings, measurements=[m for m in findings.measurements if m.section != section])


def change(findings, figures, section, name, **settings):
    """The same with other figures in the measurements of that name and settings."""
    chosen = {id(each) for each in findings.select(section, name, **settings)}
    assert chosen
    lines = [
        dataclasses.replace(m, figures={**m.figures, **figures}) if id(m) in chosen else m for m in findings.measurements
    ]
    return dataclasses.replace(findings, measurements=lines)


def test_a_line_comes_back_as_it_was():
    line = Measurement("loop", "loop", {"preset": "0.6b"}, {"ms": 1.5}, {"why": "ü"}, "broken", is_gap=True)
    assert measurement.parse(line.to_json()) == line
    assert measurement.parse(Measurement("a", "b", {}, {"x": float("nan")}).to_json()).figure("x") is None


@pytest.mark.parametrize(
    "line, said",
    [
        ("no JSON", "not JSON"),
        ('{"schema": 1, "section": "a"}', "without name"),
        ('{"schema": 1, "section": "a", "name": "b", "colour": 1}', "unknown field colour"),
        ('{"schema": 1, "section": "a", "name": "b", "figures": {"x": "y"}}', "a figure is no number"),
        ('{"schema": 1, "section": "a", "name": "b", "settings": []}', "settings is not an object"),
        ('{"schema": 2, "section": "a", "name": "b"}', "schema 2"),
    ],
)
def test_lines_that_are_none(line, said):
    with pytest.raises(ValueError, match=said):
        measurement.parse(line)


def test_the_last_of_the_same_counts_but_no_failure_hides_figures():
    good, better = (Measurement("a", "b", {"c": 1}, {"x": float(x)}) for x in (1, 2))
    failed = Measurement("a", "b", {"c": 1}, error="out of time", is_gap=True)
    assert measurement.latest([good, failed, better]) == [better]
    assert measurement.latest([good, failed]) == [good]
    assert measurement.latest([failed, good]) == [good]
    step = Measurement(STEPS, "loop", {}, {"wall_s": 1.0})
    ended = dataclasses.replace(step, figures={}, error="ended")
    assert measurement.latest([step, ended]) == [ended]  # of a step, what became of it last


def test_targets_on_an_h200(findings):
    found = {(bar.what, bar.target): bar for bar in bars(findings)}
    decode = found["decoding, 0.6b bf16, one clip", 0.45]
    assert decode.measured == pytest.approx(0.9)
    assert decode.floor == pytest.approx(1.19e9 / gpu_lines.READ_GB_S / 1e6)
    assert decode.fraction == pytest.approx(decode.floor / 0.9)
    assert decode.target_fraction == pytest.approx(1.19 / 4.3 / 0.45)
    assert decode.is_met(on_h200=True) is False
    best = found["decoding, 0.6b bf16, one clip, best settings", 0.45]
    assert best.measured == pytest.approx(0.9 * 1.02 * 0.7)  # not the faster one that chose other tokens
    assert "loops captured" in best.how
    batch = found["128 clips of 30 s, 90 tokens each, 0.6b bf16", 4000.0]
    assert batch.is_met(on_h200=True) is True
    assert batch.fraction == pytest.approx(4800 / batch.floor)
    growth = next(bar for bar in bars(findings) if "more per token" in bar.what)
    assert growth.measured == pytest.approx(2.0)
    memory = {bar.what: bar for bar in bars(findings) if bar.unit == "GB"}
    assert memory["device memory, 0.6b fp32, clip of 30 s"].is_met(True) is True
    assert memory["device memory, 0.6b bf16, clip of 30 s"].is_met(True) is False
    assert memory["device memory, 1.7b bf16, clip of 30 s"].is_met(True) is None


def test_of_several_kernels_the_fastest_count_and_of_each_the_newest(findings):
    slow, fast, newer = (
        gpu_lines.gpu_record("decode", "0.6b", {"ms_per_token": ms}, implementation=kernels)
        for ms, kernels in ((2.0, "xla"), (0.5, "cuda"), (0.6, "cuda"))
    )
    found = dataclasses.replace(findings, records=[*findings.records, slow, fast, newer])
    assert found.workload("decode", "0.6b") is newer  # the first xla record is no longer what XLA takes
    decode = next(bar for bar in bars(found) if bar.what == "decoding, 0.6b bf16, one clip")
    assert (decode.measured, decode.how) == (pytest.approx(0.6), "workload decode, by cuda")
    assert found.workload("decode", "0.6b", policy="int8") is None
    assert found.workload("batch", "0.6b", rows=64) is None
    assert found.workload("full", "0.6b", clip_s=30.0) is None


def test_on_another_card_the_fraction_decides(findings):
    limits = {**gpu_lines.ROOFLINE, "read_gb_s": 1200.0}
    slow = gpu_lines.gpu_record("roofline", None, {"read_gb_s": 1200.0}, roofline=limits)
    others = [record for record in findings.records if record.workload != "roofline"]
    found = dataclasses.replace(findings, records=[slow, *others])
    decode = next(bar for bar in bars(found) if bar.what == "decoding, 0.6b bf16, one clip")
    assert decode.measured == pytest.approx(0.9)
    assert decode.is_met(on_h200=True) is False  # slower than an H200 is to be
    assert decode.is_met(on_h200=False) is True  # but nearer to its own limit
    assert is_h200("NVIDIA H200")
    assert not is_h200(None)


def test_a_limit_is_what_was_ever_reached(findings):
    assert findings.rates.read_gb_s == gpu_lines.READ_GB_S
    faster = gpu_lines.gpu_record("decode", "0.6b", {"ms_per_token": 0.9, "read_gb_s": 4400.0})
    assert dataclasses.replace(findings, records=[*findings.records, faster]).rates.read_gb_s == 4400.0
    assert findings.rates.bf16_gflop_s == gpu_lines.BF16_GFLOP_S


def test_a_target_without_rates_is_judged_where_it_can_be(findings):
    found = without(dataclasses.replace(findings, records=[]), "machine")
    decode = next(bar for bar in bars(found) if bar.what == "decoding, 0.6b bf16, one clip")
    assert decode.measured == pytest.approx(0.9 * 1.02)  # of the loop, where the workload is missing
    assert decode.fraction is None
    assert decode.is_met(on_h200=False) is None
    assert decode.is_met(on_h200=True) is False


def sentence(findings, start):
    (found,) = [each for each in decisions(findings) if start in each]
    return found


def test_decisions_follow_the_numbers(findings):
    assert sentence(findings, "Results are right").startswith("**Results")
    rate = step_rate(findings, "0.6b")
    assert 0.7 * gpu_lines.READ_GB_S < rate < 0.75 * gpu_lines.READ_GB_S
    assert "kernels of their own" in sentence(findings, "XLA's products of one row, 0.6b bf16")
    assert "slower than as stored" in sentence(findings, "Matrices as `[in, out]`")
    assert "kernels of its own" in sentence(findings, "int8 products, 0.6b") or "kernels of their own" in sentence(
        findings, "int8 products, 0.6b"
    )
    assert "1.14 times as fast" in sentence(findings, "no Triton products")
    assert "**35 % lies between them**" in sentence(findings, "A step of 0.6b takes")
    assert "**8**" in sentence(findings, "Best `steps_per_check`, 0.6b")
    assert "smallest graphs" in sentence(findings, "Not to be used")
    assert "`convolution`" in sentence(findings, "Best conv stem, 0.6b bfloat16")


def test_decisions_turn_with_the_numbers(findings):
    wrong = change(findings, {"mean_error": 0.3}, "parity", "logits", policy="int8")
    assert "0.6b int8 xla: logits are off by 0.300" in sentence(wrong, "Wrong results first")
    assert "fp32" in sentence(
        change(findings, {"mean_error": 0.01}, "parity", "logits", policy="fp32"), "Wrong results first"
    )
    broken = change(findings, {"mean_error": None}, "parity", "logits", policy="fp32")  # not a number in the file
    assert "fp32" in sentence(broken, "Wrong results first")
    assert not [each for each in decisions(wrong) if "Results are right" in each]
    other = change(findings, {"equal": 4}, "parity", "transcripts", policy="fp32")
    assert "4 of 5 transcripts" in sentence(other, "Wrong results first")
    busy = change(findings, {"kernel_ms_per_step": 0.75}, "loop", "profile", preset="0.6b")
    assert "the kernels themselves" in sentence(busy, "A step of 0.6b takes")
    same = change(findings, {"ms_per_token_at_158": 0.918}, "loop", "loop", preset="0.6b", variant="")
    assert "gains nothing" in sentence(same, "Best `steps_per_check`, 0.6b")
    grown = change(findings, {"ms_per_token_at_62": 0.8}, "loop", "loop", preset="0.6b")
    assert "attention" in sentence(grown, "more at 158 tokens")


def test_nothing_measured_makes_a_page_that_says_so():
    page = to_markdown(Findings([], []), images=None, remarks=["Interrupted."])
    assert page.startswith("# Unknown device")
    assert "Interrupted." in page
    assert page.count("Nothing was measured.") == len(SECTIONS)
    assert "What to decide" not in page
    assert page.count("not measured") >= 10
    assert "matplotlib is not installed" in page


def test_the_page_has_every_section_and_what_is_missing(findings):
    page = to_markdown(findings, images={"loop.png": b"", "targets.png": b""})
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles[:2] == ["Targets", "What to decide"]
    assert titles[2 : 2 + len(SECTIONS)] == list(SECTIONS.values())
    assert "- **conv**: ended by SIGSEGV" in page
    assert "- **clips 1.7b**: not begun: no time left" in page
    assert (
        page.index("## Missing")
        < page.index("**conv**")
        < page.index("## Not available here")
        < page.index("no kernels for")
    )
    assert "![A step of decoding, by the loop's settings](loop.png)" in page
    assert "(matvec.png)" not in page  # not drawn, not shown
    assert "NVIDIA H200" in page.splitlines()[0]
    assert "| loop 0.6b" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert all("| nan" not in line and "None" not in line for line in lines)
    only = to_markdown(findings, images=None, sections=["loop"])
    assert "## The decode loop" in only
    assert "## The machine" not in only


def test_files_are_read_whatever_is_wrong_in_them(tmp_path):
    measurement.append(tmp_path / RESULTS, gpu_lines.measurements())
    append_records(tmp_path / RECORDS, gpu_lines.records())
    with open(tmp_path / RESULTS, "a", encoding="utf-8") as f:
        f.write('{"schema": 1, "section": "lo')  # its process was ended here
    found = write_page(tmp_path)
    assert len(found.measurements) == len(gpu_lines.measurements())
    assert len(found.records) == len(gpu_lines.records())
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert f"- {RESULTS}:{len(gpu_lines.measurements()) + 1}: skipped, not JSON" in page
    assert str(tmp_path) not in page
    for image in re.findall(r"\]\((\w[\w-]*\.png)\)", page):
        assert (tmp_path / image).read_bytes().startswith(b"\x89PNG"), image
    assert {"targets.png", "matvec.png", "loop.png"} <= set(re.findall(r"\]\((\w[\w-]*\.png)\)", page))


def test_an_empty_folder_has_no_findings(tmp_path):
    assert read_findings(tmp_path).measurements == []
    with pytest.raises(UsageError):
        measurement.read(tmp_path / "absent.jsonl")


def test_plots_are_of_what_there_is(findings):
    assert {"targets.png", "matvec.png", "loop.png"} <= set(pictures.draw(findings))
    assert "loop.png" not in pictures.draw(without(findings, "loop"))
    assert "matvec.png" not in pictures.draw(without(findings, "matvec"))
    assert pictures.draw(Findings([], [])) == {}


def test_titles_are_for_people():
    line = Measurement("loop", "loop", {"preset": "0.6b", "policy": "bf16", "variant": "", "steps_per_check": 8})
    assert line.title() == "loop 0.6b bf16 steps_per_check=8"
    assert json.loads(line.to_json())["schema"] == measurement.SCHEMA
