"""What a probe of the layers (`engine.probe`) says to people: at load under float16, and when a transcription overflowed."""

from __future__ import annotations

import pathlib

import jax

from qwen_asr_jax.checkpoint.key_map import summary
from qwen_asr_jax.engine.engine import Engine
from qwen_asr_jax.engine.probe import Reading, broken_parameters, probe
from qwen_asr_jax.errors import CheckpointError, QwenASRError
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.text.tokenizer import Tokenizer


def casts_to_float16(policy: Policy) -> bool:
    """Whether values can be too large for what the policy casts them to."""
    return "float16" in (policy.compute_dtype, policy.cache_dtype)


def check_model(path: pathlib.Path, engine: Engine, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Probes a model that has just been loaded from `path`.

    Returns:
      A line for people if casts to float16 cut values off, else nothing.

    Raises:
      CheckpointError: a layer gives NaN or infinity because its weights hold them.
      QwenASRError: a layer does so by itself.
    """
    readings, name = probe(engine, tokenizer), engine.policy.name
    if (bad := first_broken(readings)) is not None:
        where = f"{path}: {bad.name} gives NaN or infinity under policy {name}"
        if broken := broken_parameters(engine, bad.name):
            raise CheckpointError(f"{where}: {_damage(broken)}")
        raise QwenASRError(f"{where}; use --policy=bf16, which takes the same memory")
    cut = [reading for reading in readings if reading.saturated]
    if not cut:
        return ()
    more = f", as in {len(cut) - 1} more layers" if len(cut) > 1 else ""
    return (
        f"policy {name}: values in {cut[0].name} go up to {cut[0].largest_to_float16:.3g}{more}; float16 ends at 65504, where"
        " they are cut off, so transcripts may be wrong; use --policy=bf16, which takes the same memory",
    )


def overflow_remedy(engine: Engine, tokenizer: Tokenizer) -> str:
    """The end of the line about a transcription with NaN or infinity in it: the layer they come from, and what to do.

    The fixed clip need not overflow where another one did; then only the usual remedy is known.
    """
    try:
        bad = first_broken(probe(engine, tokenizer))
        broken = [] if bad is None else broken_parameters(engine, bad.name)
    except jax.errors.JaxRuntimeError:  # no memory left for it: the other clips of the batch are worth more
        bad, broken = None, []
    source = "" if bad is None else f", from {bad.name} on"
    remedy = f": {_damage(broken)}" if broken else "; use --policy=bf16 or --policy=fp32"
    return f"(NaN or infinity in its activations{source}){remedy}"


def first_broken(readings: tuple[Reading, ...]) -> Reading | None:
    """The layer that the others behind it have their NaN or infinity from; None in a model without."""
    return next((reading for reading in readings if not reading.finite), None)


def _damage(broken: list[str]) -> str:
    """Under any policy the same: what is not finite in a file is not finite in any dtype."""
    return f"its weights hold them ({summary(broken, 3)}); the checkpoint is damaged, get it again"
