"""Sweeps over a stand-in for bench.py: resuming, failing points, kills, and configs that make no sense."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from qwen_asr_jax.bench.record import parse, read_records
from qwen_asr_jax.bench.sweep import FLAGS, Point, Sweep, _content, grid, points_of, sweep_config, without_folders
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.json_lines import alone
from tests.bench_records import record

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("sweep_*.py"))

STAND_IN = """
import json, os, sys, time
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
with open({log!r}, "a") as log:
    print(json.dumps(flags | {{"x": os.environ.get("X"), "pid": os.getpid()}}), file=log)
if "fp16" in (flags.get("policy"), flags.get("config", "")[8:12]):
    sys.exit("bench.py: it is too hot today")
if flags.get("policy") == "hang" and not os.path.exists({log!r} + ".go"):
    time.sleep(600)
with open(flags["output_json"], "a") as f:
    f.write({line!r} + "\\n")
    if flags.get("policy") == "half":
        sys.exit("bench.py: /data/b.wav: too long")
if flags.get("policy") == "invalid":
    with open(flags["output_json"], "w") as f:
        f.write({invalid!r} + "\\n")
    sys.exit("bench.py: compiled inside measured runs")
"""


@pytest.fixture
def bench(tmp_path):
    """The stand-in's path; it writes one record, fails under fp16, and logs its flags."""
    script = tmp_path / "bench.py"
    invalid = record(compile={"count": 1, "cached": 0, "seconds": 1.0, "recompiles": 3})
    script.write_text(STAND_IN.format(log=str(tmp_path / "log"), line=record().to_json(), invalid=invalid.to_json()))
    return script


def calls(bench):
    log = bench.with_name("log")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def sweep(tmp_path, points, retry_failed=False):
    return Sweep("try", tmp_path / "runs.jsonl", points_of(sweep_config(points, runs=2)), retry_failed=retry_failed)


def test_grid_is_the_product():
    assert grid(a=[1, 2], b=["x", "y"]) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


def test_each_point_is_a_process_with_its_flags(tmp_path, bench):
    points = [{"policy": "bf16", "audio": ["a.wav", "b.wav"]}, {"policy": "fp32", "env": {"X": "1"}}]
    assert [error for _, error in sweep(tmp_path, points).run(bench, 60)] == [None, None]
    first, second = calls(bench)
    for name in ("output_json", "pid"):
        assert first.pop(name) != second.pop(name)
    assert first == {"policy": "bf16", "audio": "a.wav,b.wav", "runs": "2", "x": None}
    assert second == {"policy": "fp32", "runs": "2", "x": "1"}
    records, problems = read_records([tmp_path / "runs.jsonl"])
    assert problems == []
    assert [r.sweep["point"] for r in records] == [points[0] | {"audio": "a.wav,b.wav"}, points[1]]
    assert records[0].sweep["name"] == "try"
    assert len({r.sweep["id"] for r in records}) == 2


def test_what_is_there_is_not_measured_again(tmp_path, bench):
    points = grid(policy=["bf16", "fp32"])
    next(iter(sweep(tmp_path, points).run(bench, 60)))
    assert len(calls(bench)) == 1
    assert [str(point) for point in sweep(tmp_path, points).remaining()] == ["policy=fp32"]
    assert len(list(sweep(tmp_path, points).run(bench, 60))) == 1
    assert list(sweep(tmp_path, points).run(bench, 60)) == []
    assert [call["policy"] for call in calls(bench)] == ["bf16", "fp32"]
    changed = sweep_config(points, runs=3)  # other flags are other points
    assert len(Sweep("try", tmp_path / "runs.jsonl", points_of(changed), retry_failed=False).remaining()) == 2


def test_a_failing_point_is_kept_and_the_others_go_on(tmp_path, bench):
    points = grid(policy=["fp16", "bf16"])
    assert [error for _, error in sweep(tmp_path, points).run(bench, 60)] == ["it is too hot today", None]
    records, _ = read_records([tmp_path / "runs.jsonl"])
    assert [(r.policy, r.error, r.runs == []) for r in records] == [
        ("fp16", "it is too hot today", True),
        ("bf16", None, False),
    ]
    assert sweep(tmp_path, points).remaining() == []
    assert [str(p) for p in sweep(tmp_path, points, retry_failed=True).remaining()] == ["policy=fp16"]


