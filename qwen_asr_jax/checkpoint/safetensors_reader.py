"""Reads one or many safetensors files tensor by tensor, without ever holding much of them in memory; writes single ones."""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import safetensors

from qwen_asr_jax.checkpoint.stored_tensor import ALIGNMENT, OpenShard, StoredTensor, file_stamp
from qwen_asr_jax.config import read_json
from qwen_asr_jax.errors import CheckpointError, OutputError

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
        self._place: dict[str, tuple[int, np.dtype]] = {}  # offset and dtype
        self._stamps: dict[pathlib.Path, tuple[int, ...]] = {}
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
            self._stamps[path] = file_stamp(path.stat())
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from None
        try:
            with safetensors.safe_open(path, framework="np") as f:  # checks the header
                offsets = _offsets(path)
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
                    self._place[name] = offsets[name], dtype
        except (safetensors.SafetensorError, OSError, ValueError) as e:
            self.problems.append(f"{path.name} is truncated or not a safetensors file ({e}); download it again")
            return
        for name in sorted((expected or set()) - names):
            self.problems.append(f"{name} is not in {path.name}, where the index puts it")

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, StoredTensor]]:
        """Yields `(name, tensor)` in the order in which the files hold them; use each before asking for the next.

        Raises:
          CheckpointError: a file vanished or changed since the headers were read.
        """
        by_file: dict[pathlib.Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], []).append(name)
        for path, in_file in by_file.items():
            with OpenShard(path, self._stamps[path]) as shard:
                for name in sorted(in_file, key=lambda n: self._place[n][0]):
                    offset, dtype = self._place[name]
                    yield name, StoredTensor(shard, offset, self.shapes[name], dtype)


def _offsets(path: pathlib.Path) -> dict[str, int]:
    """Where in the file each tensor's bytes start, from a header that is known to be valid."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one safetensors file, with the `format` metadata that transformers asks for.

    The format leaves the data's alignment to the writer. Here they start on a cache line, and so does every tensor, as far as
    sizes allow without gaps, which the format forbids: such tensors can be used where they lie (`StoredTensor.mapped`).

    Raises:
      OutputError: it cannot be written (disk full, for one).
    """
    names = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT > 0, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor = tensors[name]
        code = next(code for code, dtype in _STORED_DTYPES.items() if dtype == tensor.dtype)
        end = at + tensor.nbytes
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    try:
        with path.open("wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                f.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    except OSError as e:
        raise OutputError(f"{path}: cannot be written ({e.strerror})") from None
