"""Model geometry, read from a checkpoint's `config.json`. Nothing here is assumed: a field that is needed must be there.

Two layouts are understood: the original one (a `thinker_config` that nests everything) and the one native to
transformers 5 (flat). They differ in a few names; `_Reader` accepts both spellings.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from qwen_asr_jax.errors import CheckpointError

Kind = Literal["asr", "aligner"]
Layout = Literal["original", "native"]


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Geometry of the audio encoder (conv stem, windowed transformer, projector)."""

    num_mel_bins: int
    conv_channels: int
    n_window: int
    n_window_infer: int
    embed_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    output_dim: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def chunk_frames(self) -> int:
        """Mel frames per convolution chunk: 100 (one second) in every published model."""
        return 2 * self.n_window

    @property
    def chunk_tokens(self) -> int:
        """Audio tokens per full chunk: three stride-2 convolutions, each `ceil(n / 2)`; 13 for 100 frames."""
        return -(-self.chunk_frames // 8)

    @property
    def window_chunks(self) -> int:
        """Chunks per attention window: 8 (eight seconds, 104 tokens) in every published model."""
        return self.n_window_infer // self.chunk_frames

    @property
    def conv_freq_bins(self) -> int:
        """Frequency rows left after the three stride-2 convolutions: 16 for 128 mel bins."""
        return -(-self.num_mel_bins // 8)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Geometry of the causal decoder (Qwen3)."""

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    tie_word_embeddings: bool


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that `config.json` decides.

    `head_rows` is the number of output classes: the vocabulary for a transcription model, time classes for an aligner.
    `audio_token_id` and `eos_token_ids` are checked against the tokenizer; `languages` is empty where none are listed.
    """

    kind: Kind
    layout: Layout
    audio: AudioConfig
    text: TextConfig
    head_rows: int
    audio_token_id: int
    eos_token_ids: tuple[int, ...]
    languages: tuple[str, ...]


class _Reader:
    """Reads fields of one (sub)config under any of their spellings, and names what is missing."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values = values
        self.where = where

    def get(self, *names: str, default: Any = None) -> Any:
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        return default

    def need(self, kind: type, *names: str) -> Any:
        value = self.get(*names)
        if value is None:
            raise CheckpointError(f"{self.where}: field {' or '.join(names)} is missing; is this a Qwen3-ASR config?")
        if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
            raise CheckpointError(f"{self.where}: {names[0]} must be a positive integer, got {value!r}")
        if kind is float and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise CheckpointError(f"{self.where}: {names[0]} must be a positive number, got {value!r}")
        if kind is bool and not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {names[0]} must be true or false, got {value!r}")
        return kind(value)

    def expect(self, name: str, *allowed: Any) -> None:
        """A setting that changes the computation must be one this code implements; absent means the usual one."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise CheckpointError(f"{self.where}: {name}={value!r} is not supported (only {allowed[0]!r})")

    def sub(self, *names: str) -> _Reader:
        value = self.get(*names)
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self.where}: section {names[0]} is missing; is this a Qwen3-ASR config?")
        return _Reader(value, f"{self.where}: {names[0]}")


def _audio_config(r: _Reader) -> AudioConfig:
    r.expect("activation_function", "gelu")
    r.expect("scale_embedding", False)
    config = AudioConfig(
        num_mel_bins=r.need(int, "num_mel_bins"),
        conv_channels=r.need(int, "downsample_hidden_size"),
        n_window=r.need(int, "n_window"),
        n_window_infer=r.need(int, "n_window_infer"),
        embed_dim=r.need(int, "d_model", "hidden_size"),
        num_layers=r.need(int, "encoder_layers", "num_hidden_layers"),
        num_heads=r.need(int, "encoder_attention_heads", "num_attention_heads"),
        mlp_dim=r.need(int, "encoder_ffn_dim", "intermediate_size"),
        output_dim=r.need(int, "output_dim"),
    )
    if config.embed_dim % config.num_heads or config.embed_dim % 2:
        raise CheckpointError(f"{r.where}: d_model {config.embed_dim} does not divide into {config.num_heads} heads")
    if config.n_window_infer % config.chunk_frames:
        raise CheckpointError(
            f"{r.where}: n_window_infer {config.n_window_infer} is no multiple of 2 * n_window = {config.chunk_frames}"
        )
    return config


def _text_config(r: _Reader, tie_default: Any) -> TextConfig:
    r.expect("hidden_act", "silu")
    r.expect("attention_bias", False)
    r.expect("use_sliding_window", False)
    section = next((n for n in ("rope_parameters", "rope_scaling") if r.get(n) is not None), None)
    rope = _Reader({}, r.where) if section is None else r.sub(section)
    _Reader({"rope_type": rope.get("rope_type", "type")}, rope.where).expect("rope_type", "default")
    theta = _Reader({"rope_theta": r.get("rope_theta", default=rope.get("rope_theta"))}, r.where)
    tie = _Reader({"tie_word_embeddings": r.get("tie_word_embeddings", default=tie_default)}, r.where)
    config = TextConfig(
        vocab_size=r.need(int, "vocab_size"),
        embed_dim=r.need(int, "hidden_size"),
        mlp_dim=r.need(int, "intermediate_size"),
        num_layers=r.need(int, "num_hidden_layers"),
        num_heads=r.need(int, "num_attention_heads"),
        num_kv_heads=r.need(int, "num_key_value_heads"),
        head_dim=r.need(int, "head_dim"),
        norm_eps=r.need(float, "rms_norm_eps"),
        rope_theta=theta.need(float, "rope_theta"),
        max_positions=r.need(int, "max_position_embeddings"),
        tie_word_embeddings=tie.need(bool, "tie_word_embeddings"),
    )
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(f"{r.where}: {config.num_heads} heads do not divide into {config.num_kv_heads} kv heads")
    if config.head_dim % 2:
        raise CheckpointError(f"{r.where}: head_dim {config.head_dim} is odd; rotary embedding needs pairs")
    return config


def _list_of(kind: type, value: Any, where: str, name: str) -> tuple[Any, ...]:
    """The value as a tuple; a single one counts as a list of one, None as an empty list."""
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise CheckpointError(f"{where}: {name} must be a list of {kind.__name__}, got {value!r}")
    return tuple(values)


def parse_config(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None, where: str = "config.json"
) -> ModelConfig:
    """Builds the geometry from the content of `config.json` and, where there is one, `generation_config.json`.

    Raises:
      CheckpointError: a needed field is missing or makes no sense, or a setting is not supported; the message names it.
    """
    root = _Reader(config, where)
    layout: Layout = "original" if "thinker_config" in config else "native"
    body = root.sub("thinker_config") if layout == "original" else root
    audio = _audio_config(body.sub("audio_config"))
    text = _text_config(body.sub("text_config"), tie_default=body.get("tie_word_embeddings"))
    if audio.output_dim != text.embed_dim:
        raise CheckpointError(
            f"{where}: audio_config.output_dim {audio.output_dim} differs from text_config.hidden_size {text.embed_dim}"
        )
    classes = body.get("classify_num", default=root.get("classify_num"))
    if classes is None and layout == "native":
        labels = root.get("id2label")
        classes = root.get("num_labels", default=len(labels) if isinstance(labels, Mapping) else None)
        architectures = _list_of(str, root.get("architectures"), where, "architectures")
        if classes is None and "Qwen3ASRForTokenClassification" in architectures:
            raise CheckpointError(f"{where}: an aligner needs num_labels or id2label")
    kind: Kind = "asr"
    if classes is not None:  # an aligner; its head is never tied, whatever the file's general flag says
        kind, text = "aligner", dataclasses.replace(text, tie_word_embeddings=False)
        classes = _Reader({"classes": classes}, where).need(int, "classes")
    eos = (generation or {}).get("eos_token_id")
    return ModelConfig(
        kind=kind,
        layout=layout,
        audio=audio,
        text=text,
        head_rows=classes or text.vocab_size,
        audio_token_id=body.need(int, "audio_token_id"),
        eos_token_ids=_list_of(int, eos if eos is not None else root.get("eos_token_id"), where, "eos_token_id"),
        languages=_list_of(str, root.get("support_languages"), where, "support_languages"),
    )


def read_json(path: pathlib.Path) -> Any:
    """Parses one JSON file of a model directory.

    Raises:
      CheckpointError: the file is absent, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is {path.parent} a complete model directory?") from None
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise CheckpointError(f"{path}: not valid JSON ({e}); download the file again") from None


def read_config(model_dir: pathlib.Path) -> ModelConfig:
    """Reads `config.json` and `generation_config.json` of a model directory.

    Raises:
      CheckpointError: see `read_json` and `parse_config`.
    """
    config = read_json(model_dir / "config.json")
    generation_path = model_dir / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else None
    for name, content in (("config.json", config), ("generation_config.json", {} if generation is None else generation)):
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{model_dir / name}: not a JSON object")
    return parse_config(config, generation, where=str(model_dir / "config.json"))
