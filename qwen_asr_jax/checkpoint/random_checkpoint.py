"""Random checkpoints in the real on-disk format, for every place where no weights can be downloaded.

Values are uniform with variance `1 / fan_in`, which keeps activations in a sensible range through any depth; embeddings are
small beside what the layers add, or a tied head would only repeat its input. Each tensor's stream depends on the seed and
its own original name alone, so both layouts hold the same model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import zlib

import ml_dtypes
import numpy as np

from qwen_asr_jax.checkpoint.key_map import Entry, entries, tensor_name
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.checkpoint.safetensors_reader import write_tensors
from qwen_asr_jax.config import AudioConfig, Layout, ModelConfig, TextConfig
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.files import new_directory
from qwen_asr_jax.policy import PRESETS as POLICIES
from qwen_asr_jax.text.languages import LANGUAGE_CODES
from qwen_asr_jax.text.tokenizer import Tokenizer
from qwen_asr_jax.text.tokenizer_files import write_tokenizer

MAX_SHARD_BYTES = 4_300_000_000
"""Size from which on a checkpoint is split, like the published 1.7B one."""

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
    with new_directory(out_dir) as partial:
        aligner = model.kind == "aligner"
        tokenizer = write_tokenizer(
            partial, tokenizer_dir=tokenizer_dir, with_timestamp=aligner, single_file=layout == "native"
        )
        if tokenizer.size > model.text.vocab_size:
            raise UsageError(f"the tokenizer has {tokenizer.size} entries, the preset only {model.text.vocab_size} rows")
        config = dataclasses.replace(
            model,
            layout=layout,
            audio_token_id=tokenizer.special.audio_pad,
            eos_token_ids=(tokenizer.special.end_of_text, tokenizer.special.im_end),
        )
        for name, content in _side_files(config, tokenizer).items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            (partial / name).write_text(text, encoding="utf-8")
        _write_weights(partial, config, seed, max_shard_bytes)
    return config


def _write_weights(out_dir: pathlib.Path, config: ModelConfig, seed: int, max_shard_bytes: int) -> None:
    _, _, abstract = abstract_model(config, POLICIES["bf16"])
    wanted = entries(abstract, config)
    if config.layout == "original" and config.text.tie_word_embeddings:
        # The original files hold the tied head a second time.
        tied = next(e for e in wanted if e.path[-2:] == ("embed_tokens", "weight"))
        wanted.append(dataclasses.replace(tied, name="thinker.lm_head.weight"))
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in wanted:
        entry_bytes = 2 * math.prod(entry.shape)
        if size + entry_bytes > max_shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry_bytes
    weight_map = {}
    for i, shard in enumerate(shards):
        single = len(shards) == 1
        file_name = "model.safetensors" if single else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(out_dir / file_name, {e.name: random_tensor(e, config, seed) for e in shard})
        weight_map.update({e.name: file_name for e in shard})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(2 * math.prod(e.shape) for e in wanted)}, "weight_map": weight_map}
        (out_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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


def _side_files(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    front_end = {
        "chunk_length": 30,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.audio.num_mel_bins,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "Qwen3ASRProcessor",
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }
    generation = {
        "do_sample": False,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": tokenizer.special.end_of_text,
    }
    files: dict[str, object] = {"config.json": config_json(config, tokenizer), "generation_config.json": generation}
    if config.layout == "original":
        return {**files, "preprocessor_config.json": front_end, "chat_template.json": {"chat_template": _CHAT_TEMPLATE}}
    native = {
        "feature_extractor": {
            **front_end,
            "feature_extractor_type": "Qwen3ASRFeatureExtractor",
            "n_window": config.audio.n_window,
        },
        "processor_class": "Qwen3ASRProcessor",
        "timestamp_segment_time": 80,
    }
    return {**files, "processor_config.json": native, "chat_template.jinja": _CHAT_TEMPLATE}


_CHAT_TEMPLATE = (
    "<|im_start|>system\n{% for m in messages if m.role == 'system' %}{% for c in m.content %}{{ c.text }}{% endfor %}"
    "{% endfor %}<|im_end|>\n<|im_start|>user\n{% for m in messages if m.role == 'user' %}{% for c in m.content"
    " if c.type == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>{% endfor %}{% endfor %}<|im_end|>\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config_json(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """The content of `config.json` for a configuration, in its layout."""
    audio, text = config.audio, config.text
    audio_json: dict[str, object] = {
        "activation_function": "gelu",
        "d_model": audio.embed_dim,
        "downsample_hidden_size": audio.conv_channels,
        "encoder_attention_heads": audio.num_heads,
        "encoder_ffn_dim": audio.mlp_dim,
        "encoder_layers": audio.num_layers,
        "n_window": audio.n_window,
        "n_window_infer": audio.n_window_infer,
        "num_mel_bins": audio.num_mel_bins,
        "output_dim": audio.output_dim,
        "scale_embedding": False,
    }
    text_json: dict[str, object] = {
        "attention_bias": False,
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "hidden_size": text.embed_dim,
        "intermediate_size": text.mlp_dim,
        "max_position_embeddings": text.max_positions,
        "model_type": "qwen3",
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.norm_eps,
        "tie_word_embeddings": text.tie_word_embeddings,
        "vocab_size": text.vocab_size,
    }
    special = tokenizer.special
    aligner = config.kind == "aligner"
    if config.layout == "original":
        half = text.head_dim // 2
        section = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
        text_json |= {
            "rope_theta": text.rope_theta,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": section, "rope_type": "default"},
        }
        thinker = {
            "audio_config": audio_json | {"model_type": "qwen3_asr_audio_encoder", "max_source_positions": 1500},
            "audio_end_token_id": special.audio_end,
            "audio_start_token_id": special.audio_start,
            "audio_token_id": config.audio_token_id,
            "dtype": "bfloat16",
            "model_type": "qwen3_forced_aligner" if aligner else "qwen3_asr",
            "text_config": text_json,
        }
        root: dict[str, object] = {
            "architectures": ["Qwen3ASRForConditionalGeneration"],
            "model_type": "qwen3_asr",
            "support_languages": list(config.languages),
            "thinker_config": thinker | ({"classify_num": config.head_rows} if aligner else {}),
        }
        return root | ({"timestamp_segment_time": 80, "timestamp_token_id": special.timestamp} if aligner else {})
    text_json["rope_parameters"] = {"rope_theta": text.rope_theta, "rope_type": "default"}
    chunk_tokens = {"max_position_embeddings": audio.chunk_tokens}
    kind = "Qwen3ASRForTokenClassification" if aligner else "Qwen3ASRForConditionalGeneration"
    root = {
        "architectures": [kind],
        "audio_config": audio_json | chunk_tokens | {"model_type": "qwen3_asr_encoder"},
        "audio_token_id": config.audio_token_id,
        "dtype": "bfloat16",
        "eos_token_id": list(config.eos_token_ids),
        "model_type": "qwen3_asr",
        "pad_token_id": special.im_end,
        "text_config": text_json,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    labels = {"id2label": {str(i): f"LABEL_{i}" for i in range(config.head_rows)}, "timestamp_token_id": special.timestamp}
    return root | (labels if aligner else {})
