"""Native CPU kernels against plain XLA: every policy, one and all threads, how decoding slows down with the context.

python scripts/sweep.py --config=configs/sweep_kernels.py:DIR,DIR:A.wav,B.wav
"""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config
from qwen_asr_jax.policy import PRESETS
from qwen_asr_jax.runtime import default_threads


def get_config(what: str = "random:0.6b,random:1.7b") -> ConfigDict:
    """`what` is a list of model directories, then behind a colon a list of clips; without, silence. See `sweep_config`."""
    models, _, clips = what.rpartition(":") if ".wav" in what else (what, "", "")
    inputs = [{"audio": clip} for clip in clips.split(",") if clip] or [{"silence_s": 10.0}]
    threads = sorted({1, default_threads()})
    points = grid(workload=["roofline"])
    for model in grid(model_dir=models.split(","), policy=list(PRESETS)):
        native = {**model, "implementation": "cpu"}
        for each in grid(workload=["full"], implementation=["cpu", "xla"], threads=threads):
            points.append({**model, **inputs[0], **each})
        points.append({**native, **inputs[0], "workload": "decode", "contexts": [64, 2048]})
        points += [{**native, **clip, "workload": "full"} for clip in inputs[1:]]
    return sweep_config(points, decode_tokens=30, runs=3, warmup=1, backend="cpu")
