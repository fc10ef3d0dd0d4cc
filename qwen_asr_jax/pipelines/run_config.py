"""Run configurations: the policy and the engine's shapes as an `ml_collections` config, for `configs/` and `--config.x=y`."""

from __future__ import annotations

import dataclasses

import ml_collections

from qwen_asr_jax import runtime
from qwen_asr_jax.engine.buckets import Buckets, default_buckets
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.policy import PRESETS, Policy


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How the engine runs.

    Attributes:
      steps_per_octave, prefill_block, prefill_tokens, cache_ahead, decode_chunk, steps_per_check: overrides of the platform's
        `engine.buckets.Buckets`; 0 keeps its value.
      screen_head: native CPU kernels screen the head in int8 (`ops.screen`): the same tokens from fewer bytes a step, for one
        byte of memory per value of the head.
    """

    steps_per_octave: int = 0
    prefill_block: int = 0
    prefill_tokens: int = 0
    cache_ahead: int = 0
    decode_chunk: int = 0
    steps_per_check: int = 0
    screen_head: bool = True

    def buckets(self) -> Buckets:
        """The buckets for the platform that JAX runs on, with these overrides.

        Raises:
          UsageError: a value is negative, or `decode_chunk` no multiple of `steps_per_check`.
        """
        lengths = {name: value for name, value in dataclasses.asdict(self).items() if name != "screen_head"}
        for name, value in lengths.items():
            if value < 0:
                raise UsageError(f"engine.{name} must be 0 (automatic) or more, got {value}")
        overrides = {name: value for name, value in lengths.items() if value}
        return dataclasses.replace(default_buckets(runtime.platform()), **overrides)


def run_config(policy: Policy) -> ml_collections.ConfigDict:
    """A locked config with sections `policy` and `engine`; a field that is not there cannot be set."""
    config = ml_collections.ConfigDict()
    config.policy = ml_collections.ConfigDict(dataclasses.asdict(policy))
    config.engine = ml_collections.ConfigDict(dataclasses.asdict(EngineOptions()))
    return config.lock()


def from_run_config(config: ml_collections.ConfigDict) -> tuple[Policy, EngineOptions]:
    """What `run_config` made, after overrides, as the objects that `load_model` takes.

    Raises:
      UsageError: a value is not allowed.
    """
    policy = Policy(**config.policy.to_dict())
    if policy.name in PRESETS and not policy.is_preset:
        policy = dataclasses.replace(policy, name=f"{policy.name}, changed")  # no result may claim a preset it did not run
    return policy, EngineOptions(**config.engine.to_dict())
