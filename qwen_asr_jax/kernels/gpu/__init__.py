"""Native kernels for NVIDIA GPUs: the library that was built with the package, and kernels that are compiled where they run.

The library is the host half: C++ behind `jax.ffi` that puts kernels on XLA's stream, through the driver that JAX has loaded.
The device half, `src/*.cu`, is compiled by NVRTC for the GPU that is there and the shape that is asked for (`programs.py`).
Opt-in, as long as nobody has measured them: `docs/decisions/cuda-kernels.md`.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from qwen_asr_jax import kernels
from qwen_asr_jax.kernels.gpu import nvrtc

LIBRARY = pathlib.Path(__file__).with_name("libqwen_asr_gpu.so")

ABI = 1
"""Version of the handlers' arguments and results; `src/library.cc` says when it is raised."""

HANDLERS = ("qwen_asr_cuda_decoder_layers", "qwen_asr_cuda_head")

OLDEST = 80
"""The oldest compute capability, times ten, that the kernels are written for."""


class Unusable(Exception):
    """What is missing for the kernels, in one line."""


def target(handler: str) -> str:
    """The name under which XLA knows a handler: compiled programs that were kept name the version that they call."""
    return f"{handler}_v{ABI}"


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot be used here, in one line; None if they can. The first call loads and registers them."""
    version = cuda_version()
    if version is None:
        return "they are for NVIDIA GPUs"
    try:
        if too_old := [d for d in jax.local_devices() if architecture(d) < OLDEST]:
            raise Unusable(f"they need compute capability {OLDEST // 10}.0 or later, {too_old[0].device_kind} is older")
        library = load_library(LIBRARY)
        if reason := said(library.qwen_asr_cuda_driver()):
            raise Unusable(reason)
        nvrtc.find(version // 1000)
        register(library, "CUDA")
    except (Unusable, nvrtc.Missing) as e:
        return str(e)
    return None


def cuda_version() -> int | None:
    """The CUDA that JAX's GPU backend was built for, like 13000; None where it has another backend, ROCm's included."""
    if jax.default_backend() != "gpu":
        return None
    words = jax.local_devices()[0].client.platform_version.split()
    if "cuda" not in words[:-1]:
        return None
    return int(words[words.index("cuda") + 1])


def architecture(device: Any) -> int:
    """A GPU's compute capability times ten: 90 for 9.0."""
    major, minor = str(device.compute_capability).split(".")
    return 10 * int(major) + int(minor)


def load_library(path: pathlib.Path) -> ctypes.CDLL:
    """Loads a library and checks that it is ours; needs no GPU.

    Raises:
      Unusable: it is absent, broken or of another version.
    """
    if not path.exists():
        raise Unusable(f"they were not built: {kernels.build_failure(path)}")
    try:
        library = ctypes.CDLL(str(path))
        built = library.qwen_asr_cuda_abi()
        if built != ABI:
            raise Unusable(f"{path.name} is of version {built}, this package wants {ABI}: install the package again")
        numbers = [ctypes.POINTER(ctypes.c_int), ctypes.c_int]
        for name, arguments, result in [
            ("qwen_asr_cuda_driver", [], ctypes.c_char_p),
            ("qwen_asr_cuda_why_not", numbers, ctypes.c_char_p),
            ("qwen_asr_cuda_scratch_bytes", numbers, ctypes.c_longlong),
            ("qwen_asr_cuda_load", [*numbers, ctypes.c_char_p, ctypes.c_int], ctypes.c_char_p),
        ]:
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError) as e:
        raise Unusable(f"{path.name} cannot be loaded ({e})") from e
    return library


def register(library: ctypes.CDLL, platform: str) -> None:
    """Makes the handlers known to XLA.

    Raises:
      Unusable: jaxlib refuses them.
    """
    try:
        for handler in HANDLERS:
            jax.ffi.register_ffi_target(target(handler), jax.ffi.pycapsule(getattr(library, handler)), platform=platform)
    except RuntimeError as e:  # jaxlib's: it takes handlers compiled for its own version or an older one
        first = str(e).splitlines()[0]
        raise Unusable(f"{LIBRARY.name} was built for another jaxlib, install the package again ({first})") from e


def said(reason: bytes | None) -> str | None:
    """What a function of the library returned: None for success."""
    return None if reason is None else reason.decode()


def integers(numbers: Sequence[int]) -> tuple[Any, int]:
    """Numbers as functions of the library take them."""
    return (ctypes.c_int * len(numbers))(*numbers), len(numbers)
