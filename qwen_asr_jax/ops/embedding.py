"""Looking rows up in the embedding table."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from qwen_asr_jax import runtime
from qwen_asr_jax.typing import Array


def lookup(table: Array, ids: Array, scale: Array | None = None) -> Array:
    """Rows of the table.

    Args:
      table: `[V, D]`.
      ids: int32, any shape `[...]`.
      scale: `[V]` float32, of an int8 table (`ops.quantize`); None for others. Only the rows that are looked up are scaled.

    Returns:
      `[..., D]` in the table's dtype; float32 with a scale.
    """
    if runtime.platform() == "cpu":
        # XLA before jaxlib 0.12 gathers bfloat16 in float32. Inside the decode loop it would convert the whole table (0.6 GB)
        # once per call, because that does not depend on the step; behind a barrier it does, and the conversion fuses
        # into the gather.
        table, ids = lax.optimization_barrier((table, ids))
    rows = table[ids]
    return rows if scale is None else rows.astype(jnp.float32) * scale[ids][..., None]
