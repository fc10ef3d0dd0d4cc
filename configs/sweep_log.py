"""What an entry of the performance log consists of: every workload, with every clip and with silence.

python scripts/sweep.py --config=configs/sweep_log.py:DIR,DIR:A.wav,B.wav
"""

from ml_collections import ConfigDict

from qwen_asr_jax.bench.sweep import grid, sweep_config

_SILENCE = {"silence_s": 5.0}


def get_config(what: str = "random:0.6b,random:1.7b") -> ConfigDict:
    """`what` is a list of model directories, then behind a colon a list of clips. 30 tokens each. See `sweep_config`."""
    models, _, clips = what.rpartition(":") if ".wav" in what else (what, "", "")
    inputs = [{"audio": clip} for clip in clips.split(",") if clip] + [_SILENCE]
    points = grid(workload=["roofline"])
    for model in grid(model_dir=models.split(","), policy=["bf16", "fp32"]):
        for workload in ("full", "encoder", "prefill"):
            points += [{**model, "workload": workload, **each} for each in inputs]
        # How decoding slows down with the context does not depend on the clip.
        contexts = [[64, 256, 1024, 4096]] + [""] * (len(inputs) - 1)
        points += [
            {**model, "workload": "decode", **each, "contexts": at} for each, at in zip(inputs, contexts, strict=True)
        ]
        points += [{**model, "workload": "batch", "batch_size": 2, **each} for each in inputs]
        points += [{**model, "workload": "load", "runs": 2, "warmup": 1, **each} for each in inputs]
    return sweep_config(points, decode_tokens=30, runs=5, warmup=1)
