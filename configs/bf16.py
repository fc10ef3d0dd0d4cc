"""bf16: matrices, their operands and the KV cache in bfloat16; sums and everything between products in float32."""

from ml_collections import ConfigDict

from qwen_asr_jax.pipelines.run_config import run_config
from qwen_asr_jax.policy import Policy


def get_config() -> ConfigDict:
    """See `qwen_asr_jax.policy` for what each dtype governs."""
    return run_config(
        Policy(
            name="bf16",
            param_dtype="bfloat16",
            compute_dtype="bfloat16",
            accum_dtype="float32",
            cache_dtype="bfloat16",
            logits_dtype="float32",
            layer_dtype="bfloat16",
            head_dtype="bfloat16",
        )
    )
