"""Start-up: the persistent cache is on by default and in the user's own directory, and loading needs little memory."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest
import soundfile

from qwen_asr_jax.checkpoint.random_checkpoint import MODELS, write_random_checkpoint
from tests.audio_samples import synthetic

ROOT = pathlib.Path(__file__).parents[2]


def transcribe(clip, model_dir, **environment):
    """Runs the script with only these cache settings, and returns its stderr."""
    env = {k: v for k, v in os.environ.items() if k not in {"JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"}}
    done = subprocess.run(
        [sys.executable, "scripts/transcribe.py", str(clip), f"--model_dir={model_dir}", "--verbose", "--max_new_tokens=4"],
        cwd=ROOT,
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, synthetic(1.0), 16000)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the default directory differs elsewhere")
def test_second_start_compiles_nothing(tiny_original, clip, tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    cold, warm = (transcribe(clip, tiny_original, **home) for _ in range(2))
    counts = [re.search(r"compilations so far: (\d+) in [\d.]+ s, (\d+) read from the cache", text) for text in (cold, warm)]
    assert [int(n) for n in counts[0].groups()][1] == 0
    assert int(counts[0][1]) >= 4
    assert counts[1].groups() == ("0", counts[0][1])
    assert re.search(r"first token [\d.]+ s after process start", warm)
    folder = tmp_path / "cache" / "qwen_asr_jax" / "xla"
    assert any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0  # cached programs are trusted code


def test_cache_variable_is_honoured(tiny_original, clip, tmp_path):
    transcribe(clip, tiny_original, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"), XDG_CACHE_HOME=str(tmp_path / "not"))
    assert any((tmp_path / "mine").iterdir())
    assert not (tmp_path / "not").exists()


def test_unwritable_cache_is_no_obstacle(tiny_original, clip, tmp_path):
    (tmp_path / "file").write_text("")
    said = transcribe(clip, tiny_original, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert " 0 read from the cache" in said
    assert "Warning" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units elsewhere")
@pytest.mark.parametrize("policy", ["fp32", "bf16", "fp16", "int8_all"])
def test_loading_peaks_little_above_the_weights(tmp_path_factory, policy):
    """160 million parameters, most of them in one tensor; the bound is 1 GiB for models ten times larger."""
    root = tmp_path_factory.getbasetemp() / "wide"
    if not root.exists():
        base = MODELS["tiny"]
        text = dataclasses.replace(base.text, vocab_size=131072, embed_dim=1024, mlp_dim=4096)
        wide = dataclasses.replace(base, text=text, audio=dataclasses.replace(base.audio, output_dim=1024))
        write_random_checkpoint(root, wide, max_shard_bytes=300 << 20)
    code = f"""
import resource
from qwen_asr_jax import runtime
runtime.configure("cpu")
import jax
from qwen_asr_jax.pipelines.load import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jax.numpy.zeros(1).block_until_ready()
before = peak()
model = load_model({str(root)!r}, policy={policy!r})
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.engine.checkpoint.params))
print(weights >> 20, (peak() - before - weights) >> 20)
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    weights_mib, above_mib = map(int, out.split())
    assert weights_mib > (140 if policy == "int8_all" else 280)
    assert above_mib < 1024
    # The largest tensor is 256 MiB as stored; its copy and its mapped pages are what may come on top.
    assert above_mib < 2 * 256 + 128
