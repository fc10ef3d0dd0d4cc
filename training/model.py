"""The demonstration model's geometry, its vocabulary, and its way from trained parameters to a checkpoint on disk."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from qwen_asr_jax.checkpoint.key_map import Entry
from qwen_asr_jax.checkpoint.write import write_checkpoint
from qwen_asr_jax.config import AudioConfig, ModelConfig, TextConfig
from qwen_asr_jax.files import scratch_directory
from qwen_asr_jax.policy import PRESETS
from qwen_asr_jax.text.tokenizer import Tokenizer
from qwen_asr_jax.text.tokenizer_files import train_vocabulary, write_tokenizer
from qwen_asr_jax.typing import Params
from training.lexicon import LANGUAGES

VOCABULARY_SIZE = 1000
"""Entries of the byte-level BPE, without added tokens."""

CONFIG = ModelConfig(
    kind="asr",
    layout="original",
    audio=AudioConfig(
        num_mel_bins=128,
        conv_channels=32,
        n_window=50,
        n_window_infer=800,
        embed_dim=160,
        num_layers=4,
        num_heads=5,
        mlp_dim=640,
        output_dim=160,
    ),
    text=TextConfig(
        vocab_size=1088,
        embed_dim=160,
        mlp_dim=480,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_positions=4096,
        tie_word_embeddings=True,
    ),
    head_rows=1088,
    audio_token_id=0,
    eos_token_ids=(),
    languages=tuple(lexicon.name for lexicon in LANGUAGES),
)
"""The real architecture, small: chunks, windows, q/k norms, grouped heads and the tied head are those of the published models.
The ids come from the tokenizer when the checkpoint is written."""

POLICY = dataclasses.replace(PRESETS["fp32"], implementation="xla")
"""Training computes in float32 on plain XLA: the native kernels have no derivatives."""


def vocabulary_texts(transcripts: Iterable[str]) -> list[str]:
    """What the vocabulary is trained on: the transcripts, and often enough all pieces of the prompt and the language line."""
    names = [*(lexicon.name for lexicon in LANGUAGES), "None"]
    frame = ["system\n", "user\n", "assistant\n", *(f"language {name}" for name in names)]
    return [*transcripts, *(frame * 2000)]


def make_tokenizer(out_dir: pathlib.Path, transcripts: Iterable[str]) -> Tokenizer:
    """Trains the vocabulary and writes the tokenizer's files into `out_dir`, which must exist."""
    with scratch_directory() as vocabulary:
        train_vocabulary(vocabulary, vocabulary_texts(transcripts), VOCABULARY_SIZE)
        return write_tokenizer(out_dir, tokenizer_dir=vocabulary, with_timestamp=False, single_file=False)


def export(out_dir: pathlib.Path, params: Params, tokenizer_dir: pathlib.Path) -> ModelConfig:
    """Writes the trained parameters as a checkpoint in the original layout, rounded to bfloat16.

    Args:
      params: `{"audio_tower": ..., "decoder": ...}`; anything else in it is left out.

    Raises:
      OutputError: `out_dir` is taken or cannot be written.
    """

    def tensor(entry: Entry, config: ModelConfig) -> np.ndarray:
        del config
        leaf = params
        for key in entry.path:
            leaf = leaf[key]
        return entry.to_stored(np.asarray(leaf).astype(ml_dtypes.bfloat16))

    return write_checkpoint(out_dir, CONFIG, tensor, tokenizer_dir=tokenizer_dir)
