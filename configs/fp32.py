"""fp32: everything in float32. The policy that is token-exact with the float32 reference; twice the memory of the others."""

from ml_collections import ConfigDict

from qwen_asr_jax.pipelines.run_config import run_config
from qwen_asr_jax.policy import Policy


def get_config() -> ConfigDict:
    """See `qwen_asr_jax.policy` for what each dtype governs."""
    return run_config(
        Policy(
            name="fp32",
            param_dtype="float32",
            compute_dtype="float32",
            accum_dtype="float32",
            cache_dtype="float32",
            logits_dtype="float32",
            layer_dtype="float32",
            head_dtype="float32",
        )
    )
