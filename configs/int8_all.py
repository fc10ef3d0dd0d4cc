"""int8_all: as int8, and the embedding table, which is also the head, in int8 as well."""

from ml_collections import ConfigDict

from qwen_asr_jax.pipelines.run_config import run_config
from qwen_asr_jax.policy import Policy


def get_config() -> ConfigDict:
    """See `qwen_asr_jax.policy` for what each dtype governs."""
    return run_config(
        Policy(
            name="int8_all",
            param_dtype="bfloat16",
            compute_dtype="bfloat16",
            accum_dtype="float32",
            cache_dtype="bfloat16",
            logits_dtype="float32",
            layer_dtype="int8",
            head_dtype="int8",
        )
    )
