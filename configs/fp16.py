"""fp16: as bf16 but in float16, for GPUs without bfloat16. Casts into it saturate, so no activation becomes infinite."""

from ml_collections import ConfigDict

from qwen_asr_jax.pipelines.run_config import run_config
from qwen_asr_jax.policy import Policy


def get_config() -> ConfigDict:
    """See `qwen_asr_jax.policy` for what each dtype governs."""
    return run_config(
        Policy(
            name="fp16",
            param_dtype="float16",
            compute_dtype="float16",
            accum_dtype="float32",
            cache_dtype="float16",
            logits_dtype="float32",
            layer_dtype="float16",
            head_dtype="float16",
        )
    )
