"""NVIDIA's run-time compiler: found among what pip or the system has installed, called through `ctypes`."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
from collections.abc import Iterator, Mapping, Sequence

MAJORS = (13, 12)
"""Of NVRTC, newest first."""

_IN_PACKAGES = ("cu{}/lib", "cuda_nvrtc/lib")
"""Where wheels have it below `nvidia`: from CUDA 13 on in one folder per version, before in one per component."""

_ON_SYSTEM = ("/usr/local/cuda-{}*/lib64", "/usr/local/cuda/lib64", "/opt/cuda/lib64")


class Missing(Exception):
    """There is no compiler, in one line."""


class Refused(Exception):
    """The compiler's first error."""


@functools.cache
def find(preferred: int | None = None) -> Compiler:
    """The compiler; of several that of CUDA's `preferred` major version, whose code the driver surely takes.

    Raises:
      Missing: none can be loaded.
    """
    majors = sorted(MAJORS, key=lambda major: major != preferred)
    for path in (path for major in majors for path in _candidates(major)):
        try:
            return Compiler(ctypes.CDLL(path))
        except (OSError, AttributeError):
            continue
    raise Missing(
        "NVRTC is missing: install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12, which JAX's CUDA extras bring"
    )


def _candidates(major: int) -> Iterator[str]:
    name = f"libnvrtc.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec is not None else []:
        for folder in _IN_PACKAGES:
            path = pathlib.Path(root, folder.format(major), name)
            if path.exists():
                yield str(path)
    yield name
    for pattern in _ON_SYSTEM:
        yield from map(str, sorted(pathlib.Path("/").glob(f"{pattern.format(major)[1:]}/{name}"), reverse=True))


class Compiler:
    """NVRTC's functions, with exceptions for their results.

    Attributes:
      version: like `(13, 0)`.
      architectures: those that it has machine code for, like 90.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        for name in ("nvrtcCompileProgram", "nvrtcGetCUBIN", "nvrtcGetPTX"):
            getattr(library, name)  # all of them, or this is not it
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.version = (major.value, minor.value)
        self.architectures = tuple(known)

    def target(self, architecture: int) -> str:
        """What to compile for: the GPU itself; where the compiler is older, the newest it knows, for the driver to translate.

        Raises:
          Refused: it knows none that such a GPU runs.
        """
        if architecture in self.architectures:
            return f"sm_{architecture}"
        older = [each for each in self.architectures if each < architecture]
        if not older:
            raise Refused(
                f"NVRTC {self.version[0]}.{self.version[1]} has nothing for compute capability {architecture / 10}"
            )
        return f"compute_{max(older)}"

    def compile(self, name: str, source: str, headers: Mapping[str, str], flags: Sequence[str], target: str) -> bytes:
        """A program's machine code for `sm_*`, or its PTX, ended by a zero, for `compute_*`.

        Args:
          name: of the source, for messages.
          source, headers: texts; headers by the names under which they are included.
          flags: for the compiler.
          target: from `target`.

        Raises:
          Refused: it does not compile.
        """
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names)
        try:
            options = [f"--gpu-architecture={target}", "--std=c++17", *flags]
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), given) != 0:
                log = self._text(program, "nvrtcGetProgramLog").decode(errors="replace").splitlines()
                raise Refused(next((line for line in log if "error" in line), "no reason given"))
            return self._text(program, "nvrtcGetCUBIN" if target.startswith("sm_") else "nvrtcGetPTX")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, function: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, ctypes.byref(size))
        out = ctypes.create_string_buffer(size.value)
        self._call(function, program, out)
        return out.raw

    def _call(self, function: str, *arguments: object) -> None:
        result = getattr(self._library, function)(*arguments)
        if result != 0:
            raise Refused(f"{function}: {self._library.nvrtcGetErrorString(result).decode()}")
