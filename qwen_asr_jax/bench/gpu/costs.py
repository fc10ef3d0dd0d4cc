"""The least work of what the targets are about, by the bench's cost model: the page holds it against any machine's limits."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_asr_jax.audio.frames import num_audio_tokens, num_frames
from qwen_asr_jax.bench.cost import Cost, decode_cost, encoder_cost, prefill_cost
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.engine.state import cache_bytes
from qwen_asr_jax.policy import PRESETS

PROMPT_TEXT_TOKENS = 15
"""Tokens of a prompt besides its audio."""


def write_costs(sheet: Sheet, presets: Sequence[str], policy: str = "bf16") -> None:
    """A line per preset and stage: `flops` and `bytes` of a step of decoding, of a clip, and of a batch."""
    for preset in presets:
        config = MODELS[preset]
        _, _, params = abstract_model(config, PRESETS[policy])
        for seconds, rows, steps in ((11.0, 1, 30), (30.0, 128, 90)):
            frames = num_frames(round(seconds * 16000))
            prompt = num_audio_tokens(frames, config.audio) + PROMPT_TEXT_TOKENS
            encoder = encoder_cost(config.audio, params["audio_tower"], frames)
            prefill = prefill_cost(config, params, PRESETS[policy], prompt)
            caches = (rows - 1) * cache_bytes(config.text, PRESETS[policy], 1, prompt)
            stages = {
                "encode": Cost(encoder.flops * rows, encoder.bytes),
                "prefill": Cost(prefill.flops * rows, prefill.bytes + caches),
                "step": decode_cost(config, params, PRESETS[policy], prompt + steps / 2, rows),
            }
            for stage, cost in stages.items():
                settings = {"preset": preset, "policy": policy, "clip_s": seconds, "rows": rows, "steps": steps}
                sheet.cost(stage, settings, {"flops": cost.flops, "bytes": cost.bytes, "tokens": prompt})
