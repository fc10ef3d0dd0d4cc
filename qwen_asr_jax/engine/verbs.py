"""The verbs, each jitted once: log_mel, windows, encode, embed, prefill, decode; and grow and select, which resize a state.

Only raw arrays cross these calls. `prefill` and `decode` take the state by donation and return it, so the cache's bytes are
updated in place; nothing but chosen tokens has to leave the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from qwen_asr_jax.engine.state import Chosen, DecodeState
from qwen_asr_jax.kernels.cpu.calls import Screen
from qwen_asr_jax.models.functional import Definition
from qwen_asr_jax.ops import mel
from qwen_asr_jax.typing import Array, Params

NO_TOKEN = -1
"""What `decode` returns where a row chose nothing because it had ended."""


MEL_ROWS = 16
"""Spectra of more rows are made in groups: what lies between samples and features is ten times as large as these."""


@functools.partial(jax.jit, static_argnames="num_mel_bins")
def log_mel(samples: Array, num_frames: Array, *, num_mel_bins: int) -> Array:
    """`[B, padded samples]` float32 to `[B, A, M]` float32; see `ops.mel.log_mel`. B is at most 16, or a multiple of it."""
    if samples.shape[0] <= MEL_ROWS:
        return mel.log_mel(samples, num_frames, num_mel_bins)
    groups = samples.reshape(-1, MEL_ROWS, samples.shape[1]), num_frames.reshape(-1, MEL_ROWS)
    out = jax.lax.map(lambda group: mel.log_mel(group[0], group[1], num_mel_bins), groups)
    return out.reshape(-1, *out.shape[2:])


@functools.partial(jax.jit, static_argnames="chunk_frames")
def windows(log_mel: Array, chunks: Array, *, chunk_frames: int) -> Array:
    """Cuts clips into the encoder's attention windows, which are then encoded like short clips of their own.

    Args:
      log_mel: `[B, Q * chunk_frames, M]`.
      chunks: `[W, C]` int32, which of the `B * Q` chunks goes where; negative for none.

    Returns:
      `[W, C * chunk_frames, M]`, zeros where there is no chunk.
    """
    all_chunks = log_mel.reshape(-1, chunk_frames, log_mel.shape[-1])
    found = all_chunks[jnp.maximum(chunks, 0)] * (chunks >= 0)[..., None, None].astype(log_mel.dtype)
    return found.reshape(chunks.shape[0], -1, log_mel.shape[-1])


@functools.partial(jax.jit, static_argnames="definition")
def encode(definition: Definition, params: Params, log_mel: Array, num_tokens: Array) -> Array:
    """`[B, A, M]` float32 to audio features `[B, Q * chunk_tokens, D]`; see `AudioEncoder`."""
    return definition.bind(params)(log_mel, num_tokens)


@functools.partial(jax.jit, static_argnames="definition")
def embed(definition: Definition, params: Params, ids: Array, features: tuple[Array, ...], audio_index: Array) -> Array:
    """Prompt embeddings, with audio features in the places of the audio tokens.

    A verb of its own, and a small program: it takes the combinations of feature and prompt lengths off `prefill`.

    Args:
      ids: `[B, T]` int32.
      features: what calls of `encode` returned, `[W, X, D]` each.
      audio_index: `[B, T]` int32, which of all these features, counted through, replaces the token; negative for text.

    Returns:
      `[B, T, D]` in the accumulation dtype.
    """
    text = definition.bind(params).embed(ids)
    table = jnp.concatenate([each.reshape(-1, each.shape[-1]) for each in features])
    return jnp.where((audio_index >= 0)[..., None], table[jnp.maximum(audio_index, 0)], text)


@functools.partial(jax.jit, static_argnames=("definition", "first", "rows_at_once"), donate_argnames="state")
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
    rows_at_once: int = 0,
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
      rows_at_once: rows that go through the layers together, a divisor of B; 0 for all. Bounds the memory that they need.
      screen: of the head, or None; see `ops.screen`.

    Returns:
      The state: for a row that ended its prompt in this block, `token` is its first choice, and `done` says whether that
      was already the end.
    """
    decoder = definition.bind(params)
    time = embeddings.shape[1]
    start = jnp.zeros_like(state.length) if first else state.length
    # The head is only needed at each row's last token: 0.3 GFLOP instead of that times the prompt.
    last = jnp.clip(num_tokens - 1, 0, time - 1)

    def layers(x: Array, k: _Caches, v: _Caches, start: Array, last: Array) -> tuple[Array, _Caches, _Caches]:
        hidden, k, v = decoder(x, k, v, start, not first)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], k, v

    by_rows = (embeddings, state.k_cache, state.v_cache, start, last)
    last_hidden, k_cache, v_cache = _in_groups(layers, by_rows, rows_at_once) if rows_at_once else layers(*by_rows)
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


_Caches: TypeAlias = tuple[Array, ...]


