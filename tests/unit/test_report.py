"""The log of measurements: what is in an entry, what is marked in it, and that nothing in it is lost or made up."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import warnings

import pytest

from qwen_asr_jax.bench import fields, plots, tables
from qwen_asr_jax.bench.baseline import compare
from qwen_asr_jax.bench.record import Record, read_records
from qwen_asr_jax.bench.report import write_report
from qwen_asr_jax.bench.summary import summarize
from qwen_asr_jax.errors import OutputError, QwenASRError, UsageError
from tests.bench_records import ENV, record

ROOT = pathlib.Path(__file__).parents[2]
OLD = ENV | {"date": "2026-01-01T00:00:00+00:00", "commit": "ffffffffffff"}
DRAW = plots.draw
NAME = "2026-01-02-cpu-0123456"


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Plots take time, so they are drawn only where a test is about them."""
    monkeypatch.setattr(plots, "draw", lambda rows: {})


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


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), (0.0, "0"), (1234.5, "1234"), (99.96, "100"), (9.996, "10.0"), (0.11, "0.110"), (0.00012, "0.000120")],
)
def test_three_digits(value, text):
    assert fields.digits(value) == text


def test_figures_of_a_transcription(tmp_path):
    page = write(tmp_path, full())
    (row,) = lines(section(page, "## Summary"))
    assert row["model"] == "test-model"
    assert row["clip"] == "clip.wav, 11.0 s"
    assert row["total ms"] == "1000 (990-1010)"
    assert (row["encode"], row["prefill"], row["decode"], row["TTFT ms"]) == ("500", "200", "250", "720")
    assert (row["tokens"], row["ms/token"], row["RTF"], row["RTFx"]) == ("25", "10.0", "0.0909", "11.0")
    assert (row["of floor"], row["CPU/wall"]) == ("62 %", "1.90")
    (row,) = lines(section(page, "## Stage breakdown"))
    assert [row[name] for name in ("mel", "encoder", "prefill", "decode", "other")] == [
        "10.0 (1 %)",
        "500 (50 %)",
        "200 (20 %)",
        "250 (25 %)",
        "40.0 (4 %)",
    ]


def test_header_says_where_the_figures_come_from(tmp_path):
    roofline = {"read_gb_s": 31.25, "f32_gflop_s": 165.0, "bf16_gflop_s": 340.0, "date": "2026-01-01T09:00:00+00:00"}
    page = write(tmp_path, full(roofline=roofline), title="One pass\nfor norms")
    assert page.startswith(
        "# One pass for norms\n\n2026-01-02\n\nTest CPU, 2 cores; backend cpu, 2 threads; python 3.12.1, jax 0.12.0"
    )
    assert (
        "commit `0123456789ab`; 3 runs after 1 warm-up. Roofline: 31.2 GB/s read, 165 GFLOP/s f32, 340 GFLOP/s bf16" in page
    )
    command = re.search(r"^    (python scripts/report.py .*)$", page, re.MULTILINE)[1]
    log = tmp_path.name
    wanted = f"{log}/{NAME}/results.jsonl --output={log} --name={NAME} --title='One pass for norms'"
    assert command == f"python scripts/report.py {wanted}"
    assert "column `env`" not in page
    assert "There are no plots" not in page


def test_environments_are_told_apart(tmp_path):
    page = write(tmp_path, full(), full(env=ENV | {"jax": "0.11.1", "dirty": True}))
    assert "Measured in 2 environments" in page
    assert "- **B**: Test CPU, 2 cores; backend cpu, 2 threads; python 3.12.1, jax 0.11.1" in page
    assert "with **uncommitted changes**" in page
    assert [row["env"] for row in lines(section(page, "## Summary"))] == ["A", "B"]


def test_rows_differ_in_what_they_show():
    rows = fields.make_rows([full(env=OLD | {"commit": ENV["commit"]}), full(), full(threads=4)])
    assert [(row.threads, row.repeat) for row in rows] == [("2", "#1"), ("2", "#2"), ("4", "")]
    assert fields.measured_at(rows[0].record) < fields.measured_at(rows[1].record)
    sweep = {"name": "chunks", "id": "1", "point": {"config": "a.py", "policy": "bf16"}}
    assert [row.point for row in fields.make_rows([full(sweep=sweep)])] == ["config=a.py"]
    page = tables.summary_table(fields.make_rows([full()]))
    assert not {"threads", "#", "env", "point", "backend", "batch"} & lines(page)[0].keys()


