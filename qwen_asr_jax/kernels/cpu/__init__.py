"""Native kernels for CPU hosts: the library that was built with the package, if a compiler was there.

They are C++ behind `jax.ffi`, on XLA's own threads; `src/kernels.h` says what is in them. Nothing of Python is in the library, so
one file serves every version of it.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib

import jax

LIBRARY = pathlib.Path(__file__).with_name("libqwen_asr_cpu.so")

TARGETS = ("qwen_asr_linear", "qwen_asr_head", "qwen_asr_decoder_layer")


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot be used here, in one line; None if they can. The first call loads and registers them."""
    if jax.default_backend() != "cpu":
        return "they are for CPUs"
    if not LIBRARY.exists():
        return "they were not built: no C++17 compiler was found when the package was installed"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for target in TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (OSError, AttributeError) as e:
        return f"{LIBRARY.name} cannot be loaded ({e})"
    return None


@functools.cache
def instruction_set() -> str:
    """Name of the instruction set that the kernels use on this processor."""
    library = ctypes.CDLL(str(LIBRARY))
    library.qwen_asr_isa.restype = ctypes.c_char_p
    return str(library.qwen_asr_isa().decode())
