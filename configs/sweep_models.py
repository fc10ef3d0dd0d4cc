"""Models against each other. Without directories of your own: the published geometries with random weights.

python scripts/sweep.py --config=configs/sweep_models.py:Qwen3-ASR-0.6B,Qwen3-ASR-1.7B
"""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config


def get_config(models: str = "random:0.6b,random:1.7b") -> ConfigDict:
    """`models` is a list of directories, separated by commas. See `sweep_config`."""
    workloads = ["full", "encoder", "prefill", "decode", "load"]
    return sweep_config(grid(model_dir=models.split(","), workload=workloads), runs=5, warmup=1)