def test_other_workloads(tmp_path):
    runs = [{"total_ms": 300.0, "conv_stem_ms": 120.0, "transformer_ms": 176.0, "per_layer_ms": 9.77, "cpu_per_wall": 1.9}]
    contexts = [{"context_tokens": 64, "ms_per_token": 50.0, "gb_s": 30.0}, {"context_tokens": 1024, "ms_per_token": 63.0}]
    decode = [{"ms_per_token": ms, "total_ms": 32 * ms} for ms in (49.0, 50.0, 52.0)]
    load = [
        {"cold_import_s": 1.5, "warm_import_s": 1.4, "cold_import_rss_bytes": 2e8, "cold_total_s": 9.0, "warm_total_s": 3.0}
    ]
    roofline = record(workload="roofline", model=None, policy=None, audio=None)
    page = write(
        tmp_path,
        with_runs(record(workload="encoder", tokens=143.0), runs),
        with_runs(record(workload="prefill", tokens=150.0, gflop_s=151.0), runs),
        with_runs(record(workload="decode", tokens=32.0, gb_s=30.0, contexts=contexts, floor_fraction=0.9), decode),
        record(workload="batch", batch_size=8, rtfx=40.0),
        with_runs(roofline, [{"read_gb_s": 31.0, "bf16_4096_gflop_s": 340.0, "loop_step_us": 1.25}]),
        with_runs(record(workload="load"), load),
    )
    (encoder,), (prefill,), (batch,) = (lines(section(page, f"## {name}")) for name in ("Encoder", "Prefill", "Batches"))
    assert [encoder[name] for name in ("conv stem ms", "transformer ms", "ms/layer", "audio tokens")] == [
        "120",
        "176",
        "9.77",
        "143",
    ]
    assert [prefill[name] for name in ("prompt tokens", "total ms", "ms/token", "GFLOP/s")] == ["150", "300", "2.00", "151"]
    assert [batch[name] for name in ("batch", "audio s/s", "tokens/s")] == ["8", "40.0", "-"]
    (row,) = lines(section(page, "## Decode"))
    assert [row[name] for name in ("ms/token", "GB/s", "of floor")] == ["50.0 (49.0-52.0)", "30.0", "90 %"]
    growth = [(row["context tokens"], row["against the first"]) for row in lines(section(page, "## Decode against context"))]
    assert growth == [("64", "-"), ("1024", "+26 %")]
    limits = {row["figure"]: (row["median"], row["unit"]) for row in lines(section(page, "## Roofline"))}
    assert limits == {"read": ("31.0", "GB/s"), "bf16 4096": ("340", "GFLOP/s"), "loop step": ("1.25", "µs")}
    phases = {row["phase"]: row for row in lines(section(page, "## Start-up"))}
    assert [phases["import"][name] for name in ("cold s", "warm s", "RSS after, cold MB", "warm MB")] == [
        "1.50",
        "1.40",
        "200",
        "-",
    ]
    assert phases["total"]["warm s"] == "3.00"
    assert "nan" not in page.lower()
    assert "None" not in page


def memory(weights: dict[str, int], cache: int, peak: int) -> dict:
    return {"weights": weights, "cache_bytes": cache, "temp_bytes": {"encode": 5e7, "prefill": 8e7}, "peak_rss_bytes": peak}


