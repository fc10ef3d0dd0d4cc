"""What a stage must do at least, in operations and in bytes, and how long a machine of given limits needs for that.

FLOP = 2 x multiply-accumulate. Counted is the clip's own work, without padding: what an implementation adds on top shows as a
smaller fraction of the floor. Norms, activations and softmax are left out; they are below 2 % of the operations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from qwen_asr_jax.audio.frames import num_audio_tokens
from qwen_asr_jax.checkpoint.key_map import SCALE, leaves
from qwen_asr_jax.config import AudioConfig, ModelConfig, TextConfig
from qwen_asr_jax.engine.state import cache_bytes
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of one stage: arithmetic operations, and bytes that must come from memory."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a machine can do at most, as measured by the `roofline` workload.

    Attributes:
      read_gb_s: memory reads, 1e9 bytes per second.
      f32_gflop_s, bf16_gflop_s: matrix products with float32 and with bfloat16 operands, 1e9 operations per second.
      date: when it was measured.
    """

    read_gb_s: float
    f32_gflop_s: float
    bf16_gflop_s: float
    date: str

    def floor(self, cost: Cost, policy: Policy) -> tuple[float, str]:
        """Milliseconds that the work takes at least, and whether `bytes` or `flops` decide.

        Half precision is held against the bfloat16 rate, also where a backend has to compute float16 in float32. So is int8,
        which is multiplied in the compute dtype: it saves bytes, not operations.
        """
        rate = self.f32_gflop_s if policy.compute_dtype == "float32" else self.bf16_gflop_s
        by_bytes, by_flops = cost.bytes / self.read_gb_s / 1e6, cost.flops / rate / 1e6
        return max(by_bytes, by_flops), "bytes" if by_bytes >= by_flops else "flops"


def tree_bytes(params: Params) -> int:
    """Bytes of all arrays of a tree; they may be shapes alone."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def bytes_by_dtype(params: Params) -> dict[str, int]:
    """Bytes of all arrays of a tree, by the name of their dtype."""
    found: dict[str, int] = {}
    for leaf in jax.tree.leaves(params):
        found[leaf.dtype.name] = found.get(leaf.dtype.name, 0) + leaf.nbytes
    return found


def num_parameters(params: Params) -> int:
    """Values of all arrays of a tree; the scales of int8 matrices are none of the model's."""
    return sum(leaf.size for path, leaf in leaves(params) if path[-1] != SCALE)


def encoder_cost(config: AudioConfig, params: Params, frames: int) -> Cost:
    """Encoding `frames` mel frames: three strided convolutions, the layers, attention within windows, the projector."""
    return Cost(conv_stem_flops(config, frames) + transformer_flops(config, frames), tree_bytes(params))


def conv_stem_flops(config: AudioConfig, frames: int) -> float:
    """Three 3 x 3 convolutions of stride 2 over time and frequency, then one linear layer."""
    channels = config.conv_channels
    full, rest = divmod(frames, config.chunk_frames)
    macs, time, bins, c_in = 0.0, frames, config.num_mel_bins, 1
    for halvings in (1, 2, 3):
        # Chunks are convolved for themselves: every chunk's last row is rounded up.
        time = full * -(-config.chunk_frames // 2**halvings) + -(-rest // 2**halvings)
        bins = -(-bins // 2)
        macs += time * bins * channels * 9 * c_in
        c_in = channels
    return 2 * (macs + time * channels * config.conv_freq_bins * config.embed_dim)


def transformer_flops(config: AudioConfig, frames: int) -> float:
    """The encoder's layers and projector."""
    tokens, width = num_audio_tokens(frames, config), config.embed_dim
    window = config.window_chunks * config.chunk_tokens
    full, rest = divmod(tokens, window)
    attention = 2 * width * (full * window**2 + rest**2)
    layers = config.num_layers * (tokens * (4 * width**2 + 2 * width * config.mlp_dim) + attention)
    return 2 * (layers + tokens * (width**2 + width * config.output_dim))


def prefill_cost(config: ModelConfig, params: Params, policy: Policy, tokens: int, screen: Params = None) -> Cost:
    """A prompt of `tokens` into an empty cache, and the head once; the cache is written, not read. `screen`: as below."""
    text = config.text
    attention = 2 * text.num_layers * text.num_heads * text.head_dim * tokens * (tokens + 1)  # causal: half of T x T, twice
    flops = tokens * _layer_flops(text) + attention + _head_flops(config)
    return Cost(flops, _decoder_bytes(params, screen) + cache_bytes(text, policy, 1, tokens))


def decode_cost(
    config: ModelConfig, params: Params, policy: Policy, context: float, rows: int = 1, screen: Params = None
) -> Cost:
    """One step of `rows` rows that each attend to `context` cached tokens: all weights once, the cache of every row.

    Args:
      screen: what is read in place of the head, of which then only a few rows are (`ops.screen`); None for the head itself.
    """
    text = config.text
    attention = 4 * text.num_layers * text.num_heads * text.head_dim * context
    per_token = cache_bytes(text, policy, 1, 1)
    flops = rows * (_layer_flops(text) + attention + _head_flops(config))
    return Cost(flops, _decoder_bytes(params, screen) + rows * context * per_token)


def _layer_flops(text: TextConfig) -> float:
    """Matrix products of all layers for one token."""
    q_dim, kv_dim = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    return 2 * text.num_layers * text.embed_dim * (2 * q_dim + 2 * kv_dim + 3 * text.mlp_dim)


def _head_flops(config: ModelConfig) -> float:
    return 2 * config.head_rows * config.text.embed_dim


def _decoder_bytes(params: Params, screen: Params) -> int:
    """Weights that a step reads: all, but of an embedding table that is not the head, and of a screened head, only rows."""
    decoder: dict[str, Any] = dict(params["decoder"])
    if "lm_head" in decoder:
        decoder.pop("embed_tokens")
    if screen is not None:
        decoder.pop("lm_head" if "lm_head" in decoder else "embed_tokens")
    return tree_bytes(decoder) + tree_bytes(screen)
