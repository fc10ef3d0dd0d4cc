"""Fixtures shared by all tests: tiny checkpoints in every layout, and a loaded model."""

from __future__ import annotations

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402
import pytest  # noqa: E402

from qwen_asr_jax.checkpoint.random_checkpoint import write_random_checkpoint  # noqa: E402
from qwen_asr_jax.pipelines.load import load_model  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory):
    """A tiny random checkpoint in the original layout."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny-original"
    write_random_checkpoint(path, "tiny", layout="original")
    return path


@pytest.fixture(scope="session")
def tiny_native(tmp_path_factory):
    """The same model in the transformers-native layout."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny-native"
    write_random_checkpoint(path, "tiny", layout="native")
    return path


@pytest.fixture(scope="session")
def model(tiny_original):
    """The tiny model, loaded in float32."""
    return load_model(tiny_original, policy="fp32")
