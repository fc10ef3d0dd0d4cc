"""The verbs, each jitted once: log_mel, encode, embed, prefill, decode.

Only raw arrays cross these calls. `prefill` and `decode` take the state by donation and return it, so the cache's bytes are
updated in place; nothing but chosen tokens has to leave the device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from qwen_asr_jax.engine.state import DecodeState
from qwen_asr_jax.kernels.cpu.calls import Screen
from qwen_asr_jax.models.functional import Definition
from qwen_asr_jax.ops import mel
from qwen_asr_jax.typing import Array, Params

NO_TOKEN = -1
"""What `decode` returns where a row chose nothing because it had ended."""


@functools.partial(jax.jit, static_argnames="num_mel_bins")
def log_mel(samples: Array, num_frames: Array, *, num_mel_bins: int) -> Array:
    """`[B, padded samples]` float32 to `[B, A, M]` float32; see `ops.mel.log_mel`."""
    return mel.log_mel(samples, num_frames, num_mel_bins)


@functools.partial(jax.jit, static_argnames="definition")
def encode(definition: Definition, params: Params, log_mel: Array, num_tokens: Array) -> Array:
    """`[B, A, M]` float32 to audio features `[B, Q * chunk_tokens, D]`; see `AudioEncoder`."""
    return definition.bind(params)(log_mel, num_tokens)


@functools.partial(jax.jit, static_argnames="definition")
def embed(definition: Definition, params: Params, ids: Array, features: Array, audio_index: Array) -> Array:
    """Prompt embeddings, with audio features in the places of the audio tokens.

    A verb of its own, and a small program: it takes the combinations of feature and prompt lengths off `prefill`.

    Args:
      ids: `[B, T]` int32.
      features: `[B, X, D]` from `encode`.
      audio_index: `[B, T]` int32, which feature replaces the token; negative for text.

    Returns:
      `[B, T, D]` in the accumulation dtype.
    """
    text = definition.bind(params).embed(ids)
    audio = jnp.take_along_axis(features, jnp.maximum(audio_index, 0)[..., None], axis=1)
    return jnp.where((audio_index >= 0)[..., None], audio, text)


@functools.partial(jax.jit, static_argnames=("definition", "first"), donate_argnames="state")
def prefill(
    definition: Definition,
    params: Params,
    state: DecodeState,
    embeddings: Array,
    num_tokens: Array,
    budget: Array,
    eos_ids: Array,
    *,
    first: bool,
    screen: Screen | None = None,
) -> DecodeState:
    """Appends one block of the prompt; a row's last block also chooses its first token.

    Args:
      state: the batch's state; with `first` its content does not matter.
      embeddings: `[B, T, D]`, each row's tokens first.
      num_tokens: `[B]` int32, how many of the T belong to the row: T while more blocks follow, 0 once it has had its last.
      budget: `[B]` int32, tokens that each row may choose in all; 0 for padding rows.
      eos_ids: `[E]` int32.
      first: this is the first block. It then attends to itself alone, not to the cache.
      screen: of the head, or None; see `ops.screen`.

    Returns:
      The state: for a row that ended its prompt in this block, `token` is its first choice, and `done` says whether that
      was already the end.
    """
    decoder = definition.bind(params)
    time = embeddings.shape[1]
    start = jnp.zeros_like(state.length) if first else state.length
    hidden, k_cache, v_cache = decoder(embeddings, state.k_cache, state.v_cache, start, not first)
    # The head is only needed at each row's last token: 0.3 GFLOP instead of that times the prompt.
    last = jnp.clip(num_tokens - 1, 0, time - 1)
    last_hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    chosen, _ = decoder.greedy(last_hidden, screen)
    here = (num_tokens > 0) | first
    token = jnp.where(here, chosen, state.token)
    return DecodeState(
        k_cache=k_cache,
        v_cache=v_cache,
        length=start + num_tokens,
        token=token,
        done=_is_end(token, eos_ids) | (budget <= 1),
        budget=budget - 1,
        finite=(first | state.finite) & (_is_finite(last_hidden) | ~here),
    )


@functools.partial(jax.jit, static_argnames=("definition", "chunk"), donate_argnames="state")
def decode(
    definition: Definition,
    params: Params,
    state: DecodeState,
    eos_ids: Array,
    steps: Array,
    *,
    chunk: int,
    screen: Screen | None = None,
) -> tuple[DecodeState, Array]:
    """Greedy decoding on the device until all rows have ended, for `steps` steps at most.

    Args:
      eos_ids: `[E]` int32; choosing one ends a row.
      steps: int32 scalar, at most `chunk`. A value, not a shape: short calls for streaming share the program.
      chunk: columns of the result.
      screen: of the head, or None; see `ops.screen`.

    Returns:
      The state, and `[B, chunk]` int32: the tokens chosen, end tokens included, `NO_TOKEN` behind each row's end.
    """
    decoder = definition.bind(params)
    slots = state.k_cache[0].shape[1]
    rows = state.token.shape[0]

    def more(carry: tuple[Array, DecodeState, Array]) -> Array:
        i, state, _ = carry
        return (i < steps) & ~jnp.all(state.done)

    def step(carry: tuple[Array, DecodeState, Array]) -> tuple[Array, DecodeState, Array]:
        i, state, out = carry
        # Rows that have ended run along; they write their next slot again and again, never past the end.
        start = jnp.minimum(state.length, slots - 1)
        hidden, k_cache, v_cache = decoder(decoder.embed(state.token[:, None]), state.k_cache, state.v_cache, start, True)
        chosen, _ = decoder.greedy(hidden[:, 0], screen)
        running = ~state.done
        token = jnp.where(running, chosen, state.token)
        out = jax.lax.dynamic_update_slice(out, jnp.where(running, token, NO_TOKEN)[:, None], (0, i))
        one = running.astype(jnp.int32)
        budget = state.budget - one
        state = DecodeState(
            k_cache=k_cache,
            v_cache=v_cache,
            length=state.length + one,
            token=token,
            done=state.done | _is_end(token, eos_ids) | (budget <= 0),
            budget=budget,
            finite=state.finite & (_is_finite(hidden[:, 0]) | ~running),
        )
        return i + 1, state, out

    out = jnp.full((rows, chunk), NO_TOKEN, jnp.int32)
    _, state, out = jax.lax.while_loop(more, step, (jnp.int32(0), state, out))
    return state, out


def _is_end(token: Array, eos_ids: Array) -> Array:
    return jnp.any(token[:, None] == eos_ids, axis=-1)


def _is_finite(hidden: Array) -> Array:
    """`[B, D]` to `[B]`: one NaN or infinity anywhere in a row's layers shows in its last hidden state."""
    return jnp.all(jnp.isfinite(hidden), axis=-1)