def test_memory_saved_against_fp32(tmp_path):
    single = memory({"float32": 3_000_000_000}, 200_000_000, 4_000_000_000)
    half = memory({"bfloat16": 1_490_000_000, "float32": 10_000_000}, 100_000_000, 2_400_000_000)
    larger = memory(half["weights"], 900_000_000, 5_000_000_000)  # work that fp32 was not measured on
    page = write(
        tmp_path,
        full(policy="fp32", memory=single),
        full(memory=half),
        record(workload="batch", batch_size=8, memory=larger),
    )
    bf16, fp32 = lines(section(page, "## Memory"))
    assert (bf16["weights MB"], bf16["by dtype"]) == ("1500", "bfloat16 1490, float32 10.0")
    assert (bf16["cache MB"], bf16["largest temp MB"], bf16["peak RSS MB"]) == ("900", "80.0 (prefill)", "5000")
    assert (bf16["weights saved"], bf16["cache saved"], bf16["RSS saved"]) == ("50 %", "50 %", "40 %")
    assert fp32["weights saved"] == "-"
    assert "peak device MB" not in fp32


def test_before_and_after(tmp_path):
    gone, bare = record(workload="batch", batch_size=2), with_runs(record(workload="batch", batch_size=4), [{"tokens": 1.0}])
    write(tmp_path, *(dataclasses.replace(r, env=OLD) for r in (full(), full(policy="fp32"), gone, bare)), name="first")
    same, faster = full(1.001), full(0.75, policy="fp32", transcript={"sha256": "1"})
    page = write(tmp_path, same, faster, full(policy="fp16"), bare, baseline="first")
    part = section(page, "## Before and after")
    assert "[first](../first/README.md)" in part
    assert "commit ffffffffffff -> 0123456789ab" in part
    bf16, fp32 = lines(section(page, "### full"))
    assert (bf16["before"], bf16["after"], bf16["delta"], bf16["verdict"]) == ("1000", "1001", "+0.1 %", "noise")
    assert (fp32["before"], fp32["after"], fp32["delta"]) == ("1000", "750", "-25.0 %")
    assert (fp32["after/before"], fp32["verdict"], fp32["encode"], fp32["text"]) == ("0.750", "faster", "-25.0 %", "-")
    assert "- Only in the baseline: 1 (batch 1)." in part
    assert "- Without a counterpart in the baseline: 1 (full 1)." in part
    assert "- Measured in both, but with no figure in common: 1 (batch 1)." in part
    assert f"--name={NAME} --baseline=first" in page


def test_more_per_second_is_faster_and_one_run_proves_nothing(tmp_path):
    before, after = ([{"audio_s_per_s": value * i} for i in (1, 1.01)] for value in (20.0, 30.0))
    batch = record(workload="batch", batch_size=2)
    write(tmp_path, with_runs(batch, before), full(runs=1), name="first")
    page = write(
        tmp_path,
        with_runs(batch, after),
        full(0.5, runs=1),
        name="second",
        baseline=str(tmp_path / "first" / "results.jsonl"),
    )
    assert lines(section(page, "### batch"))[0]["verdict"] == "faster"
    assert lines(section(page, "### full"))[0]["verdict"] == "single run"


def test_counterparts():
    renamed = {"name": "other-name", "fingerprint": "ab" * 32}
    unknown = {"name": "test-model", "fingerprint": None}
    other = {"name": "test-model", "fingerprint": "00" * 32}
    for model, pairs in ((renamed, 1), (unknown, 1), (other, 0)):
        assert len(compare([full()], [full(model=model)]).pairs) == pairs, model
    for change in (
        {"threads": 4},
        {"policy": "fp16"},
        {"device": "x"},
        {"backend": "gpu"},
        {"batch_size": 2},
        {"audio": None},
    ):
        assert not compare([full()], [full(**change)]).pairs, change
    failed = compare([full()], [full(error="out of memory")])
    assert (failed.pairs, len(failed.gone)) == ([], 1)
    repeated = compare([full(2.0, env=OLD), full(1.0)], [full(0.5)])
    assert [before.ms_per_token for before, _ in repeated.pairs] == [10.0]
    assert repeated.repeats == 1


def test_what_is_not_known_is_marked(tmp_path):
    page = write(
        tmp_path, full(env=ENV | {"commit": None}), full(policy="fp32"), full(policy="fp16", env=ENV | {"dirty": True})
    )
    models = [row["model"] for row in lines(section(page, "## Summary"))]
    assert models == ["test-model †", "test-model †", "test-model"]
    footnote = section(page, "## Provenance")
    assert footnote.startswith("\n† ")
    assert "- without commit: full 1" in footnote
    assert "- uncommitted changes: full 1" in footnote
    assert "†" not in write(tmp_path, full(), name="known")


