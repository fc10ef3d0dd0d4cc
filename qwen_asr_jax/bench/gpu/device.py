"""Whether there is a GPU to report on, found out without JAX: the report's parent starts none."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil

from qwen_asr_jax.errors import BackendError

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def check_gpu() -> None:
    """Refuses a machine on which JAX would take the CPU: minutes of a lent card would go by before anybody noticed.

    Raises:
      BackendError: no driver is seen, or JAX has no CUDA plugin.
    """
    otherwise = "--quick checks the report on a CPU, --any_device measures whatever JAX runs on"
    if shutil.which("nvidia-smi") is None and not any(pathlib.Path("/dev").glob("nvidia[0-9]*")):
        raise BackendError(f"no NVIDIA GPU here: neither nvidia-smi nor /dev/nvidia0; {otherwise}")
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        raise BackendError(f'JAX sees no GPU without its CUDA plugin: pip install -e ".[cuda12]" (or cuda13); {otherwise}')
