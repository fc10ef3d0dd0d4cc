"""Device programs: compiled for one shape when a call of it is traced, kept on disk, loaded into every GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib

import jax

from qwen_asr_jax import runtime
from qwen_asr_jax.errors import BackendError, OutputError
from qwen_asr_jax.files import write_bytes
from qwen_asr_jax.kernels import gpu
from qwen_asr_jax.kernels.gpu import nvrtc

SOURCES = pathlib.Path(__file__).with_name("src")

TYPES = ("float32", "bfloat16", "float16", "int8")
"""The numbers of types in `src/geometry.h`."""

KINDS = {
    "decoder": ("WEIGHTS", "CACHE", "BATCH", "WIDTH", "INNER", "HEADS", "KEY_HEADS", "HEAD_DIM"),
    "head": ("WEIGHTS", "BATCH", "WIDTH", "VOCAB"),
}
"""The programs, `src/*.cu`, and the macros that name their shape, in the order of their structs in `src/launch.h`."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program is compiled for.

    Attributes:
      kind: of `KINDS`.
      shape: a number for each macro; types as their places in `TYPES`.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def key(self) -> tuple[int, ...]:
        """What the library finds it by."""
        return (list(KINDS).index(self.kind), *self.shape)

    @property
    def flags(self) -> list[str]:
        """The shape for a compiler."""
        return [f"-DQWEN_{name}={value}" for name, value in zip(KINDS[self.kind], self.shape, strict=True)]


def why_not(program: Program) -> str | None:
    """Why there are no kernels for the shape, in one line; None if there are. Needs the library, but no GPU."""
    try:
        return gpu.said(gpu.load_library(gpu.LIBRARY).qwen_asr_cuda_why_not(*gpu.integers(program.key)))
    except gpu.Unusable as e:
        return str(e)


def scratch_bytes(program: Program) -> int:
    """Bytes of intermediate results of a decoder's call; of a program that `why_not` has nothing against."""
    return int(gpu.load_library(gpu.LIBRARY).qwen_asr_cuda_scratch_bytes(*gpu.integers(program.key)))


@functools.cache
def load(program: Program) -> None:
    """Compiles the program, or reads it from disk, and loads it into every GPU of this process.

    Raises:
      BackendError: that fails.
    """
    try:
        compiler = nvrtc.find((gpu.cuda_version() or 0) // 1000)
        library = gpu.load_library(gpu.LIBRARY)
        for device in jax.local_devices():
            image = compiled(compiler, program, compiler.target(gpu.architecture(device)))
            failure = gpu.said(library.qwen_asr_cuda_load(*gpu.integers(program.key), image, device.local_hardware_id))
            if failure:
                raise BackendError(f"the CUDA kernels cannot be used ({failure}); use --implementation=xla")
    except (gpu.Unusable, nvrtc.Missing, nvrtc.Refused) as e:
        raise BackendError(f"the CUDA kernels cannot be used ({e}); use --implementation=xla") from e


def compiled(compiler: nvrtc.Compiler, program: Program, target: str) -> bytes:
    """A program for a target, from the cache if it is there. It is trusted code: the cache is the user's own.

    Raises:
      nvrtc.Refused: it does not compile.
    """
    source = (SOURCES / f"{program.kind}.cu").read_text(encoding="utf-8")
    files = sorted([*SOURCES.glob("*.cuh"), SOURCES / "geometry.h", SOURCES / "arguments.h"])
    headers = {path.name: path.read_text(encoding="utf-8") for path in files}
    words = [source, *headers, *headers.values(), *program.flags, target, str(compiler.version)]
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()
    path = _place(f"{program.kind}-{target}-{digest[:32]}.bin")
    if path is not None and (kept := _read(path)) is not None:
        return kept
    image = compiler.compile(f"{program.kind}.cu", source, headers, program.flags, target)
    if path is not None:
        with contextlib.suppress(OSError, OutputError):  # a full or read-only disk: every start compiles, in a second or two
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(path, hashlib.sha256(image).digest() + image)
    return image


def _place(name: str) -> pathlib.Path | None:
    """Where a program is kept; None for a user without a home."""
    try:
        return runtime.user_cache_dir() / "cuda" / name
    except RuntimeError:
        return None


def _read(path: pathlib.Path) -> bytes | None:
    """A program that was kept; None where it is not, or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    image = data[size:]
    return image if image and data[:size] == hashlib.sha256(image).digest() else None
