"""The two activation functions of the model, spelled out so that no default can change them."""

from __future__ import annotations

import jax

from qwen_asr_jax.typing import Array


def gelu(x: Array) -> Array:
    """Exact (erf) GELU, as the encoder's `activation_function: gelu` means; the tanh form shifts outputs by 5e-4."""
    return jax.nn.gelu(x, approximate=False)


def swiglu(gate: Array, up: Array) -> Array:
    """`silu(gate) * up`, the decoder's gated activation."""
    return jax.nn.silu(gate) * up
