"""The whole model as one module tree, from which shapes, loading and conversion all derive."""

from __future__ import annotations

from flax import nnx

from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.models.audio_encoder import AudioEncoder
from qwen_asr_jax.models.text_decoder import TextDecoder
from qwen_asr_jax.policy import Policy


class Qwen3ASR(nnx.Module):
    """Audio encoder and text decoder of one checkpoint. Abstract (shapes only) unless `rngs` are given."""

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs | None = None):
        self.audio_tower = AudioEncoder(config.audio, policy=policy, rngs=rngs)
        self.decoder = TextDecoder(config, policy=policy, rngs=rngs)
