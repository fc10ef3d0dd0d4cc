"""One tensor of a safetensors file: read into memory of its own, or mapped where it lies."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
import mmap
import os
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from qwen_asr_jax.errors import CheckpointError
from qwen_asr_jax.typing import DType

ALIGNMENT = 64
"""XLA's CPU backend takes over a buffer without copying when it starts on a cache line."""

_PAGES_FROM = 1 << 20  # buffers of this size get pages of their own, which go back to the system when the buffer does

_PIECE_BYTES = 1 << 20  # what is read to be cast stays in the processor's cache


def aligned_empty(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """An uninitialised array in a buffer that XLA's CPU backend can take over as it is."""
    size = math.prod(shape) * dtype.itemsize
    if size >= _PAGES_FROM:
        return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype).reshape(shape)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


class Mapping:
    """The bytes of a file, read-only and shared with the page cache, as long as an array over them lives.

    Not `mmap.mmap`, which keeps a file descriptor open as long.
    """

    def __init__(self, fd: int, size: int):
        self._size = size
        self._address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if self._address == ctypes.c_void_p(-1).value:
            self._size = 0
            raise OSError(ctypes.get_errno(), "cannot be mapped")
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (self._address, True), "version": 3}

    def __del__(self) -> None:
        if self._size and _libc is not None:  # at the end of the process there may be nothing left to call
            _libc().munmap(self._address, self._size)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


class OpenShard:
    """A file of tensors, open for reading; to be used in a `with` block.

    Raises:
      CheckpointError: it cannot be opened, or is no longer the file of that `stamp`.
    """

    def __init__(self, path: pathlib.Path, stamp: tuple[int, ...]):
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read ({e.strerror}); download it again") from None
        if file_stamp(os.fstat(self._fd)) != stamp:
            os.close(self._fd)
            raise CheckpointError(f"{path}: changed while it was being loaded; load again once it is complete")
        self._size = stamp[0]

    def __enter__(self) -> OpenShard:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self.__dict__.pop("_bytes", None)  # the mapping lives on in the arrays over it, if there are any

    def fill(self, buffer: np.ndarray, offset: int) -> None:
        """Reads the bytes from `offset` on into a contiguous array, until it is full.

        Raises:
          CheckpointError: there are not as many, or they cannot be read.
        """
        view = buffer.reshape(-1).view(np.uint8).data
        while len(view):
            try:
                count = os.preadv(self._fd, [view], offset) if _HAS_PREADV else self._read_into(view, offset)
            except OSError as e:
                raise CheckpointError(f"{self._path}: cannot be read ({e.strerror}); download it again") from None
            if not count:
                raise CheckpointError(f"{self._path}: was cut short while it was being loaded; download it again")
            view, offset = view[count:], offset + count

    def _read_into(self, view: memoryview, offset: int) -> int:
        piece = os.pread(self._fd, min(len(view), _PAGES_FROM), offset)
        view[: len(piece)] = piece
        return len(piece)

    def bytes_at(self, offset: int, size: int) -> np.ndarray | None:
        """A piece of the mapped file, or None where files cannot be mapped."""
        mapped = self._bytes
        return None if mapped is None else mapped[offset : offset + size]

    @functools.cached_property
    def _bytes(self) -> np.ndarray | None:
        if sys.platform != "linux":
            return None
        try:
            return np.asarray(Mapping(self._fd, self._size))
        except OSError:  # file systems without mappings, or no address space left
            return None


_HAS_PREADV = hasattr(os, "preadv")


def file_stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is rewritten, its size first."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor, not read yet; to be used before the next one is asked for.

    Attributes:
      shard: the open file.
      offset: where in the file its bytes start.
      shape, dtype: as stored.
    """

    shard: OpenShard
    offset: int
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The values in memory of their own, aligned for XLA.

        Raises:
          CheckpointError: the file was cut short or cannot be read; so for `pieces`.
        """
        out = aligned_empty(self.shape, self.dtype)
        self.shard.fill(out, self.offset)
        return out

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The values in order, flat, a few MB at a time: where they belong, and an array that the next piece overwrites."""
        step = min(self.size, _PIECE_BYTES // self.dtype.itemsize)
        buffer = np.empty(step, self.dtype)
        for start in range(0, self.size, max(step, 1)):
            piece = buffer[: self.size - start]
            self.shard.fill(piece, self.offset + start * self.dtype.itemsize)
            yield slice(start, start + len(piece)), piece

    def mapped(self) -> np.ndarray | None:
        """The values where they lie in the file, read-only; None unless they lie as XLA can use them."""
        if self.offset % ALIGNMENT or not self.size:
            return None
        data = self.shard.bytes_at(self.offset, self.size * self.dtype.itemsize)
        return None if data is None else data.view(self.dtype).reshape(self.shape)
