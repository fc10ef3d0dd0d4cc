"""`memory_fraction`: what jaxlib is told before it opens a GPU, and what is refused.

Each case is a process of its own, because it is about what happens before JAX starts. No GPU is needed: the process says that
it has one, and jaxlib's own function says what it would open that with.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAKE = """
import jax
jax.default_backend = lambda: "gpu"
from qwen_asr_jax import runtime
from jaxlib import xla_client
def told():
    options = xla_client.generate_pjrt_gpu_plugin_options()
    print(options.get("memory_fraction"), options["preallocate"])
"""
"""A host with a GPU, as far as asking for the platform goes."""

NEW, OLD, ALLOCATOR = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR"
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"


def python(code: str, **variables: str) -> tuple[str, str]:
    """The last lines of stdout and stderr of a process with these variables of XLA and no others; "" for none."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env | variables, timeout=120)
    return tuple((text.splitlines() or [""])[-1] for text in (done.stdout, done.stderr))


@pytest.mark.parametrize(
    "call, variables, told",
    [
        ("", {}, "None False"),
        ("memory_fraction=0.5", {}, "0.5 False"),
        ("'gpu', memory_fraction=1", {}, "1.0 False"),
        ("memory_fraction=0.123456789", {}, "0.123456789 False"),
        ("memory_fraction=0.5", {PREALLOCATE: "true"}, "0.5 True"),
        ("memory_fraction=0.5", {NEW: ".5"}, "0.5 False"),
        ("memory_fraction=0.5", {OLD: "0.50"}, "0.5 False"),
        ("memory_fraction=0.5", {NEW: "", OLD: ""}, "0.5 False"),
        ("memory_fraction=0.5", {ALLOCATOR: "cuda_async"}, "0.5 False"),
        ("", {NEW: "0.3"}, "0.3 False"),
        ("", {OLD: "0.3"}, "0.3 False"),
        ("memory_fraction=0.5); runtime.configure(memory_fraction=0.5", {}, "0.5 False"),
    ],
)
def test_what_jaxlib_is_told(call, variables, told):
    assert python(f"{FAKE}\nruntime.configure({call})\ntold()", **variables) == (told, "")


@pytest.mark.parametrize(
    "call, variables, error",
    [
        ("memory_fraction=1.5", {}, "UsageError: memory_fraction must be 0 (automatic) to 1, got 1.5"),
        ("memory_fraction=-0.1", {}, "UsageError: memory_fraction must be 0 (automatic) to 1, got -0.1"),
        ("memory_fraction=float('nan')", {}, "UsageError: memory_fraction must be 0 (automatic) to 1, got nan"),
        ("memory_fraction=0.5", {NEW: "0.9"}, f"UsageError: memory_fraction=0.5 contradicts {NEW}=0.9 in the environment"),
        ("memory_fraction=0.5", {OLD: "0.9"}, f"UsageError: memory_fraction=0.5 contradicts {OLD}=0.9 in the environment"),
        ("memory_fraction=0.5", {NEW: "half"}, f"UsageError: memory_fraction=0.5 contradicts {NEW}=half in the environment"),
        ("memory_fraction=0.5", {NEW: "0.5", OLD: "0.5"}, f"UsageError: {NEW} and {OLD} are both set, which jaxlib refuses"),
        ("", {NEW: "0.5", OLD: "0.5"}, f"UsageError: {NEW} and {OLD} are both set, which jaxlib refuses"),
        ("memory_fraction=0.5", {ALLOCATOR: "platform"}, f"UsageError: memory_fraction=0.5 means nothing to {ALLOCATOR}="),
        ("'cpu', memory_fraction=0.5", {}, "UsageError: memory_fraction=0.5 is for GPUs"),
    ],
)
def test_what_is_refused(call, variables, error):
    out, err = python(f"{FAKE}\nruntime.configure({call})\ntold()", **variables)
    assert out == ""
    assert err.startswith(f"qwen_asr_jax.errors.{error}")


@pytest.mark.parametrize("first", ["", "memory_fraction=0.4"])
def test_a_fraction_that_comes_too_late_is_refused(first):
    started = f"{FAKE}\nruntime.configure({first})\njax.devices()"
    _, err = python(f"{started}\nruntime.configure(memory_fraction=0.5)")
    assert err.startswith("qwen_asr_jax.errors.BackendError: memory_fraction=0.5 comes too late: JAX is running already")
    if first:
        assert python(f"{started}\nruntime.configure({first})\ntold()") == ("0.4 False", "")


@pytest.mark.parametrize("start", ["", "jax.devices()"])
def test_automatic_on_a_host_without_a_gpu_is_refused_too(start):
    code = f"import jax\nfrom qwen_asr_jax import runtime\n{start}\nruntime.configure(memory_fraction=0.5)"
    _, err = python(code, JAX_PLATFORMS="cpu")
    assert err.startswith(
        "qwen_asr_jax.errors.UsageError: memory_fraction=0.5 is for GPUs: nothing caps what JAX takes on a CPU"
    )


def test_both_names_of_the_variable_are_no_matter_on_a_cpu():
    assert python("from qwen_asr_jax import runtime\nruntime.configure('cpu')", **{NEW: "0.5", OLD: "0.5"}) == ("", "")
