"""Writes complete checkpoints in the real on-disk formats: weights, configuration, tokenizer and the other side files."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np

from qwen_asr_jax import runtime
from qwen_asr_jax.checkpoint.key_map import Entry, entries
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.checkpoint.safetensors_reader import write_tensors
from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.files import new_directory
from qwen_asr_jax.policy import PRESETS as POLICIES
from qwen_asr_jax.text.tokenizer import Tokenizer
from qwen_asr_jax.text.tokenizer_files import write_tokenizer

MAX_SHARD_BYTES = 4_300_000_000
"""Size from which on a checkpoint is split, like the published 1.7B one."""


def write_checkpoint(
    out_dir: pathlib.Path,
    model: ModelConfig,
    tensor: Callable[[Entry, ModelConfig], np.ndarray],
    *,
    tokenizer_dir: pathlib.Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Writes a complete model directory in the layout that the geometry names, weights in bfloat16.

    Args:
      model: geometry and layout; its ids come from the tokenizer.
      tensor: gives each tensor's values, in its stored shape, bfloat16; called from several threads.
      tokenizer_dir: where to copy `vocab.json` and `merges.txt` from; None makes a small vocabulary.
      max_shard_bytes: size from which on the weights are split into several files.

    Returns:
      The configuration as written.

    Raises:
      CheckpointError: `tokenizer_dir` lacks a file.
      UsageError: the vocabulary has no room for the tokenizer.
      OutputError: `out_dir` is taken or cannot be written.
    """
    with new_directory(out_dir) as partial:
        tokenizer = write_tokenizer(
            partial,
            tokenizer_dir=tokenizer_dir,
            with_timestamp=model.kind == "aligner",
            single_file=model.layout == "native",
        )
        if tokenizer.size > model.text.vocab_size:
            raise UsageError(f"the tokenizer has {tokenizer.size} entries, the model only {model.text.vocab_size} rows")
        config = dataclasses.replace(
            model,
            audio_token_id=tokenizer.special.audio_pad,
            eos_token_ids=(tokenizer.special.end_of_text, tokenizer.special.im_end),
        )
        for name, content in _side_files(config, tokenizer).items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            (partial / name).write_text(text, encoding="utf-8")
        _write_weights(partial, config, tensor, max_shard_bytes)
    return config


def _write_weights(
    out_dir: pathlib.Path, config: ModelConfig, tensor: Callable[[Entry, ModelConfig], np.ndarray], max_shard_bytes: int
) -> None:
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
    with concurrent.futures.ThreadPoolExecutor(runtime.default_threads()) as pool:
        for i, shard in enumerate(shards):
            single = len(shards) == 1
            file_name = "model.safetensors" if single else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            tensors = pool.map(tensor, shard, itertools.repeat(config))
            write_tensors(out_dir / file_name, dict(zip([e.name for e in shard], tensors, strict=True)))
            weight_map.update({e.name: file_name for e in shard})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(2 * math.prod(e.shape) for e in wanted)}, "weight_map": weight_map}
        (out_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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
