"""The CUDA kernels' calls on JAX's CPU backend: the package's host half in front of a driver that emulates the GPU."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import sys
import types

import pytest

from qwen_asr_jax.kernels import gpu
from qwen_asr_jax.kernels.gpu import programs

BUILD = pathlib.Path(__file__).parent / "native" / "build.py"


@functools.cache
def _libraries() -> tuple[pathlib.Path, pathlib.Path] | str:
    """The driver and the host half, or why there are none."""
    if sys.platform != "linux":
        return "the driver's library is Linux'"
    spec = importlib.util.spec_from_file_location("native_build", BUILD)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    try:
        setup = build.load_setup()
        cxx = setup.compiler()
    except (ImportError, Exception) as e:  # setup.py's own class, which is another one each time the file is loaded
        if isinstance(e, ImportError) or type(e).__name__ == "Failed":
            return str(e)
        raise
    driver, library = build.build_gpu_libraries(cxx)
    ctypes.CDLL(str(driver))  # found by its name from now on
    gpu.register(gpu.load_library(library), "cpu")
    return driver, library


def emulated(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Makes the calls of `kernels.gpu` run here; skips where nothing can be compiled.

    Returns:
      `library`, the host half, and `loaded`, the programs that calls have asked for.
    """
    found = _libraries()
    if isinstance(found, str):
        pytest.skip(found)
    library, loaded = gpu.load_library(found[1]), []

    def load(program):
        loaded.append(program)
        image = " ".join(map(str, program.key)).encode()
        failure = gpu.said(library.qwen_asr_cuda_load(*gpu.integers(program.key), image, 0))
        assert failure is None, failure

    monkeypatch.setattr(gpu, "LIBRARY", found[1])
    monkeypatch.setattr(gpu, "unavailable", lambda: None)
    monkeypatch.setattr(programs, "load", load)
    return types.SimpleNamespace(library=library, loaded=loaded)
