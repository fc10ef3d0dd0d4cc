"""Random checkpoints in the real on-disk format, for every place where no weights can be downloaded.

Values are uniform with variance `1 / fan_in`, which keeps activations in a sensible range through any depth; embeddings are
small beside what the layers add, or a tied head would only repeat its input. Each tensor's stream depends on the seed and
its own original name alone, so both layouts hold the same model.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import zlib

import ml_dtypes
import numpy as np

from qwen_asr_jax.checkpoint.key_map import Entry, tensor_name
from qwen_asr_jax.checkpoint.write import MAX_SHARD_BYTES, write_checkpoint
from qwen_asr_jax.config import AudioConfig, Layout, ModelConfig, TextConfig
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.text.languages import LANGUAGE_CODES

_ENCODER_SMALL = AudioConfig(128, 480, 50, 800, 896, 18, 14, 3584, 1024)
_ENCODER_LARGE = AudioConfig(128, 480, 50, 800, 1024, 24, 16, 4096, 2048)
_DECODER_SMALL = TextConfig(151936, 1024, 3072, 28, 16, 8, 128, 1e-6, 1e6, 65536, True)
_DECODER_LARGE = dataclasses.replace(_DECODER_SMALL, embed_dim=2048, mlp_dim=6144)


_GAINS = {"o_proj": 0.3, "k_norm": 3.0}
"""Without these, attention averages everything it sees and a deep random model says one token for ever: with small
attention outputs and sharp scores, what it says depends on the audio and on the last token."""


def _model(audio: AudioConfig, text: TextConfig, classes: int | None = None) -> ModelConfig:
    return ModelConfig(
        kind="asr" if classes is None else "aligner",
        layout="original",
        audio=audio,
        text=text,
        head_rows=classes or text.vocab_size,
        audio_token_id=0,
        eos_token_ids=(),
        languages=tuple(LANGUAGE_CODES),
    )


MODELS: dict[str, ModelConfig] = {
    "tiny": _model(
        AudioConfig(128, 16, 50, 800, 64, 2, 4, 128, 48),
        TextConfig(512, 48, 96, 3, 4, 2, 16, 1e-6, 1e6, 4096, True),
    ),
    "0.6b": _model(_ENCODER_SMALL, _DECODER_SMALL),
    "1.7b": _model(_ENCODER_LARGE, _DECODER_LARGE),
    "aligner-0.6b": _model(
        dataclasses.replace(_ENCODER_LARGE, output_dim=1024),
        dataclasses.replace(_DECODER_SMALL, vocab_size=152064, max_positions=8192, tie_word_embeddings=False),
        classes=5000,
    ),
}
"""Geometries by preset name; the three real ones are the published configurations."""


def write_random_checkpoint(
    out_dir: pathlib.Path,
    model: str | ModelConfig,
    *,
    layout: Layout = "original",
    seed: int = 0,
    tokenizer_dir: pathlib.Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Writes a complete model directory with random weights.

    Args:
      model: a key of `MODELS`, or a geometry.
      tokenizer_dir: where to copy a real vocabulary from; None makes a small one.

    Returns:
      The configuration as written.

    Raises:
      UsageError: no such preset, or the vocabulary has no room for the tokenizer.
      OutputError: `out_dir` is taken or cannot be written.
    """
    if isinstance(model, str):
        if model not in MODELS:
            raise UsageError(f"unknown preset {model!r}: choose one of {', '.join(MODELS)}")
        model = MODELS[model]
    return write_checkpoint(
        out_dir,
        dataclasses.replace(model, layout=layout),
        lambda entry, config: random_tensor(entry, config, seed),
        tokenizer_dir=tokenizer_dir,
        max_shard_bytes=max_shard_bytes,
    )


def random_tensor(entry: Entry, config: ModelConfig, seed: int) -> np.ndarray:
    """The values of one tensor, in its stored shape, bfloat16."""
    name = tensor_name(entry.path, config, "original")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    shape = entry.stored_shape
    u = rng.random(shape, dtype=np.float32)
    u *= 2
    u -= 1
    if len(shape) >= 2:
        u *= math.sqrt(3.0 / math.prod(shape[1:]))
    elif name.endswith("bias"):
        u *= 0.1
    else:
        u = 1 + 0.2 * u
    u *= _GAINS.get(name.split(".")[-2], 1.0)
    return u.astype(ml_dtypes.bfloat16)