def test_recompiles_are_loud(tmp_path):
    bad = full(0.1, compile={"count": 3, "cached": 0, "seconds": 2.0, "recompiles": 2})
    page = write(tmp_path, bad, full(policy="fp32"))
    assert "> **INVALID: 1 of 2 records" in page
    assert lines(section(page, "## Summary"))[0]["model"] == "**INVALID** test-model"
    assert lines(section(page, "## Compilation"))[0]["recompiles"] == "**2**"
    index = (tmp_path / "README.md").read_text()
    assert "fp32: RTFx 11.0" in index
    assert "bf16" not in index
    page = write(tmp_path, full(), baseline=NAME, name="next")
    assert lines(section(page, "### full"))[0]["verdict"] == "**INVALID**"


def test_failed_points_stay(tmp_path):
    sweep = {"name": "many", "id": "1", "point": {"policy": "fp16", "threads": 7}}
    failed = record(
        totals_ms=(1.0,), policy="fp16", runs=[], summary={}, backend="auto", error="no | memory\n<at> all", sweep=sweep
    )
    page = write(tmp_path, full(), failed)
    (row,) = lines(section(page, "## Failed"))
    assert (row["error"], row["workload"], row["asked for"]) == (
        r"no \| memory &lt;at> all",
        "full",
        "policy=fp16 threads=7",
    )
    assert len(lines(section(page, "## Summary"))) == 1
    assert "environments" not in page
    assert "Measured as sweep `many`" in page
    only = write_report([failed], tmp_path / "only")
    assert only.records == 1


def test_records_are_kept_and_identical_ones_count_once(tmp_path):
    records = [full(env=OLD), full(), full()]
    written = write_report(records, tmp_path)
    assert (written.folder.name, written.records) == (NAME, 2)
    kept, problems = read_records([written.folder / "results.jsonl"])
    assert (kept, problems) == (records[:2], [])


def test_sparse_and_odd_records(tmp_path):
    nothing = record(
        model={}, audio={"seconds": "long"}, env={}, compile={}, notes=("$a_b$", "x|y"), memory={"weights": None}
    )
    odd = dataclasses.replace(nothing, contexts=[{}], roofline={"read_gb_s": "fast"}, floor={"total_ms": {}}, threads=None)
    workloads = [
        dataclasses.replace(odd, workload=name) for name in ("full", "encoder", "prefill", "decode", "batch", "load")
    ]
    page = write(tmp_path, *workloads, dataclasses.replace(odd, workload="roofline", model=None, audio=None))
    assert page.startswith("# undated-cpu-unknown\n\nUndated\n")
    assert "None" not in page
    assert "- without date: full 1, encoder 1" in page
    assert "- $a_b$ (full, encoder, " in section(page, "## Remarks")


