"""A checkpoint of the original layout as transformers reads it: the same tensors under native names, other side files."""

from __future__ import annotations

import dataclasses
import pathlib

import ml_dtypes
import numpy as np

from qwen_asr_jax.checkpoint.key_map import Entry, tensor_name
from qwen_asr_jax.checkpoint.safetensors_reader import TensorFiles
from qwen_asr_jax.checkpoint.write import write_checkpoint
from qwen_asr_jax.config import ModelConfig, read_config


def write_native_copy(model_dir: pathlib.Path, out_dir: pathlib.Path) -> pathlib.Path:
    """Writes it, in bfloat16, and returns its directory."""
    config = read_config(model_dir)
    files = TensorFiles(model_dir)
    tensors = {name: np.array(stored.read()) for name, stored in files.read(list(files.shapes))}

    def tensor(entry: Entry, native: ModelConfig) -> np.ndarray:
        del native
        return tensors[tensor_name(entry.path, config, "original")].astype(ml_dtypes.bfloat16)

    write_checkpoint(out_dir, dataclasses.replace(config, layout="native"), tensor, tokenizer_dir=model_dir)
    return out_dir
