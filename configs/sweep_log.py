"""What an entry of the performance log consists of: every workload, with every clip and with silence.

python scripts/sweep.py --config=configs/sweep_log.py:DIR,DIR --config.base.audio=A.wav,B.wav
"""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config

_CLIPS = {"contexts": ""}
_SILENCE = {"audio": "", "silence_s": 5.0}


def get_config(models: str = "random:0.6b,random:1.7b") -> ConfigDict:
    """`models` is a list of directories, separated by commas. 30 tokens per clip. See `sweep_config`."""
    points = grid(workload=["roofline"])
    for model in grid(model_dir=models.split(","), policy=["bf16", "fp32"]):
        for workload in ("full", "encoder", "prefill", "decode"):
            points += [{**model, "workload": workload, **inputs} for inputs in (_CLIPS, _SILENCE)]
        points += [{**model, "workload": "batch", "batch_size": 2, **inputs} for inputs in (_CLIPS, _SILENCE)]
        points += [{**model, "workload": "load", "runs": 2, "warmup": 1, **inputs} for inputs in (_CLIPS, _SILENCE)]
    return sweep_config(points, decode_tokens=30, runs=5, warmup=1)
