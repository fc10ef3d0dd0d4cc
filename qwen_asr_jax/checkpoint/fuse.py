"""Matrices that multiply one input, put together into one: how a fusing policy holds what the files hold apart.

Rows are outputs, so a fused matrix is its parts one below the other, biases and the scales of int8 rows likewise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen_asr_jax.typing import Array, Params

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Name of a fused layer, and of its parts in the order of its rows (`nn.layers.Projections`)."""


def fuse(module: Params, abstract: Params) -> None:
    """Replaces, in place, parts by what `abstract` holds fused, wherever all of them are there; their memory is given back.

    Called while loading, whenever a module has got another tensor: no more than one matrix is ever held twice.

    Args:
      module: parameters of one module (`self_attn`, `mlp`), complete or not.
      abstract: the shapes of the same module under the fusing policy.
    """
    for fused, parts in FUSED.items():
        leaves = abstract.get(fused, {})
        if leaves and all(leaf in module.get(part, {}) for part in parts for leaf in leaves):
            given = [module.pop(part) for part in parts]
            module[fused] = {leaf: jax.block_until_ready(_stack([part[leaf] for part in given])) for leaf in leaves}


def fuse_all(params: Params, abstract: Params) -> Params:
    """`fuse` for every module of a complete tree, one after another."""
    fuse(params, abstract)
    for key, wanted in abstract.items():
        if isinstance(wanted, dict) and key not in FUSED:
            fuse_all(params[key], wanted)
    return params


@jax.jit
def _stack(parts: list[Array]) -> Array:
    return jnp.concatenate(parts)
