"""Any readable checkpoint to an orbax directory."""

from __future__ import annotations

import pathlib

from qwen_asr_jax import runtime
from qwen_asr_jax.checkpoint import orbax_store
from qwen_asr_jax.checkpoint.load import load_checkpoint
from qwen_asr_jax.config import read_config
from qwen_asr_jax.files import new_directory
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.text.tokenizer import load_tokenizer


def convert(source_dir: pathlib.Path, out_dir: pathlib.Path, policy: Policy) -> int:
    """Reads `source_dir` under `policy` and writes it to `out_dir`, all of it or nothing.

    Returns:
      Bytes of the weights as stored.

    Raises:
      CheckpointError: the source cannot be used (its tokenizer is checked, too).
      OutputError: `out_dir` is taken or cannot be written.
    """
    runtime.configure("cpu")
    with new_directory(out_dir) as partial:
        load_tokenizer(source_dir)
        checkpoint = load_checkpoint(source_dir, read_config(source_dir), policy)
        orbax_store.save(source_dir, partial, checkpoint.params, policy)
    return orbax_store.num_bytes(checkpoint.params)