def test_an_invalid_result_is_kept_as_it_is(tmp_path, bench):
    ((_, error),) = sweep(tmp_path, grid(policy=["invalid"])).run(bench, 60)
    (kept,), _ = read_records([tmp_path / "runs.jsonl"])
    assert error == "compiled inside measured runs"
    assert (kept.error, kept.compile["recompiles"], kept.runs != []) == (None, 3, True)


def test_a_point_that_fails_half_way_keeps_what_it_had(tmp_path, bench):
    """One clip was measured, the next one failed."""
    points = grid(policy=["half"])
    ((_, error),) = sweep(tmp_path, points).run(bench, 60)
    good, failed = read_records([tmp_path / "runs.jsonl"])[0]
    assert error == failed.error == "b.wav: too long"
    assert (good.error, good.runs != []) == (None, True)
    assert sweep(tmp_path, points).failed_before() == points_of(sweep_config(points, runs=2))
    assert [str(p) for p in sweep(tmp_path, points, retry_failed=True).remaining()] == ["policy=half"]


def test_results_hold_no_folders(tmp_path, bench):
    points = [{"model_dir": "/home/somebody/models/0.6b", "audio": ["/data/a.wav", "b.wav"], "policy": "fp16"}]
    list(sweep(tmp_path, points).run(bench, 60))
    (failed,), _ = read_records([tmp_path / "runs.jsonl"])
    assert failed.sweep["point"] == {"model_dir": "0.6b", "audio": "a.wav,b.wav", "policy": "fp16"}
    assert (failed.model["name"], failed.audio["name"]) == ("0.6b", "a.wav,b.wav")
    assert without_folders("/a/b/d.wav: gone; not /x/y.json") == "d.wav: gone; not y.json"
    assert without_folders("1 GB/s and/or 3/4 of --x=a/b") == "1 GB/s and/or 3/4 of --x=a/b"


def test_failed_points_say_what_was_asked_for(tmp_path, bench):
    points = [{"runs": 3, "workload": "decode", "policy": "fp16"}, {"config": "configs/fp16.py", "runs": 4}]
    list(sweep(tmp_path, points).run(bench, 60))
    first = read_records([tmp_path / "runs.jsonl"])[0][0]
    assert (first.workload, first.policy, first.model) == ("decode", "fp16", {"name": "default"})


def test_another_file_of_the_same_name_is_another_point(tmp_path, tiny_original):
    clip = tmp_path / "clip.wav"
    found = []
    for content in (b"one", b"two", b"one"):
        _content.cache_clear()
        clip.write_bytes(content)
        (point,) = points_of(sweep_config([{"audio": str(clip), "model_dir": str(tiny_original)}]))
        found.append(point.id)
    assert found[0] == found[2] != found[1]


def test_one_sweep_per_file(tmp_path):
    path = tmp_path / "runs.jsonl"
    with alone(path, "sweep"), pytest.raises(UsageError, match="another sweep is writing there"), alone(path, "sweep"):
        pass
    with alone(path, "sweep"):
        assert path.exists()


def test_flags_that_mean_nothing_to_a_workload_are_left_out():
    points = points_of(
        sweep_config([{"workload": "roofline"}, {"workload": "load"}, {"workload": "decode"}], decode_tokens=9)
    )
    assert [dict(point.flags) for point in points] == [
        {"workload": "roofline"},
        {"workload": "load"},
        {"workload": "decode", "decode_tokens": "9"},
    ]


def test_a_point_that_hangs_is_ended(tmp_path, bench):
    ((_, error),) = sweep(tmp_path, grid(policy=["hang"])).run(bench, 0.7)
    assert error.endswith("the time limit")


def test_a_corrupt_line_is_reported_and_its_point_measured_again(tmp_path, bench):
    points = grid(policy=["bf16", "fp32"])
    list(sweep(tmp_path, points).run(bench, 60))
    path = tmp_path / "runs.jsonl"
    path.write_text(path.read_text()[:-40])
    again = sweep(tmp_path, points)
    assert len(again.problems) == 1
    assert [str(point) for point in again.remaining()] == ["policy=fp32"]
    list(again.run(bench, 60))
    records, problems = read_records([path])
    assert len(records) == 2
    assert len(problems) == 1


