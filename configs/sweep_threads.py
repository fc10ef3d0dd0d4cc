"""CPU threads from one to twice the physical cores: where more stop helping."""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config
from qwen_asr_jax.runtime import default_threads


def get_config() -> ConfigDict:
    """See `sweep_config`."""
    cores = default_threads()
    counts = sorted({1, 2, *range(4, cores, 4), cores, 2 * cores})
    return sweep_config(grid(workload=["full", "roofline"], threads=counts), backend="cpu")
