"""Provenance: fingerprints that follow content, and rooflines that are kept for one machine."""

from __future__ import annotations

import shutil
import sys

import jax
import pytest

from qwen_asr_jax import demo
from qwen_asr_jax.bench import inputs, memory, roofline
from qwen_asr_jax.bench.cost import Limits
from qwen_asr_jax.bench.environment import environment, fingerprint
from qwen_asr_jax.bench.timing import measure
from qwen_asr_jax.checkpoint.convert import convert
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.policy import PRESETS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen_asr_jax.runtime.user_cache_dir", lambda: tmp_path / "cache")


def test_a_copy_under_another_name_is_the_same_model(tiny_original, tmp_path):
    original = fingerprint(tiny_original)
    shutil.copytree(tiny_original, tmp_path / "copy")
    assert len(original) == 64
    assert fingerprint(tmp_path / "copy") == original
    (tmp_path / "copy" / "vocab.json").write_text("{}")
    assert fingerprint(tmp_path / "copy") == original  # neither config nor weights
    (tmp_path / "copy" / "model.safetensors").rename(tmp_path / "copy" / "other.safetensors")
    assert fingerprint(tmp_path / "copy") == original


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_one_changed_byte_is_another_model(tiny_original, tmp_path, name):
    shutil.copytree(tiny_original, tmp_path / "copy")
    path = tmp_path / "copy" / name
    before = fingerprint(tmp_path / "copy")
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert fingerprint(tmp_path / "copy") != before


def test_an_orbax_directory_has_one_too(tiny_original, tmp_path):
    convert(tiny_original, tmp_path / "orbax", PRESETS["bf16"])
    first = fingerprint(tmp_path / "orbax")
    assert first != fingerprint(tiny_original)
    array = max((tmp_path / "orbax" / "params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    assert fingerprint(tmp_path / "orbax") != first


def test_the_fingerprint_is_kept_for_unchanged_files(tiny_original, tmp_path, monkeypatch):
    first = fingerprint(tiny_original)
    monkeypatch.setattr("qwen_asr_jax.bench.environment.sha256_of", lambda path: pytest.fail(f"{path} was read again"))
    assert fingerprint(tiny_original) == first


def test_an_unwritable_cache_is_no_obstacle(tiny_original, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("qwen_asr_jax.runtime.user_cache_dir", lambda: tmp_path / "file")
    assert fingerprint(tiny_original) == fingerprint(tiny_original)
    roofline.keep(Limits(1.0, 2.0, 3.0, "now"))
    assert roofline.kept() is None


def test_environment_names_versions_and_machine():
    env = environment("cpu")
    assert env["jax"] == jax.__version__
    assert env["cpu"]
    assert env["cores"] >= 1
    assert env["gpu"] is env["driver"] is None
    assert env["commit"] is None or len(env["commit"]) == 12


def test_limits_are_the_best_of_all_runs_and_kept(monkeypatch):
    names = [f"{kind}_{n}_gflop_s" for kind in ("f32", "bf16") for n in roofline.MATMUL_SIZES]
    runs = [{"read_gb_s": 30.0 + i, **{name: 100.0 * (i + j) for j, name in enumerate(names)}} for i in range(2)]
    limits = roofline.limits_of(runs, "today")
    assert limits == Limits(read_gb_s=31.0, f32_gflop_s=300.0, bf16_gflop_s=600.0, date="today")
    assert roofline.kept() is None
    roofline.keep(limits)
    assert roofline.kept() == limits
    monkeypatch.setenv("NPROC", "77")  # another number of threads is another machine
    assert roofline.kept() is None


def test_the_roofline_measures_everything(monkeypatch):
    monkeypatch.setattr(roofline, "_BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(roofline, "MATMUL_SIZES", (32, 64))
    measured = measure(roofline.prepare(), runs=2, warmup=1)
    assert set(measured.runs[0]) == {
        "read_gb_s",
        *(f"{kind}_{n}_gflop_s" for kind in ("f32", "bf16") for n in (32, 64)),
        "dispatch_us",
        "loop_step_us",
    }
    assert all(value > 0 for run in measured.runs for value in run.values())
    assert measured.recompiled == ()


def test_memory_of_this_process():
    jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64))).block_until_ready()
    assert memory.peak_rss_bytes() >= (memory.rss_bytes() or 0) > 0
    peak = memory.peak_rss_bytes()
    own = bytearray(b"x") * (300 << 20)
    assert len(own) == 300 << 20
    del own
    memory.forget_peak()
    assert memory.peak_rss_bytes() < peak + (200 << 20) or sys.platform != "linux"
    assert memory.device_bytes() is None  # the CPU backend has no allocator of its own
    assert all(size > 0 for size in memory.temp_bytes().values())


def test_models_for_the_bench(tiny_original):
    assert inputs.bench_model_dir(str(tiny_original)) == (tiny_original, None)
    assert inputs.bench_model_dir(None) == (demo.MODEL_DIR, demo.NOTICE)
    path, notice = inputs.bench_model_dir("random:tiny")
    assert (path / "config.json").exists()
    assert "random weights" in notice
    with pytest.raises(UsageError, match="--model_dir is empty"):
        inputs.bench_model_dir("")
    for name in ("random:huge", "random:aligner-0.6b"):
        with pytest.raises(UsageError, match=r"random:0\.6b, random:1\.7b, or a directory"):
            inputs.bench_model_dir(name)
