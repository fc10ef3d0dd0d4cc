"""The report refuses a machine on which minutes would go into measuring its CPU."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from qwen_asr_jax.bench.gpu import device
from qwen_asr_jax.errors import BackendError


def having(monkeypatch, driver, plugin):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    monkeypatch.setattr(device.pathlib.Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if plugin and name == "jax_cuda13_plugin" else None
    )


@pytest.mark.parametrize(
    "driver, plugin, message",
    [(False, True, "no NVIDIA GPU here"), (True, False, "without its CUDA plugin"), (False, False, "no NVIDIA GPU here")],
)
def test_what_is_missing_is_named(monkeypatch, driver, plugin, message):
    having(monkeypatch, driver, plugin)
    with pytest.raises(BackendError, match=message) as refused:
        device.check_gpu()
    assert "--quick" in str(refused.value)


def test_a_gpu_with_its_plugin_is_taken(monkeypatch):
    having(monkeypatch, True, True)
    device.check_gpu()
