"""The object that owns one model's weights and states, and turns lists of clips into calls of the verbs."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from qwen_asr_jax import kernels
from qwen_asr_jax.audio import frames
from qwen_asr_jax.checkpoint.load import Checkpoint
from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.buckets import Buckets, default_buckets
from qwen_asr_jax.engine.state import DecodeState, new_state
from qwen_asr_jax.ops.mel import reflect_pad
from qwen_asr_jax.ops.screen import screen_of
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.text.prompt import Prompt
from qwen_asr_jax.typing import Array


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
        self.buckets = buckets or default_buckets(jax.default_backend())
        self.checkpoint = checkpoint
        eos_ids = np.asarray(self.config.eos_token_ids, np.int32)
        self._eos_ids = jax.device_put(eos_ids)
        self._no_eos_ids = jax.device_put(np.full_like(eos_ids, verbs.NO_TOKEN))  # of one shape: the programs are shared
        self.screen = None
        if screen_head and kernels.for_policy(policy) == "cpu" and policy.head != np.int8:
            decoder = checkpoint.params["decoder"]
            self.screen = jax.block_until_ready(screen_of(decoder.get("lm_head", decoder["embed_tokens"])["weight"]))
        self._spare: dict[tuple[int, int], DecodeState] = {}

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
        samples = np.stack([reflect_pad(w, total) for w in waveforms])
        samples = np.pad(samples, ((0, rows - len(waveforms)), (0, 0)))
        num_frames = np.zeros(rows, np.int32)
        num_frames[: len(valid)] = valid
        return verbs.log_mel(samples, num_frames, num_mel_bins=audio.num_mel_bins)

    def encode(self, log_mel: Array, num_tokens: Sequence[int]) -> Array:
        """Audio features `[B, Q * chunk_tokens, D]` of what `log_mel` returned; `num_tokens` are the clips' audio tokens."""
        counts = np.zeros(log_mel.shape[0], np.int32)
        counts[: len(num_tokens)] = num_tokens
        return verbs.encode(self.checkpoint.audio, self.checkpoint.params["audio_tower"], log_mel, counts)

    def prefill(
        self, prompts: Sequence[Prompt], features: Array, budgets: Sequence[int], *, ignore_eos: bool = False
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
        rows = features.shape[0]
        lengths = np.zeros(rows, np.int32)
        lengths[: len(prompts)] = [len(p.ids) for p in prompts]
        longest, budget = int(lengths.max()), np.zeros(rows, np.int32)
        budget[: len(budgets)] = budgets
        slots = self.buckets.cache(longest, int(budget.max()))
        state = self._spare.pop((rows, slots), None)
        if state is None:
            self._spare.clear()  # before the new cache is made: only one is ever held
            state = new_state(self.config.text, self.policy, rows, slots)
        at = 0
        for size in self.buckets.blocks(longest):
            ids, audio_index = prompt_block(prompts, rows, at, size)
            embeddings = verbs.embed(decoder, params, ids, features, audio_index)
            in_block = np.clip(lengths - at, 0, size)
            state = verbs.prefill(
                decoder, params, state, embeddings, in_block, budget, eos_ids, first=at == 0, screen=self.screen
            )
            at += size
        return state

    def decode(self, state: DecodeState, steps: int, *, ignore_eos: bool = False) -> tuple[DecodeState, np.ndarray]:
        """Up to `steps` more tokens per row, and at most `buckets.decode_chunk`; waits for them.

        Args:
          ignore_eos: as for `prefill`.

        Returns:
          The new state, and `[B, chunk]` int32 tokens, `verbs.NO_TOKEN` where a row had ended.
        """
        chunk = self.buckets.decode_chunk
        state, tokens = verbs.decode(
            self.checkpoint.decoder,
            self.checkpoint.params["decoder"],
            state,
            self._no_eos_ids if ignore_eos else self._eos_ids,
            np.int32(min(steps, chunk)),
            chunk=chunk,
            screen=self.screen,
        )
        return state, np.asarray(tokens)

    def release(self, state: DecodeState) -> None:
        """Gives a state back, so that the next batch of its size reuses the memory.

        Leftovers in a cache are masked out, but a NaN survives a mask (0 * NaN): such a state is dropped.
        """
        if np.asarray(state.finite).all():
            self._spare = {(state.token.shape[0], state.k_cache[0].shape[1]): state}

    def drop_spare(self) -> None:
        """Frees the state that is kept for the next batch."""
        self._spare.clear()


def prompt_block(prompts: Sequence[Prompt], rows: int, at: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions `at` to `at + size` of all prompts: ids, and which audio feature goes where (-1 for text).

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
        audio_index[row, inside] = index[inside]
    return ids, audio_index
