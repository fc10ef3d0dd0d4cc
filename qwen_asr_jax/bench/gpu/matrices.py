"""The matrices that a step of decoding reads, by name; and how they may lie in memory."""

from __future__ import annotations

from qwen_asr_jax.config import TextConfig

STORED, TURNED = "[out, in]", "[in, out]"
"""How a matrix lies in memory: as in checkpoints, or transposed."""

LAYERS = ("q|k|v", "o", "gate|up", "down")
"""Those of each layer; beside them there is the head."""


def products(text: TextConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each, joined as an engine may join them."""
    heads = text.num_heads * text.head_dim
    shapes = (
        (heads + 2 * text.num_kv_heads * text.head_dim, text.embed_dim),
        (text.embed_dim, heads),
        (2 * text.mlp_dim, text.embed_dim),
        (text.embed_dim, text.mlp_dim),
    )
    return {**dict(zip(LAYERS, shapes, strict=True)), "head": (text.vocab_size, text.embed_dim)}
