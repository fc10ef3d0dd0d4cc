"""Weights are mapped where they lie as XLA wants them, read into memory of their own elsewhere; either way the same values."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen_asr_jax.checkpoint import stored_tensor
from qwen_asr_jax.checkpoint.key_map import leaves
from qwen_asr_jax.checkpoint.load import load_checkpoint
from qwen_asr_jax.checkpoint.safetensors_reader import TensorFiles, write_tensors
from qwen_asr_jax.checkpoint.stored_tensor import ALIGNMENT, aligned_empty
from qwen_asr_jax.config import read_config
from qwen_asr_jax.errors import CheckpointError
from qwen_asr_jax.policy import PRESETS
from tests.unit.test_checkpoint_errors import assert_bit_equal

linux = pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="asks /proc, and maps on Linux only")

NORM = "thinker.model.norm.weight"
MAPPED = ("decoder", "embed_tokens", "weight")  # 512 x 48 bf16, a multiple of a cache line


def params_of(model_dir, policy: str = "bf16"):
    return load_checkpoint(model_dir, read_config(model_dir), PRESETS[policy]).params


def shifted(model_dir, out_dir, by: int = 8):
    """A copy whose tensors start `by` bytes behind a cache line, as most published files' do."""
    shutil.copytree(model_dir, out_dir)
    data = (out_dir / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + size] + b" " * by
    (out_dir / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    return out_dir


def file_at(address: int) -> str:
    """The file that is mapped at an address of this process; empty for memory of its own."""
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return [*line.split(maxsplit=5), ""][5].strip()
    raise AssertionError("mapped nowhere")


def address_of(params, path=MAPPED) -> int:
    return dict(leaves(params))[path].unsafe_buffer_pointer()


@linux
def test_aligned_weights_of_the_right_dtype_are_used_where_they_lie(tiny_original, tmp_path):
    assert file_at(address_of(params_of(tiny_original))) == str((tiny_original / "model.safetensors").resolve())
    assert file_at(address_of(params_of(tiny_original, "fp32"))) in ("", "[heap]")
    assert file_at(address_of(params_of(shifted(tiny_original, tmp_path / "shifted")))) in ("", "[heap]")


@pytest.mark.parametrize("policy", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("by", [8, 24])
def test_unaligned_files_load_the_same_values(tiny_original, tmp_path, policy, by):
    assert_bit_equal(params_of(shifted(tiny_original, tmp_path / "shifted", by), policy), params_of(tiny_original, policy))


@pytest.mark.parametrize("policy", ["fp32", "bf16", "fp16"])
def test_pieces_make_up_the_whole(tiny_original, monkeypatch, policy):
    whole = params_of(tiny_original, policy)
    monkeypatch.setattr(stored_tensor, "_PIECE_BYTES", 100)
    assert_bit_equal(params_of(tiny_original, policy), whole)


def test_files_that_cannot_be_mapped_are_read(tiny_original, monkeypatch):
    whole = params_of(tiny_original)

    def refuse(fd, size):
        raise OSError

    monkeypatch.setattr(stored_tensor, "Mapping", refuse)
    assert_bit_equal(params_of(tiny_original), whole)


@linux
def test_weights_outlive_the_name_of_their_file(tiny_original, tmp_path):
    copy = shutil.copytree(tiny_original, tmp_path / "copy")
    params = params_of(copy)
    shutil.rmtree(copy)
    assert_bit_equal(params, params_of(tiny_original))


@linux
@pytest.mark.parametrize("policy", ["fp32", "bf16", "int8"])
def test_loading_leaves_no_files_open_and_no_mappings_behind(tiny_original, tmp_path, policy):
    copy = shutil.copytree(tiny_original, tmp_path / "copy")
    params = params_of(copy, policy)
    for fd in pathlib.Path("/proc/self/fd").iterdir():
        assert str(copy) not in os.path.realpath(fd)
    del params
    gc.collect()
    assert str(copy) not in pathlib.Path("/proc/self/maps").read_text()


def cut(path):
    os.truncate(path, path.stat().st_size - 100)


def grow(path):
    with path.open("ab") as f:
        f.write(b"more")


def rewrite(path):
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [cut, grow, rewrite, pathlib.Path.unlink])
def test_a_file_that_changes_after_its_header_was_read_is_refused(tiny_original, tmp_path, change):
    copy = shutil.copytree(tiny_original, tmp_path / "copy")
    files = TensorFiles(copy)
    change(copy / "model.safetensors")
    with pytest.raises(CheckpointError) as e:
        list(files.read([NORM]))
    assert "model.safetensors" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_file_cut_short_while_it_is_read_is_refused(tiny_original, tmp_path):
    copy = shutil.copytree(tiny_original, tmp_path / "copy")
    for _, tensor in TensorFiles(copy).read([NORM]):
        os.truncate(copy / "model.safetensors", 100)
        with pytest.raises(CheckpointError, match="cut short"):
            tensor.read()


def test_written_tensors_start_on_cache_lines_and_the_library_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "odd": rng.standard_normal(5).astype(np.float16),
        "b": rng.standard_normal((4, 32)).astype(ml_dtypes.bfloat16),
        "a": rng.standard_normal((8, 8)).astype(np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    data = (tmp_path / "x.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {name for name, entry in header.items() if (8 + size + entry["data_offsets"][0]) % ALIGNMENT == 0} >= {"a", "b"}
    for name, found in load_file(tmp_path / "x.safetensors").items():
        assert found.dtype == tensors[name].dtype
        assert found.tobytes() == tensors[name].tobytes()


@pytest.mark.parametrize("shape", [(), (3,), (1 << 20,)])
def test_buffers_are_aligned(shape):
    out = aligned_empty(shape, np.dtype(np.float32))
    assert out.shape == shape
    assert out.ctypes.data % ALIGNMENT == 0
    assert out.flags.writeable
