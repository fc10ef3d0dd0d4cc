"""int8: the matrices of all linear layers in int8 with a scale per row; the rest as under bf16."""

from ml_collections import ConfigDict

from qwen_asr_jax.pipelines.run_config import run_config
from qwen_asr_jax.policy import Policy


def get_config() -> ConfigDict:
    """See `qwen_asr_jax.policy` for what each dtype governs."""
    return run_config(
        Policy(
            name="int8",
            param_dtype="bfloat16",
            compute_dtype="bfloat16",
            accum_dtype="float32",
            cache_dtype="bfloat16",
            logits_dtype="float32",
            layer_dtype="int8",
            head_dtype="bfloat16",
        )
    )
