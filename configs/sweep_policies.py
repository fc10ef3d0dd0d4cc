"""Every policy through every stage: what a number format costs or saves in time and memory."""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config
from qwen_asr_jax.policy import PRESETS


def get_config() -> ConfigDict:
    """See `sweep_config`."""
    return sweep_config(grid(workload=["full", "encoder", "prefill", "decode"], policy=list(PRESETS)))
