"""What scripts say of a model that float16 does not hold, and of a fraction of a GPU's memory where there is no GPU."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_asr_jax import demo
from tests.script_output import without_kernel_notice

ROOT = pathlib.Path(__file__).parents[2]
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]
CLIP = str(demo.clips()["short"].path)
NORM = "thinker.model.layers.1.post_attention_layernorm.weight"


def run(script, *arguments, status=0):
    """stderr of a script, without what is said of native kernels."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": CACHE}
    command = [sys.executable, f"{ROOT}/scripts/{script}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, cwd=ROOT)
    assert done.returncode == status, done.stderr
    return without_kernel_notice(done.stderr)


@pytest.fixture(scope="module")
def large(tiny_original, tmp_path_factory):
    """A checkpoint whose second decoder layer multiplies numbers that float16 does not hold."""
    path = shutil.copytree(tiny_original, tmp_path_factory.mktemp("checkpoints") / "large")
    tensors = load_file(path / "model.safetensors")
    tensors[NORM] = (np.array(tensors[NORM], np.float32) * 1e6).astype(tensors[NORM].dtype)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize(
    "script, arguments",
    [("transcribe", [CLIP, "--max_new_tokens=2"]), ("bench", ["--workload=encoder", "--runs=1", "--warmup=1", "-s", "0.5"])],
)
def test_scripts_say_once_what_float16_cuts_off(large, script, arguments):
    said = run(script, *arguments, f"--model_dir={large}", "--policy=fp16")
    lines = [line for line in said.splitlines() if "float16" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{script}.py: policy fp16: values in decoder.layers.1 go up to ")
    assert "float16" not in run(script, *arguments, f"--model_dir={large}", "--policy=bf16")


@pytest.mark.parametrize(
    "script, arguments",
    [("transcribe", [CLIP]), ("bench", []), ("bench", ["--workload=load"]), ("bench", ["-w", "roofline"])],
)
def test_a_fraction_of_a_gpus_memory_is_refused_on_a_cpu(tiny_original, script, arguments):
    if "roofline" not in arguments:
        arguments = [*arguments, f"--model_dir={tiny_original}"]
    said = run(script, *arguments, "--memory_fraction=0.5", status=2)
    refusal = "memory_fraction=0.5 is for GPUs: nothing caps what JAX takes on a CPU; leave it out"
    assert said.splitlines()[-1] == f"{script}.py: {refusal}"


def test_a_fraction_out_of_range_is_refused():
    assert "--memory_fraction" in run("transcribe", CLIP, "--memory_fraction=1.5", status=2)
