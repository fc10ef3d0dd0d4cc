"""Silence of growing length: how time grows with the audio. Lengths past the model's positions fail, and say so."""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config


def get_config() -> ConfigDict:
    """Lengths in seconds; 32 tokens each, so that only the audio differs. See `sweep_config`."""
    return sweep_config(grid(silence_s=[1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0]), decode_tokens=32, runs=5, warmup=1)
