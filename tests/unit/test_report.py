"""The log of measurements: what is in an entry, what is marked in it, and that nothing in it is lost or made up."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import warnings

import pytest

from qwen_asr_jax.bench import fields, plots
from qwen_asr_jax.bench.record import Record, read_records
from qwen_asr_jax.bench.report import write_report
from qwen_asr_jax.errors import OutputError, QwenASRError, UsageError
from tests.bench_records import ENV, record
from tests.report_pages import NAME, OLD, full, lines, section, write

ROOT = pathlib.Path(__file__).parents[2]
DRAW = plots.draw


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Plots take time, so they are drawn only where a test is about them."""
    monkeypatch.setattr(plots, "draw", lambda rows: {})


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


@pytest.mark.parametrize("order", [1, -1])
def test_failures_that_were_measured_later_are_left_out(tmp_path, order):
    def point(name: str, **changes) -> Record:
        return full(sweep={"name": "many", "id": name, "point": {}}, **changes)

    elsewhere = ENV | {"cpu": "Larger CPU", "date": "2026-01-03T00:00:00+00:00"}
    first, second = (
        dataclasses.replace(point(name, env=env), runs=[], summary={}, error="no memory")
        for name, env in (("retried", OLD), ("never", OLD))
    )
    broken = dataclasses.replace(point("fell ill"), env=ENV, runs=[], summary={}, error="no memory")
    records = [first, second, broken, point("retried"), point("fell ill", env=OLD), point("never", env=elsewhere)]
    written = write_report(records[::order], tmp_path, name="one")
    kept, _ = read_records([written.folder / "results.jsonl"])
    assert [r for r in records if r not in kept] == [first]
    assert written.remarks == ("failed records left out, as their points were measured later: 1",)
    page = (written.folder / "README.md").read_text()
    assert len(lines(section(page, "## Failed"))) == 2
    assert "## Not readable" not in page


def test_an_entry_of_the_default_name_is_not_lost(tmp_path):
    first, second = full(), full(policy="fp32")
    write(tmp_path, first)
    assert write_report([first, second], tmp_path).replaced  # nothing of it is lost
    before = (tmp_path / NAME / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match=rf"{NAME}: this entry holds other records; .* --name={NAME}$"):
        write_report([second], tmp_path)
    assert (tmp_path / NAME / "results.jsonl").read_bytes() == before
    assert write_report([second], tmp_path, name="another").folder.name == "another"
    assert write_report([second], tmp_path, name=NAME).records == 1
    sweep = {"name": "many", "id": "1", "point": {}}
    failed = dataclasses.replace(full(sweep=sweep, policy="fp16", env=OLD), runs=[], summary={}, error="no memory")
    write(tmp_path, second, failed, name=NAME)
    write_report([second, full(sweep=sweep, policy="fp16")], tmp_path)  # a failure that is history by now
    (tmp_path / NAME / "results.jsonl").write_text("of another version\n")
    with pytest.raises(UsageError, match="other records"):
        write_report([second], tmp_path)


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


def plotted(draw, monkeypatch) -> dict[str, dict[str, list]]:
    """The lines of each plot by label, as x and y; drawn lines without points are left out."""
    found: dict[str, dict[str, list]] = {}
    monkeypatch.setattr(
        plots,
        "png",
        lambda figure: found.setdefault(
            figure.axes[0].get_title(),
            {line.get_label(): list(map(list, line.get_data())) for line in figure.axes[0].lines if len(line.get_xdata())},
        ),
    )
    draw()
    return found


def test_plots_do_not_mix_what_differs(monkeypatch):
    pytest.importorskip("matplotlib")

    def audio(name: str, seconds: float = 11.0) -> dict:
        return {"name": name, "sha256": name, "seconds": seconds}

    cut = {"finish_reason": "length"}
    batches = [
        record(workload="batch", batch_size=n, rtfx=rate * n, audio=audio(name + f" x{n}" * (n > 1)), transcript=transcript)
        for n in (1, 2)
        for name, rate, transcript in (("a.wav", 1.0, None), ("silence 5 s", 9.0, cut))
    ]
    clips = [full(rtfx=rate, audio=audio(name, s)) for name, s, rate in (("a", 5, 1), ("b", 5, 2), ("c", 9, 3))]
    quiet = full(rtfx=8.0, audio=audio("silence 5 s", 5))
    contexts = [[{"context_tokens": n, "ms_per_token": ms} for n in (64, 256)] for ms in (10.0, 30.0)]
    steps = [record(workload="decode", batch_size=b, contexts=at) for b, at in zip((1, 8), contexts, strict=True)]
    found = plotted(lambda: DRAW(fields.make_rows([*batches, *clips, quiet, *steps])), monkeypatch)
    assert found[plots.PLOTS["batch.png"]] == {
        "test-model bf16 a.wav": [[1, 2], [1, 2]],
        "test-model bf16 silence 5 s ‡": [[1, 2], [9, 18]],
    }
    rtfx = found[plots.PLOTS["rtfx.png"]]
    assert rtfx.pop("real time")
    assert rtfx == {
        "test-model bf16": [[9], [3]],
        "test-model bf16 a": [[5], [1]],
        "test-model bf16 b": [[5], [2]],
        "test-model bf16 silence": [[5], [8]],
    }
    assert found[plots.PLOTS["decode-context.png"]] == {
        "test-model bf16 batch 1": [[64, 256], [10, 10]],
        "test-model bf16 batch 8": [[64, 256], [30, 30]],
    }


def test_long_labels_do_not_touch(monkeypatch):
    pytest.importorskip("matplotlib")
    sweep = {"name": "flags", "id": "1", "point": {"env": {"XLA_FLAGS": " ".join(["--xla_some_long_flag=true"] * 6)}}}
    records = [full(), full(sweep=sweep), full(policy="fp32", sweep=sweep)]
    apart = []

    def look(figure):
        figure.draw_without_rendering()
        for axes in figure.axes:
            boxes = sorted((label.get_window_extent() for label in axes.get_yticklabels()), key=lambda box: box.y0)
            apart.extend(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(boxes))

    monkeypatch.setattr(plots, "png", look)
    DRAW(fields.make_rows(records))
    assert apart
    assert all(apart)


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
    assert new["best"] == (
        "test-model bf16: RTFx 11.0 (clip.wav, 25 tokens), 10.0 ms/token"
        "<br>test-model fp32: RTFx 99.0 (clip.wav, 25 tokens), 10.0 ms/token"
    )
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
