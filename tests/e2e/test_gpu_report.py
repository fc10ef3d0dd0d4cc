"""gpu_report.py as a user runs it, on a CPU: every section with tiny shapes, a part of them, an interrupt, wrong usage."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from qwen_asr_jax.bench.gpu.findings import read_findings
from qwen_asr_jax.bench.gpu.measurement import PROGRAMS, STEPS
from qwen_asr_jax.bench.gpu.plan import SECTIONS, make_plan
from qwen_asr_jax.bench.record import MAIN_FIGURE

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def command(output, *arguments):
    return [sys.executable, f"{ROOT}/scripts/gpu_report.py", f"--output={output}", *arguments]


def report(output, *arguments, status=0):
    """Runs the script; returns stderr, the page if there is one, and what the files hold."""
    done = subprocess.run(command(output, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    page = output / "README.md"
    return done.stderr, page.read_text(encoding="utf-8") if page.exists() else "", read_findings(output)


def test_every_section_runs_here(tmp_path):
    output = tmp_path / "report"
    err, page, findings = report(output, "--quick", "--time_limit_s=900")
    assert findings.problems == ()
    assert findings.gaps() == [], err
    measured = {each.section for each in findings.measurements if each.error is None}
    assert set(SECTIONS) - measured <= {"workloads", "compile"}  # these two are records
    assert {record.workload for record in findings.records} == set(MAIN_FIGURE)
    assert all(not record.error for record in findings.records)
    plan = make_plan([], quick=True)
    assert {each.name for each in findings.select(STEPS)} == {each.name for each in (*plan.steps, *plan.preparations)}
    assert all(each.figures["equal_tokens"] == 2 for each in findings.select("loop", "loop"))
    assert all(each.figures["different_tokens"] == 1 for each in findings.select("loop", "loop"))
    (texts,) = findings.select("parity", "transcripts", implementation="xla")
    assert texts.figures["equal"] == texts.figures["right"] == texts.figures["clips"]
    first, again = (findings.select(PROGRAMS, f"memory tiny bf16 {state}")[0] for state in ("first", "again"))
    assert first.figures["from_cache"] < again.figures["from_cache"] == again.figures["programs"]
    assert "Nothing was measured." not in page
    assert "checks the report; its figures mean nothing" in page
    for title in SECTIONS.values():
        assert f"## {title}" in page
    for image in re.findall(r"\]\((\w[\w-]*\.png)\)", page):
        assert (output / image).exists()
    for said in ("loop tiny bf16", "full tiny bf16", "matvec product tiny", "0 missing"):
        assert said in err
    assert str(tmp_path) not in page
    assert sorted(path.suffix for path in output.iterdir() if path.suffix != ".png") == [".jsonl", ".jsonl", ".md"]


def test_a_part_is_added_to_what_is_there(tmp_path):
    kept = tmp_path / "kept"
    flags = ("--quick", f"--work_dir={kept}", "--time_limit_s=600")
    _, page, findings = report(tmp_path / "out", "--sections=conv", *flags)
    assert "## The conv stem" in page
    assert "## The machine" not in page
    conv = findings.select("conv")
    assert len(conv) == 2
    assert (kept / "xla").is_dir()
    _, _, findings = report(tmp_path / "out", "--sections=conv", *flags)
    assert len(findings.select("conv")) == len(conv)  # the newer ones count
    (programs,) = findings.select(PROGRAMS)
    assert programs.figures["from_cache"] == programs.figures["programs"] > 0  # which were kept
    err, page, _ = report(tmp_path / "out", "--rewrite")
    assert "0 missing" in err
    assert "## The machine\n\nNothing was measured." in page


def test_an_interrupt_leaves_a_page(tmp_path):
    output = tmp_path / "out"
    begin = command(output, "--quick", "--time_limit_s=600")
    with subprocess.Popen(begin, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline() + process.stderr.readline()  # what is planned; something has been measured
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        err = first + process.stderr.read()
    assert process.returncode == 130, err
    assert time.monotonic() - begun < 60
    page = (output / "README.md").read_text(encoding="utf-8")
    assert "**Interrupted.**" in page
    assert "## Missing" in page
    assert "not begun: interrupted" in page
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--output="], "usage: gpu_report.py --output=DIR"),
        (["--sections=speed"], "unknown section 'speed': choose of machine"),
        (["somewhere"], "usage: gpu_report.py"),
        (["--time_limit_s=1"], "time_limit_s"),
        (["--rewrite"], "holds no results.jsonl"),
    ],
)
def test_wrong_usage(tmp_path, arguments, said):
    err, page, _ = report(tmp_path, *arguments, status=2)
    assert said in err
    assert err.count("\n") == 1
    assert page == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_known_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    err, _, _ = report(tmp_path / "file" / "out", "--quick", status=1)
    assert "results cannot be written there" in err
