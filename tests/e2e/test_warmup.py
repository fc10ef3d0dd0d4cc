"""scripts/warmup.py: what it compiles is what transcribing then needs, and wrong flags are refused in one line."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import soundfile

from tests.audio_samples import synthetic
from tests.script_output import without_kernel_notice

ROOT = pathlib.Path(__file__).parents[2]


def script(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, f"scripts/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_after_a_warm_up_nothing_is_compiled(tiny_original, tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    flags = [f"--model_dir={tiny_original}", "--policy=fp32"]
    done = script("warmup", *flags, "--buckets=1", "--max_new_tokens=4", **cache)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^prefill 1x\d+ 1 rows, 256 slots from scratch +[\d.]+ +[\d.]+$", done.stdout, re.M)
    (ready, there) = re.search(r"^(\d+) programs ready in [\d.]+ s, (\d+) of them read from", done.stdout, re.M).groups()
    assert int(ready) >= 6
    assert there == "0"
    assert "memory for 1 x 1 s, policy fp32: weights " in without_kernel_notice(done.stderr)
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, synthetic(0.97), 16000)
    said = script("transcribe", clip, *flags, "--max_new_tokens=4", "--verbose", **cache).stderr
    assert re.search(rf"compilations so far: 0 in 0.00 s, {ready} read from the cache", said), said
    again = script("warmup", *flags, "--buckets=1", "--max_new_tokens=4", **cache).stdout
    assert f"{ready} programs ready" in again
    assert f", {ready} of them read from" in again


def test_a_cache_that_cannot_be_written_is_refused(tiny_original, tmp_path):
    (tmp_path / "file").write_text("")
    done = script("warmup", f"--model_dir={tiny_original}", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert done.returncode == 1
    assert "compiled programs cannot be kept in" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--buckets=ten", "--buckets must be numbers from 0.01 to 3600, got 'ten'"),
        ("--buckets=", "--buckets must be numbers from 0.01 to 3600, got ''"),
        ("--buckets=0", "--buckets must be numbers from 0.01 to 3600, got '0'"),
        ("--buckets=30-1", "--buckets: '30-1' is no range from 0.01 to 3600, the shorter length first"),
        ("--model_dir=", "--model_dir is empty"),
        ("--batch_sizes=1,257", "--batch_sizes must be whole numbers from 1 to 256, got '1,257'"),
        ("clip.wav", "unexpected argument 'clip.wav'"),
    ],
)
def test_wrong_flags_are_refused(flag, message):
    done = script("warmup", flag)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
