"""What the decode loop carries from step to step, all on the device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from qwen_asr_jax.config import TextConfig
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Cache and bookkeeping of one batch; donated to every verb that returns a new one.

    Attributes:
      k_cache, v_cache: per layer one `[B * K, S, H]` in the cache dtype. Slot s of a row holds its token s; slots from
        `length` on hold anything and are never read. The last slot is kept free: rows that have ended, or that wait for a
        longer cache, run along and write there.
      length: `[B]` int32, valid tokens in the cache.
      token: `[B]` int32, the last chosen token, not yet in the cache.
      done: `[B]` bool, the row has ended (or never was one: padding of the batch).
      budget: `[B]` int32, tokens that the row may still choose.
      finite: `[B]` bool, no NaN or infinity has appeared in the row.
    """

    k_cache: tuple[Array, ...]
    v_cache: tuple[Array, ...]
    length: Array
    token: Array
    done: Array
    budget: Array
    finite: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """What one call of `decode` brings back to the host.

    Attributes:
      tokens: `[B, chunk]` int32, chosen tokens, end tokens included; `NO_TOKEN` where a row chose nothing.
      done: `[B]` bool, the row has ended.
      full: `[B]` bool, the row has not ended and its cache is full: it goes on in a longer one.
      finite: `[B]` bool, as in the state.
    """

    tokens: Array
    done: Array
    full: Array
    finite: Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def new_state(config: TextConfig, policy: Policy, rows: int, slots: int) -> DecodeState:
    """An empty state of fixed size: `rows` batch rows, `slots` cache slots each. One program makes all of it."""
    shape = (rows * config.num_kv_heads, slots, config.head_dim)
    return DecodeState(
        k_cache=tuple(jnp.zeros(shape, policy.cache) for _ in range(config.num_layers)),
        v_cache=tuple(jnp.zeros(shape, policy.cache) for _ in range(config.num_layers)),
        length=jnp.zeros(rows, jnp.int32),
        token=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, jnp.bool_),
        budget=jnp.zeros(rows, jnp.int32),
        finite=jnp.ones(rows, jnp.bool_),
    )


def cache_bytes(config: TextConfig, policy: Policy, rows: int, slots: int) -> int:
    """Bytes of the KV cache of such a state: `2 * layers * kv heads * head dim` values per token."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * policy.cache.itemsize
    return rows * slots * per_token
