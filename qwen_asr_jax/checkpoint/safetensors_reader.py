"""Reads one or many safetensors files tensor by tensor, without ever holding much of them in memory."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import safetensors

from qwen_asr_jax.config import read_json
from qwen_asr_jax.errors import CheckpointError, OutputError

_REMAP_BYTES = 256 << 20
"""A file is closed and mapped again after this many bytes: pages read from a mapping count as resident until then."""

_STORED_DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


class TensorFiles:
    """The tensors of a model directory: `model.safetensors`, or the shards of `model.safetensors.index.json`.

    Attributes:
      shapes: shape of every tensor, by name.
      problems: one line for each thing that is wrong with the files as such (absent or broken shards, tensors that the index
        names and the shard lacks, tensors in two shards); the caller reports them together with its own.

    Raises:
      CheckpointError: there is no weight file at all, or the index cannot be read.
    """

    def __init__(self, model_dir: pathlib.Path):
        self.model_dir = model_dir
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.problems: list[str] = []
        self._file_of: dict[str, pathlib.Path] = {}
        self._bytes: dict[str, int] = {}
        index = model_dir / "model.safetensors.index.json"
        single = model_dir / "model.safetensors"
        if index.exists():
            self._read_index(index)
        elif single.exists():
            self._read_file(single, None)
        else:
            raise CheckpointError(
                f"{model_dir}: no model.safetensors and no model.safetensors.index.json; is the download complete?"
            )

    def _read_index(self, index: pathlib.Path) -> None:
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
            raise CheckpointError(f"{index}: field weight_map is missing, empty or malformed; download the file again")
        for file_name in sorted(set(weight_map.values())):
            names = {name for name, f in weight_map.items() if f == file_name}
            path = self.model_dir / file_name
            if not path.exists():
                self.problems.append(f"shard {file_name} is absent ({len(names)} tensors); download it again")
            else:
                self._read_file(path, names)

    def _read_file(self, path: pathlib.Path, expected: set[str] | None) -> None:
        try:
            with path.open("rb"):
                pass
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from None
        try:
            with safetensors.safe_open(path, framework="np") as f:
                names = set(f.keys())
                for name in sorted(names):
                    part = f.get_slice(name)
                    dtype = _STORED_DTYPES.get(part.get_dtype())
                    if dtype is None:
                        self.problems.append(f"{name} is stored as {part.get_dtype()}; only BF16, F16 and F32 are read")
                        continue
                    if name in self.shapes:
                        self.problems.append(f"{name} is in two files, {self._file_of[name].name} and {path.name}")
                    self.shapes[name] = tuple(part.get_shape())
                    self._file_of[name] = path
                    self._bytes[name] = int(np.prod(self.shapes[name])) * dtype.itemsize
        except (safetensors.SafetensorError, OSError, ValueError) as e:
            self.problems.append(f"{path.name} is truncated or not a safetensors file ({e}); download it again")
            return
        for name in sorted((expected or set()) - names):
            self.problems.append(f"{name} is not in {path.name}, where the index puts it")

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields `(name, tensor)` in whatever order reads fastest; a tensor is a private copy in its stored dtype.

        Raises:
          CheckpointError: a file vanished or changed since the headers were read.
        """
        by_file: dict[pathlib.Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], []).append(name)
        for path, in_file in by_file.items():
            group: list[str] = []
            size = 0
            for name in sorted(in_file, key=lambda n: -self._bytes[n]):
                group.append(name)
                size += self._bytes[name]
                if size >= _REMAP_BYTES:
                    yield from self._read_group(path, group)
                    group, size = [], 0
            yield from self._read_group(path, group)

    def _read_group(self, path: pathlib.Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        try:
            with safetensors.safe_open(path, framework="np") as f:
                for name in names:
                    yield name, f.get_tensor(name)
        except (safetensors.SafetensorError, OSError) as e:
            raise CheckpointError(f"{path}: cannot be read ({e}); download it again") from None


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one safetensors file, with the `format` metadata that transformers asks for.

    Raises:
      OutputError: it cannot be written (disk full, for one).
    """
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as e:
        raise OutputError(f"{path}: cannot be written ({e})") from None
    path.chmod(0o644)  # the library makes the file private
