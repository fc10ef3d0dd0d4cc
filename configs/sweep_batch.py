"""Batch sizes: throughput, and what a row of the batch costs."""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config


def get_config() -> ConfigDict:
    """See `sweep_config`."""
    return sweep_config(
        grid(workload=["batch", "decode"], batch_size=[1, 2, 4, 8, 16]), decode_tokens=32, contexts="", runs=5, warmup=1
    )