@pytest.mark.parametrize(
    "points, reason",
    [
        ([], "no points"),
        ([{"polcy": "bf16"}], "cannot set polcy"),
        ([{"workload": "sing"}], "unknown workload 'sing'"),
        (grid(policy=["bf16", "bf16"]), "'policy=bf16' is there 2 times"),
        ([{"env": "X=1"}], "env of a point must be a mapping"),
        ([{"batch_size": [1, 2]}], "batch_size of a point must be a whole number"),
        ([{"runs": 0}], "runs of a point must be a whole number from 1 on, got 0"),
    ],
)
def test_sweeps_that_make_no_sense(points, reason):
    with pytest.raises(UsageError, match=reason):
        points_of(sweep_config(points))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_sweeps(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    points = points_of(module.get_config())
    assert len(points) >= 2
    assert all(isinstance(point, Point) and str(point) for point in points)
    assert {path.stem for path in CONFIGS} >= {
        f"sweep_{name}" for name in ("policies", "threads", "audio_length", "batch", "models", "log")
    }


def test_a_sweep_knows_the_flags_of_the_bench():
    source = (ROOT / "scripts" / "bench.py").read_text() + (ROOT / "qwen_asr_jax" / "cli.py").read_text()
    defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    assert set(FLAGS) <= defined
    assert defined - set(FLAGS) == {"output_json", "profile_dir", "verbose"}


# The real script, with the stand-in beside it in place of bench.py.


@pytest.fixture
def script(tmp_path, bench):
    copy = tmp_path / "sweep.py"
    copy.write_text((ROOT / "scripts" / "sweep.py").read_text())
    config = "from qwen_asr_jax.bench.sweep import *\ndef get_config():\n    return sweep_config(grid(policy={}))\n"

    def command(policies, *arguments):
        (tmp_path / "small.py").write_text(config.format(policies))
        return [sys.executable, str(copy), f"--config={tmp_path / 'small.py'}", f"--output={tmp_path / 'runs'}", *arguments]

    return command


def run(command, status=0):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    return done.stderr.splitlines(), done.stdout.splitlines()


def test_script(tmp_path, script, bench):
    said, _ = run(script(["bf16", "fp16", "fp32"]), status=1)
    assert said[0] == "sweep.py: 1/3  policy=bf16"
    assert said[1] == "sweep.py: 2/3  policy=fp16: FAILED, it is too hot today"
    assert said[3].startswith("sweep.py: 1 of 3 points failed (")
    again, _ = run(script(["bf16", "fp16", "fp32"]), status=1)  # nothing is left, but not all is well
    assert again[0].startswith("sweep.py: 3 of 3 points are in ")
    assert "it is too hot today" in (tmp_path / "runs" / "small.log").read_text()
    assert len(calls(bench)) == 3
    _, listed = run(script(["bf16", "fp16", "fp32"], "--retry_failed", "--list"))
    assert [line.split("  ")[1] for line in listed] == ["policy=fp16"]
    run(script(["bf16"], "--config.base.runs=9"))
    assert calls(bench)[-1]["runs"] == "9"


def test_script_killed_in_the_middle_resumes(tmp_path, script, bench):
    command = script(["bf16", "hang", "fp32"])
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while len(calls(bench)) < 2:
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 130
        assert running.stderr.read().splitlines()[-1] == "sweep.py: interrupted"
    assert not pathlib.Path(calls(bench)[-1]["output_json"]).parent.exists()
    with open(tmp_path / "runs" / "small.jsonl") as f:
        assert [parse(line).sweep["point"]["policy"] for line in f] == ["bf16"]
    still_there = pathlib.Path(f"/proc/{calls(bench)[-1]['pid']}/cmdline")
    assert not still_there.exists() or not still_there.read_bytes()  # gone with the sweep, or waiting to be buried
    (tmp_path / "log.go").touch()
    run(command)
    assert [call["policy"] for call in calls(bench)] == ["bf16", "hang", "hang", "fp32"]


def test_script_with_wrong_usage(tmp_path, script):
    assert run([sys.executable, f"{ROOT}/scripts/sweep.py"], status=2)[0][0].startswith("sweep.py: usage: ")
    (said,), _ = run(script(["bf16"], "--config.base.colour=red"), status=2)
    assert "colour" in said
    (said,), _ = run([sys.executable, f"{ROOT}/scripts/sweep.py", f"--config={ROOT}/configs/bf16.py"], status=2)
    assert "it is no sweep" in said
    (said,), _ = run([sys.executable, f"{ROOT}/scripts/sweep.py", f"--config={tmp_path}/absent.py"], status=2)
    assert "absent.py" in said
    (tmp_path / "file").write_text("")
    assert not (ROOT / "runs" / "bf16.jsonl").exists()
    (said,), _ = run(script(["bf16"], f"--output={tmp_path}/file/runs"), status=1)
    assert "cannot be written" in said