def test_plots(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "draw", DRAW)
    contexts = [{"context_tokens": n, "ms_per_token": 50.0 + n / 100, "gb_s": 30.0} for n in (64, 4096)]
    decode = record(workload="decode", contexts=contexts, roofline={"read_gb_s": 32.0})
    batches = [record(workload="batch", batch_size=n, rtfx=10.0 * n) for n in (1, 16)]
    long = full(audio={"name": "_$x$ 音.wav", "sha256": "1", "seconds": 600.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write(tmp_path, full(), long, decode, *batches)
    folder = tmp_path / NAME
    for name, alt in plots.PLOTS.items():
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"![{alt}]({name})" in page
    page = write(tmp_path, record(workload="load"), name=NAME)
    assert "![" not in page
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "results.jsonl"]


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", DRAW)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    written = write_report([full()], tmp_path)
    assert written.plots == 0
    assert written.remarks == (plots.HOW_TO_GET,)
    page = (written.folder / "README.md").read_text()
    assert 'pip install -e ".[plots]"' in page
    assert "![" not in page


def test_replacing_an_entry_leaves_other_files(tmp_path):
    write(tmp_path, full(2.0), name="entry")
    (tmp_path / "entry" / "notes.md").write_text("by hand")
    written = write_report([full()], tmp_path, name="entry")
    assert written.replaced
    page = (tmp_path / "entry" / "README.md").read_text()
    assert "| 1000 (990-1010) |" in page
    assert "[notes.md](notes.md)" in page
    assert (tmp_path / "entry" / "notes.md").read_text() == "by hand"
    assert not list(tmp_path.rglob(".partial*"))


def test_index_lists_entries_newest_first(tmp_path):
    write(tmp_path, full(env=OLD), name="z old", title="How it began")
    write(tmp_path, full(), full(policy="fp32", rtfx=99.0), name="new")
    (tmp_path / "drafts").mkdir()
    new, old = lines((tmp_path / "README.md").read_text())
    assert new["entry"] == "[new](new/README.md)"
    assert (new["date"], new["device"], new["models"]) == ("2026-01-02", "Test CPU", "test-model")
    assert new["best"] == "test-model bf16: RTFx 11.0, 10.0 ms/token<br>test-model fp32: RTFx 99.0, 10.0 ms/token"
    assert (old["entry"], old["title"], old["date"]) == ("[z old](z%20old/README.md)", "How it began", "2026-01-01")


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"name": "../up"}, "is not the name of a folder"),
        ({"name": ""}, "is not the name of a folder"),
        ({"name": ".hidden"}, "is not the name of a folder"),
        ({"baseline": "first"}, "no such entry"),
        ({"baseline": "gone.jsonl"}, "cannot be read"),
        ({"name": "one", "baseline": "one"}, "its own baseline"),
    ],
)
def test_wrong_arguments(tmp_path, options, reason):
    with pytest.raises(UsageError, match=reason):
        write_report([full()], tmp_path / "log", **options)
    assert not (tmp_path / "log").exists()


def test_nothing_to_report(tmp_path):
    with pytest.raises(QwenASRError, match="no record") as raised:
        write_report([], tmp_path)
    assert not isinstance(raised.value, UsageError)


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report([full()], tmp_path / "file")
    (tmp_path / "log" / NAME / "README.md").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"README.md: cannot be written"):
        write_report([full()], tmp_path / "log")
    assert not list(tmp_path.rglob(".partial*"))


def script(*arguments: object, status: int = 0) -> str:
    """Runs report.py; returns its stderr. Nothing is on stdout, and there is no traceback."""
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: assert 'jax' not in sys.modules, 'JAX was imported'"
    command = [sys.executable, "-c", code, f"{ROOT}/scripts/report.py", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    return done.stderr


def test_script_keeps_what_can_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(full().to_json() + '\n{"schema": 1, "work\n')
    (tmp_path / "b.jsonl").write_text(full(policy="fp32").to_json())
    err = script(tmp_path / "a.jsonl", tmp_path / "b.jsonl", f"--output={tmp_path}/log", "--name=one", "--title=One")
    first, *_, last = err.splitlines()
    assert first.startswith(f"report.py: {tmp_path}/a.jsonl:2: skipped, not JSON")
    assert last.startswith(f"report.py: wrote {tmp_path}/log/one: 2 records")
    page = (tmp_path / "log" / "one" / "README.md").read_text()
    assert page.startswith("# One\n")
    assert "- a.jsonl:2: skipped, not JSON" in section(page, "## Not readable")
    assert str(tmp_path) not in page
    kept = (tmp_path / "log" / "one" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["policy"] for line in kept] == ["bf16", "fp32"]


def test_script_failures_are_one_line(tmp_path):
    err = script(status=2)
    assert err == "report.py: no records given; usage: report.py RECORDS.jsonl [...] --output=DIR\n"
    (tmp_path / "empty.jsonl").write_text("")
    err = script(tmp_path / "empty.jsonl", f"--output={tmp_path}/log", status=1)
    assert err == "report.py: there is no record in these files; nothing was written\n"
    (tmp_path / "one.jsonl").write_text(full().to_json())
    err = script(tmp_path / "one.jsonl", f"--output={tmp_path}/empty.jsonl", status=1)
    assert (err.count("\n"), "cannot be written" in err) == (1, True)
