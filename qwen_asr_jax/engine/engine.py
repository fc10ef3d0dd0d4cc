"""The object that owns one model's weights and states, and turns lists of clips into calls of the verbs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from qwen_asr_jax import kernels, runtime
from qwen_asr_jax.audio import frames
from qwen_asr_jax.checkpoint.load import Checkpoint
from qwen_asr_jax.config import AudioConfig
from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.buckets import Buckets, default_buckets
from qwen_asr_jax.engine.state import Chosen, DecodeState, new_state
from qwen_asr_jax.ops.mel import reflect_pad
from qwen_asr_jax.ops.screen import screen_of
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.text.prompt import Prompt
from qwen_asr_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AudioFeatures:
    """Encoded clips.

    Attributes:
      arrays: `[W, X, D]` each, in the accumulation dtype; W clips or windows of clips.
      first: `[clips]` int32, where a clip's features begin when those of all arrays are counted through; the others follow.
    """

    arrays: tuple[Array, ...]
    first: np.ndarray


class Engine:
    """Runs the verbs on batches of clips. Calls return as soon as the work is enqueued, except where tokens are read.

    Not thread-safe: states are handed from call to call by donation.

    Attributes:
      config: geometry and ids.
      policy: dtypes.
      buckets: how shapes are rounded.
      checkpoint: module definitions and weights.
      screen: of the head, for the native kernels; None without one.
    """

    def __init__(self, checkpoint: Checkpoint, policy: Policy, buckets: Buckets | None = None, *, screen_head: bool = False):
        """Takes over a checkpoint.

        Args:
          screen_head: make a screen of the head (`ops.screen`), where native kernels and a head that is not int8 can use it.
        """
        self.config = checkpoint.config
        self.policy = policy
        self.buckets = buckets or default_buckets(runtime.platform())
        self.checkpoint = checkpoint
        eos_ids = np.asarray(self.config.eos_token_ids, np.int32)
        self._eos_ids = jax.device_put(eos_ids)
        self._no_eos_ids = jax.device_put(np.full_like(eos_ids, verbs.NO_TOKEN))  # of one shape: the programs are shared
        self.screen = None
        if screen_head and self.can_screen():
            decoder = checkpoint.params["decoder"]
            head = decoder.get("lm_head", decoder["embed_tokens"])["weight"]
            self.screen = jax.block_until_ready(self._call(screen_of, head))
        self._spare: dict[tuple[int, int], DecodeState] = {}
        self._last_size = (0, 0)  # rows and slots with which the last batch began

    def can_screen(self) -> bool:
        """Whether native kernels compute, with a head that is not int8 already."""
        return kernels.for_policy(self.policy) == "cpu" and self.policy.head != np.int8

    def num_audio_tokens(self, num_samples: int) -> int:
        """Audio tokens of a clip of so many samples."""
        return frames.num_audio_tokens(frames.num_frames(num_samples), self.config.audio)

    def log_mel(self, waveforms: Sequence[np.ndarray]) -> Array:
        """Log-mel chunks of a batch.

        Args:
          waveforms: `[num_samples]` float32 each, 16 kHz, at least `frames.MIN_SAMPLES` long.

        Returns:
          `[B, Q * chunk_frames, M]` float32, where B and Q are bucket sizes; rows past the clips are zero.
        """
        audio = self.config.audio
        valid = [frames.num_frames(len(w)) for w in waveforms]
        total = self.buckets.chunks(frames.num_chunks(max(valid), audio)) * audio.chunk_frames
        rows = self.buckets.rows(len(waveforms))
        samples = reflect_pad(waveforms, total, rows)
        num_frames = np.zeros(rows, np.int32)
        num_frames[: len(valid)] = valid
        return self._call(verbs.log_mel, samples, num_frames, num_mel_bins=audio.num_mel_bins)

    def encode(self, log_mel: Array, num_tokens: Sequence[int]) -> AudioFeatures:
        """Audio features of what `log_mel` returned; `num_tokens` are the clips' audio tokens.

        One clip is encoded as it is. Several are cut into attention windows, which no attention crosses: a short clip beside a
        long one costs its own windows only, and many clips go through in groups of `buckets.encoder_windows`.
        """
        definition, params = self.checkpoint.audio, self.checkpoint.params["audio_tower"]
        if len(num_tokens) == 1:
            counts = np.asarray(num_tokens, np.int32)
            features = self._call(verbs.encode, definition, params, log_mel, counts)
            return AudioFeatures((features,), np.zeros(1, np.int32))
        audio = self.config.audio
        chunks, valid, first = window_index(num_tokens, log_mel.shape[1] // audio.chunk_frames, audio)
        arrays, at = [], 0
        for size in self.buckets.windows(len(chunks)):
            missing = max(0, at + size - len(chunks))
            index = np.pad(chunks[at : at + size], ((0, missing), (0, 0)), constant_values=-1)
            piece = self._call(verbs.windows, log_mel, index, chunk_frames=audio.chunk_frames)
            counts = np.pad(valid[at : at + size], (0, missing))
            arrays.append(self._call(verbs.encode, definition, params, piece, counts))
            at += size
        return AudioFeatures(tuple(arrays), first)

    def prefill(
        self, prompts: Sequence[Prompt], features: AudioFeatures, budgets: Sequence[int], *, ignore_eos: bool = False
    ) -> DecodeState:
        """Runs the prompts and chooses every row's first token.

        Args:
          prompts: one per clip.
          features: what `encode` returned for the same clips.
          budgets: most tokens to choose, per clip, at least 1.
          ignore_eos: end tokens are tokens like any other; only the budget ends a row. For measuring.

        Returns:
          The state, whose `token` holds the first tokens. It belongs to the caller until `release`.
        """
        decoder, params = self.checkpoint.decoder, self.checkpoint.params["decoder"]
        eos_ids = self._no_eos_ids if ignore_eos else self._eos_ids
        rows = self.buckets.rows(len(prompts))
        lengths = np.zeros(rows, np.int32)
        lengths[: len(prompts)] = [len(p.ids) for p in prompts]
        longest, budget = int(lengths.max()), np.zeros(rows, np.int32)
        budget[: len(budgets)] = budgets
        slots = self.buckets.cache(longest, int(budget.max()))
        state = self._state(rows, slots)
        at = 0
        for size in self.buckets.blocks(longest):
            ids, audio_index = prompt_block(prompts, features.first, rows, at, size)
            embeddings = self._call(verbs.embed, decoder, params, ids, features.arrays, audio_index)
            state = self._call(
                verbs.prefill,
                decoder,
                params,
                state,
                embeddings,
                np.clip(lengths - at, 0, size),
                budget,
                eos_ids,
                first=at == 0,
                rows_at_once=self.buckets.rows_at_once(rows, size),
                screen=self.screen,
            )
            at += size
        return state

    def decode(self, state: DecodeState, steps: int, *, ignore_eos: bool = False) -> tuple[DecodeState, Chosen]:
        """Up to `steps` more tokens per row, and at most `buckets.decode_chunk`; waits for them.

        Fewer come where a cache is full: the state that is returned has a longer one.

        Args:
          ignore_eos: as for `prefill`.

        Returns:
          The new state, and what was chosen, as NumPy arrays.
        """
        state, chosen = self._enqueue_decode(state, steps, ignore_eos=ignore_eos)
        chosen = jax.device_get(chosen)
        return (self._grown(state) if chosen.full.any() else state), chosen

    def _enqueue_decode(self, state: DecodeState, steps: int, *, ignore_eos: bool) -> tuple[DecodeState, Chosen]:
        """`decode` without waiting; what was chosen stays on the device."""
        chunk = self.buckets.decode_chunk
        found: tuple[DecodeState, Chosen] = self._call(
            verbs.decode,
            self.checkpoint.decoder,
            self.checkpoint.params["decoder"],
            state,
            self._no_eos_ids if ignore_eos else self._eos_ids,
            np.int32(min(steps, chunk)),
            chunk=chunk,
            steps_per_check=self.buckets.steps_per_check,
            screen=self.screen,
        )
        return found

    def _grown(self, state: DecodeState) -> DecodeState:
        """The state with the next longer cache; layer by layer, so that little is held twice."""
        slots = self.buckets.longer_cache(state.k_cache[0].shape[1])

        def longer(cache: Array) -> Array:
            new = self._call(verbs.grow, cache, slots=slots)
            cache.delete()  # it belongs to this state, which ends here as if it had been donated
            return new

        return dataclasses.replace(
            state, k_cache=tuple(map(longer, state.k_cache)), v_cache=tuple(map(longer, state.v_cache))
        )

    def compact(self, state: DecodeState, done: np.ndarray) -> tuple[DecodeState, np.ndarray | None]:
        """A smaller state when most rows have ended, so that these no longer cost anything.

        To a quarter, and not in finer steps: every size has programs of its own.

        Args:
          done: `[B]` bool, which rows have ended.

        Returns:
          The state, and which rows of the old one are its first; or the old state, and None.
        """
        running, rows = np.flatnonzero(~done), len(done) // 4
        if len(running) > rows:
            return state, None
        index = np.full(rows, running[0], np.int32)  # a row of padding has to be some row
        index[: len(running)] = running
        return self._call(verbs.select, state, index, np.arange(rows) >= len(running)), running

    def _call(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Every program that the engine runs is run here (`engine.programs` lists them by looking on)."""
        return verb(*args, **options)

    def _state(self, rows: int, slots: int) -> DecodeState:
        """An empty state, or a left one of that size."""
        self._last_size = rows, slots
        state = self._spare.pop((rows, slots), None)
        if state is None:
            self._spare.clear()  # before the new cache is made: only one is ever held
            state = self._call(new_state, self.config.text, self.policy, rows, slots)
        return state

    def release(self, state: DecodeState) -> None:
        """Gives a state back, so that the next batch of its size reuses the memory.

        Leftovers in a cache are masked out, but a NaN survives a mask (0 * NaN): such a state is dropped. So is one that has
        grown or shrunk, which a batch like the last one could not use.
        """
        size = state.token.shape[0], state.k_cache[0].shape[1]
        if size == self._last_size and np.asarray(state.finite).all():
            self._spare = {size: state}

    def spare_bytes(self) -> int:
        """Bytes of the state that is kept for the next batch, which uses it or drops it."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._spare))

    def drop_spare(self) -> None:
        """Frees the state that is kept for the next batch."""
        self._spare.clear()


def window_index(
    num_tokens: Sequence[int], row_chunks: int, audio: AudioConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts a batch's clips into attention windows.

    Args:
      num_tokens: audio tokens of each clip.
      row_chunks: chunks that a clip has in the batch's log-mel array, padding included.

    Returns:
      `(chunks, valid, first)`, int32: `[W, C]`, which chunk of the array goes where (-1 for none), in windows of up to
      `window_chunks`, or fewer if all clips are shorter; `[W]`, valid tokens of each window; `[clips]`, first token of each
      clip when those of all windows are counted through.
    """
    counts = np.asarray(num_tokens, np.int32)
    clip_chunks = -(-counts // audio.chunk_tokens)
    size = min(int(clip_chunks.max()), audio.window_chunks)
    windows = -(-clip_chunks // size)
    clip = np.repeat(np.arange(len(counts)), windows)  # of each window
    number = np.arange(len(clip)) - np.repeat(np.cumsum(windows) - windows, windows)  # within its clip
    chunk = number[:, None] * size + np.arange(size)
    chunks = np.where(chunk < clip_chunks[clip, None], clip[:, None] * row_chunks + chunk, -1).astype(np.int32)
    window_tokens = size * audio.chunk_tokens
    valid = np.clip(counts[clip] - number * window_tokens, 0, window_tokens).astype(np.int32)
    return chunks, valid, ((np.cumsum(windows) - windows) * window_tokens).astype(np.int32)


def prompt_block(
    prompts: Sequence[Prompt], first: np.ndarray, rows: int, at: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions `at` to `at + size` of all prompts: ids, and which audio feature goes where (-1 for text).

    Args:
      first: `[clips]` int32, where each clip's features begin (`AudioFeatures`).

    Returns:
      Two `[rows, size]` int32 arrays.
    """
    ids = np.zeros((rows, size), np.int32)
    audio_index = np.full((rows, size), -1, np.int32)
    for row, prompt in enumerate(prompts):
        piece = prompt.ids[at : at + size]
        ids[row, : len(piece)] = piece
        index = np.arange(at, at + size) - prompt.audio_start
        inside = (index >= 0) & (index < prompt.num_audio_tokens)
        audio_index[row, inside] = first[row] + index[inside]
    return ids, audio_index