def _in_groups(
    layers: Callable[..., tuple[Array, _Caches, _Caches]], by_rows: tuple[Any, ...], rows_at_once: int
) -> tuple[Array, _Caches, _Caches]:
    """`layers` for so many rows at a time; the caches, which hold several entries per row, are updated in place."""
    x, k_cache, v_cache, start, last = by_rows
    rows = x.shape[0]

    def piece(i: Array, array: Array) -> Array:
        size = rows_at_once * array.shape[0] // rows
        return jax.lax.dynamic_slice_in_dim(array, i * size, size)

    def put(i: Array, array: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(array, new, i * new.shape[0], 0)

    def step(i: Array, carry: tuple[Array, _Caches, _Caches]) -> tuple[Array, _Caches, _Caches]:
        out, k, v = carry
        one = functools.partial(piece, i)
        new = layers(one(x), tuple(map(one, k)), tuple(map(one, v)), one(start), one(last))
        return jax.tree.map(functools.partial(put, i), (out, k, v), new)

    out = jnp.zeros((rows, x.shape[-1]), x.dtype)
    return jax.lax.fori_loop(0, rows // rows_at_once, step, (out, k_cache, v_cache))


@functools.partial(jax.jit, static_argnames=("definition", "chunk", "steps_per_check"), donate_argnames="state")
def decode(
    definition: Definition,
    params: Params,
    state: DecodeState,
    eos_ids: Array,
    steps: Array,
    *,
    chunk: int,
    steps_per_check: int = 1,
    screen: Screen | None = None,
) -> tuple[DecodeState, Chosen]:
    """Greedy decoding on the device until all rows have ended or one's cache is full, for `steps` steps at most.

    Args:
      eos_ids: `[E]` int32; choosing one ends a row.
      steps: int32 scalar, at most `chunk`. A value, not a shape: short calls for streaming share the program.
      chunk: columns of the result.
      steps_per_check: steps between two looks at whether to go on, a divisor of `chunk`. On a GPU a look stops the host until
        all before it is done; the steps of a loop without looks are enqueued ahead. Too many steps run for nothing.
      screen: of the head, or None; see `ops.screen`.

    Returns:
      The state, and what was chosen.
    """
    decoder = definition.bind(params)
    slots = state.k_cache[0].shape[1]
    rows = state.token.shape[0]
    capacity = slots - 1

    def full(state: DecodeState) -> Array:
        return ~state.done & (state.length >= capacity)

    def more(carry: tuple[Array, DecodeState, Array]) -> Array:
        i, state, _ = carry
        return (i < steps) & jnp.any(~state.done) & ~jnp.any(full(state))

    def step(carry: tuple[Array, DecodeState, Array]) -> tuple[Array, DecodeState, Array]:
        i, state, out = carry
        # Rows that do not run run along; they write their next slot again and again, never past the end.
        start = jnp.minimum(state.length, capacity)
        hidden, k_cache, v_cache = decoder(decoder.embed(state.token[:, None]), state.k_cache, state.v_cache, start, True)
        chosen, _ = decoder.greedy(hidden[:, 0], screen)
        running = ~state.done & (state.length < capacity) & (i < steps)
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

    def several(carry: tuple[Array, DecodeState, Array]) -> tuple[Array, DecodeState, Array]:
        return jax.lax.fori_loop(0, steps_per_check, lambda _, carry: step(carry), carry)

    out = jnp.full((rows, chunk), NO_TOKEN, jnp.int32)
    body = several if steps_per_check > 1 else step
    _, state, out = jax.lax.while_loop(more, body, (jnp.int32(0), state, out))
    return state, Chosen(tokens=out, done=state.done, full=full(state), finite=state.finite)


@functools.partial(jax.jit, static_argnames="slots")
def grow(cache: Array, *, slots: int) -> Array:
    """One layer's `[B * K, S, H]` keys or values in an array of `slots` slots; the new ones are zero."""
    return jnp.pad(cache, ((0, 0), (0, slots - cache.shape[1]), (0, 0)))


@jax.jit
def select(state: DecodeState, rows: Array, padding: Array) -> DecodeState:
    """The state with the rows of `rows`, `[R]` int32, alone; those of `padding`, `[R]` bool, count as ended."""
    heads = state.k_cache[0].shape[0] // state.token.shape[0]
    entries = (rows[:, None] * heads + jnp.arange(heads, dtype=rows.dtype)).reshape(-1)
    return DecodeState(
        k_cache=tuple(k[entries] for k in state.k_cache),
        v_cache=tuple(v[entries] for v in state.v_cache),
        length=state.length[rows],
        token=state.token[rows],
        done=state.done[rows] | padding,
        budget=state.budget[rows],
        finite=state.finite[rows],
    )


def _is_end(token: Array, eos_ids: Array) -> Array:
    return jnp.any(token[:, None] == eos_ids, axis=-1)


def _is_finite(hidden: Array) -> Array:
    """`[B, D]` to `[B]`: one NaN or infinity anywhere in a row's layers shows in its last hidden state."""
    return jnp.all(jnp.isfinite(hidden), axis=-1)
