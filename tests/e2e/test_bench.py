"""bench.py as a user runs it: every workload on the tiny model, its table and its record, and what it says to wrong usage."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import soundfile

from qwen_asr_jax.bench.cost import Limits
from qwen_asr_jax.bench.record import MAIN_FIGURE, SCHEMA, parse
from qwen_asr_jax.bench.summary import STATISTICS
from tests.audio_samples import RATE, synthetic
from tests.script_output import without_kernel_notice

ROOT = pathlib.Path(__file__).parents[2]
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's cache directory for all runs: one roofline."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def bench(home, tmp_path):
    def run(*arguments, status=0):
        """Runs the script; returns stdout, stderr and the records that it appended."""
        output = tmp_path / "out.jsonl"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": CACHE, "XDG_CACHE_HOME": str(home)}
        command = [
            sys.executable,
            f"{ROOT}/scripts/bench.py",
            "--runs=2",
            "--warmup=1",
            f"--output_json={output}",
            *arguments,
        ]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stderr
        records = [parse(line) for line in output.read_text().splitlines()] if output.exists() else []
        return done.stdout, without_kernel_notice(done.stderr), records

    return run


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, synthetic(1.0), RATE)
    return path


def fails(bench, status, *arguments):
    """The one line of a run that fails with nothing on stdout and no result."""
    out, err, records = bench(*arguments, status=status)
    assert (out, records) == ("", [])
    assert err.count("\n") == 1, err
    assert err.startswith("bench.py: ")
    return err


def test_default_is_the_demonstration_model_and_silence_and_says_so(bench):
    out, err, (record,) = bench("--decode_tokens=6")
    assert err.startswith("bench.py: no --model_dir: this is the bundled demonstration model")
    assert "hf download" in err
    assert (record.workload, record.model["name"], record.audio["name"]) == ("full", "demo_model", "silence 5 s")
    assert re.match(r"full: demo_model, bf16, (xla|cpu \w+), silence 5 s \(5\.00 s\), ", out)
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["run 1/2", "run 2/2"]
    header = next(line for line in lines if "median" in line)
    assert header.split() == list(STATISTICS)
    for said in ("total, ms", "RTF ", "RTFx ", "CPU/wall", "reached", "peak RSS", "0 inside measured runs", "GB/s"):
        assert said in out
    assert record.schema == SCHEMA
    assert record.env["commit"] is None or len(record.env["commit"]) == 12


@pytest.mark.parametrize("workload, name", [("encoder", "encoder"), ("1", "encoder"), ("0", "full"), ("prefill", "prefill")])
def test_workloads_and_their_old_numbers(bench, tiny_original, clip, workload, name):
    _, err, (record,) = bench(f"-d={tiny_original}", f"-i={clip}", f"-w={workload}", "--policy=fp32", "--decode_tokens=4")
    assert (record.workload, record.policy, err) == (name, "fp32", "")
    assert record.audio["seconds"] == 1.0
    assert len(record.runs) == 2
    assert record.compile["recompiles"] == 0
    assert MAIN_FIGURE[name] in record.summary
    assert record.floor_fraction == record.floor[MAIN_FIGURE[name]]["fraction"] > 0


def test_decode_and_its_contexts(bench, tiny_original):
    out, _, (record,) = bench(f"-d={tiny_original}", "-w=decode", "-s=1", "--decode_tokens=4", "--contexts=64,256")
    assert record.tokens == 4
    assert [point["context_tokens"] for point in record.contexts] == [64, 256]
    assert "context, tokens" in out


def test_several_clips_and_a_batch(bench, tiny_original, clip):
    other = clip.with_name("other.wav")
    soundfile.write(other, synthetic(0.6), RATE)
    flags = (f"-d={tiny_original}", f"-i={clip},{other}", "--decode_tokens=3")
    _, _, records = bench(*flags)
    assert [record.audio["name"] for record in records] == ["clip.wav", "other.wav"]
    _, _, records = bench(*flags, "-w=batch", "--batch_size=3")
    assert records[-1].audio == records[-1].audio | {"name": "clip.wav, other.wav x3", "seconds": 2.6}
    assert "audio_s_per_s" in records[-1].summary
    assert len(records) == 3  # the file grows


def test_load_starts_cold_and_warm(bench, tiny_original, clip):
    out, _, (record,) = bench(f"-d={tiny_original}", f"-i={clip}", "-w=load", "--runs=1")
    (run,) = record.runs
    assert run["cold_from_cache"] == 0
    assert run["warm_from_cache"] == run["warm_programs"] == run["cold_programs"] > 4
    for kind in ("cold", "warm"):
        phases = sum(
            run[f"{kind}_{phase}_s"] for phase in ("process", "import", "backend", "weights", "compile", "first_token")
        )
        assert phases == pytest.approx(run[f"{kind}_total_s"], rel=0.05)
        assert run[f"{kind}_peak_rss_bytes"] >= run[f"{kind}_weights_rss_bytes"] > 50e6
    assert record.model["parameters"] > 0
    assert "first token after" in out
    assert "RSS after" in out


def test_threads_are_set(bench, tiny_original):
    for threads in (1, 2):
        out, _, records = bench(f"-d={tiny_original}", f"-t={threads}", "-s=1", "--decode_tokens=2")
        assert records[-1].threads == threads
        assert f", {threads} of {os.cpu_count()} CPU threads" in out
    assert all(record.summary["cpu_per_wall"]["max"] > 0 for record in records)


def test_a_config_in_place_of_a_policy(bench, tiny_original):
    flags = (f"-d={tiny_original}", "-s=1", "--decode_tokens=2", f"--config={ROOT}/configs/bf16.py")
    _, _, (record,) = bench(*flags, "--config.policy.cache_dtype=float32")
    assert record.policy == "bf16, changed"


def test_profile(bench, tiny_original, tmp_path):
    flags = (f"-d={tiny_original}", "-s=1", "--decode_tokens=2", "--implementation=xla")
    out, _, _ = bench(*flags, f"--profile_dir={tmp_path / 'trace'}")
    assert "decode: " in out
    assert "GatedMLP dot_general" in out
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_kept_roofline_is_used(bench, home, tiny_original):
    bench(f"-d={tiny_original}", "-s=1", "--decode_tokens=2")
    for path in (home / "qwen_asr_jax" / "roofline").iterdir():  # one per number of threads
        limits = Limits(**json.loads(path.read_text()))
        path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(limits, bf16_gflop_s=123.0))))
    _, _, records = bench(f"-d={tiny_original}", "-s=1", "--decode_tokens=2")
    assert records[-1].roofline["bf16_gflop_s"] == 123.0
    assert records[-1].roofline["read_gb_s"] == records[-1].summary["read_gb_s"]["median"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-w=sing"], "full|encoder|prefill|decode|batch|roofline|load"),
        (["--runs=0"], "runs"),
        (["--warmup=0"], "warmup"),
        (["--silence_s=0"], "silence_s"),
        (["--silence_s=1e9"], "silence_s"),
        (["--profile_dir="], "--profile_dir is empty"),
        (["--config=absent.py"], "--config=absent.py: no such file"),
        (["-w=roofline", "--decode_tokens=3"], "--decode_tokens means nothing to --workload=roofline"),
        (["clip.wav"], "--audio=FILE"),
        (["-w=batch", "-i=a.wav,b.wav"], "2 clips do not fit --batch_size=1"),
        (["--batch_size=2"], "full runs one clip at a time"),
        (["-w=decode", "--contexts=few"], "--contexts must be numbers of tokens, got 'few'"),
        (["--model_dir=random:9b"], "choose one of random:tiny, random:0.6b, random:1.7b"),
        (["-w=roofline", "--threads=100000"], "threads"),
    ],
)
def test_wrong_usage(bench, arguments, said):
    assert said in fails(bench, 2, *arguments)


def test_inputs_that_are_not_there(bench, tmp_path, tiny_original):
    assert "absent.wav" in fails(bench, 1, f"-d={tiny_original}", "-i=absent.wav")
    assert "absent" in fails(bench, 1, f"-d={tmp_path / 'absent'}")


def test_output_that_cannot_be_written_is_known_at_once(bench, tmp_path):
    (tmp_path / "file").write_text("")
    err = fails(bench, 1, "--model_dir=absent", f"--output_json={tmp_path}/file/out.jsonl")
    assert "results cannot be written there" in err


def test_help_says_what_is_timed_how():
    out = subprocess.run(
        [sys.executable, f"{ROOT}/scripts/bench.py", "--help"], capture_output=True, text=True, timeout=60
    ).stdout
    assert "a separate pass behind each measured run" in " ".join(out.split())
    for workload in MAIN_FIGURE:
        assert f"\n  {workload} " in out
