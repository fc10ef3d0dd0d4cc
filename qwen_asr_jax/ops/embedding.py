"""Looking rows up in the embedding table."""

from __future__ import annotations

import jax
from jax import lax

from qwen_asr_jax.typing import Array


def lookup(table: Array, ids: Array) -> Array:
    """Rows of the table.

    Args:
      table: `[V, D]`.
      ids: int32, any shape `[...]`.

    Returns:
      `[..., D]` in the table's dtype.
    """
    if jax.default_backend() == "cpu":
        # XLA before jaxlib 0.12 gathers bfloat16 in float32. Inside the decode loop it would convert the whole table (0.6 GB)
        # once per call, because that does not depend on the step; behind a barrier it does, and the conversion fuses
        # into the gather.
        table, ids = lax.optimization_barrier((table, ids))
    return table[ids]
