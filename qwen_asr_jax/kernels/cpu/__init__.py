"""Native kernels for CPU hosts: the library that was built with the package, if a compiler was there.

They are C++ behind `jax.ffi`, on XLA's own threads; `src/kernels.h` says what is in them. Nothing of Python is in the library,
so one file serves every version of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib

import jax

from qwen_asr_jax import kernels, runtime

LIBRARY = pathlib.Path(__file__).with_name("libqwen_asr_cpu.so")

ABI = 1
"""Version of the handlers' arguments and results; `src/library.cc` says when it is raised."""

HANDLERS = ("qwen_asr_linear", "qwen_asr_head", "qwen_asr_decoder_layers", "qwen_asr_encoder_layer", "qwen_asr_conv_gelu")


def target(handler: str) -> str:
    """The name under which XLA knows a handler: compiled programs that were kept name the version that they call."""
    return f"{handler}_v{ABI}"


def unavailable() -> str | None:
    """Why the kernels cannot be used here, in one line; None if they can. The first call loads and registers them."""
    # This starts the backend, which must be first: a handler that it refuses while it starts leaves JAX without one.
    return _unusable() if runtime.platform() == "cpu" else "they are for CPUs"


@functools.cache
def _unusable() -> str | None:
    try:
        _load(LIBRARY)
    except _Unusable as e:
        return str(e)
    return None


@functools.cache
def instruction_set() -> str:
    """Name of the instruction set that the kernels use on this processor; an error where they are unavailable."""
    if reason := unavailable():
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    library = ctypes.CDLL(str(LIBRARY))
    library.qwen_asr_isa.restype = ctypes.c_char_p
    return str(library.qwen_asr_isa().decode())


class _Unusable(Exception):
    """A library that is absent, broken, or not for this package, processor or jaxlib."""


def _load(path: pathlib.Path) -> None:
    """Loads a library, checks that it is ours, and registers its handlers."""
    if not path.exists():
        raise _Unusable(f"they were not built: {kernels.build_failure(path)}")
    try:
        library = ctypes.CDLL(str(path))
        built = library.qwen_asr_abi()
        if built != ABI:
            raise _Unusable(f"{path.name} is of version {built}, this package wants {ABI}: install the package again")
        library.qwen_asr_isa_names.restype = ctypes.c_char_p
        names = library.qwen_asr_isa_names().decode().split()
        if (wanted := os.environ.get("QWEN_ASR_CPU_ISA")) and wanted not in names:
            raise _Unusable(f"QWEN_ASR_CPU_ISA is {wanted!r}, but this build on this processor has: {', '.join(names)}")
        for handler in HANDLERS:
            jax.ffi.register_ffi_target(target(handler), jax.ffi.pycapsule(getattr(library, handler)), platform="cpu")
    except (OSError, AttributeError) as e:
        raise _Unusable(f"{path.name} cannot be loaded ({e})") from e
    except RuntimeError as e:  # jaxlib's: it takes handlers compiled for its own version or an older one
        said = str(e).splitlines()[0]
        raise _Unusable(f"{path.name} was built for another jaxlib, install the package again ({said})") from e
