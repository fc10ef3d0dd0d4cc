"""The few shapes that everything is padded to, so that clips of similar length share one compiled program."""

from __future__ import annotations

import dataclasses

from qwen_asr_jax.errors import UsageError


def round_up(n: int, steps_per_octave: int, unit: int) -> int:
    """The smallest bucket that holds `n`.

    Between a power of two and the next there are `steps_per_octave` buckets, all multiples of `unit`: padding is at most
    `1 / steps_per_octave` of n, or `unit - 1`.
    """
    octave = 1 << max(0, (max(n, 1) - 1).bit_length() - 1)  # largest power of two below n
    step = max(unit, octave // steps_per_octave)
    step = -(-step // unit) * unit
    return max(unit, -(-n // step) * step)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """How finely lengths are rounded. Finer means less padding and more programs.

    On a CPU padding costs real time, so buckets are fine; on a GPU a program is dear and padding cheap.

    Attributes:
      steps_per_octave: buckets between one power of two and the next.
      token_unit: prompt lengths are multiples of this.
      cache_unit: cache lengths are multiples of this.
      cache_steps_per_octave: as `steps_per_octave`, of cache lengths.
      cache_ahead: tokens behind the prompt that a cache has room for at first; when it is full it grows to the next bucket. 0
        makes room for the whole budget at once.
      prefill_block: longest prompt piece that is run at once, in tokens; longer prompts go through in blocks, which bounds the
        memory that attention scores need.
      prefill_tokens: most tokens of all rows together that go through the layers at once; 0 for no limit.
      encoder_windows: most attention windows of a batch's clips that are encoded at once.
      decode_chunk: most decode steps in one call; text can stream out between calls.
      steps_per_check: decode steps between looks at whether all have ended (`verbs.decode`); a divisor of `decode_chunk`.
    """

    steps_per_octave: int = 8
    token_unit: int = 16
    cache_unit: int = 256
    cache_steps_per_octave: int = 2
    cache_ahead: int = 0
    prefill_block: int = 1024
    prefill_tokens: int = 0
    encoder_windows: int = 64
    decode_chunk: int = 32
    steps_per_check: int = 1

    def __post_init__(self) -> None:
        if self.decode_chunk % self.steps_per_check:
            raise UsageError(
                f"engine.decode_chunk ({self.decode_chunk}) must be a multiple of engine.steps_per_check"
                f" ({self.steps_per_check})"
            )

    def rows(self, n: int) -> int:
        """Batch rows for `n` clips: a power of two."""
        return 1 << (n - 1).bit_length()

    def chunks(self, n: int) -> int:
        """Encoder chunks for a clip of `n`; exact up to 16 seconds at 8 steps per octave."""
        return round_up(n, self.steps_per_octave, 1)

    def tokens(self, n: int) -> int:
        """Length of one prefill call for `n` tokens, at most `prefill_block` of them."""
        return min(self.prefill_block, round_up(n, self.steps_per_octave, self.token_unit))

    def blocks(self, n: int) -> list[int]:
        """Lengths of the prefill calls for a prompt of `n` tokens."""
        full, rest = divmod(n, self.prefill_block)
        return [self.prefill_block] * full + ([self.tokens(rest)] if rest else [])

    def cache(self, prompt_tokens: int, new_tokens: int) -> int:
        """Slots of the cache that begins with that prompt, padded blocks included, and is to take as many new tokens."""
        ahead = min(new_tokens, self.cache_ahead) if self.cache_ahead else new_tokens
        needed = max(sum(self.blocks(prompt_tokens)), prompt_tokens + ahead)
        return round_up(needed, self.cache_steps_per_octave, self.cache_unit)

    def longer_cache(self, slots: int) -> int:
        """Slots of the next longer cache."""
        return round_up(slots + 1, self.cache_steps_per_octave, self.cache_unit)

    def rows_at_once(self, rows: int, tokens: int) -> int:
        """Of so many rows with so many tokens each, how many go through a prefill call's layers together; 0 for all."""
        if not self.prefill_tokens or rows * tokens <= self.prefill_tokens:
            return 0
        return 1 << max(0, (self.prefill_tokens // tokens).bit_length() - 1)

    def windows(self, n: int) -> list[int]:
        """Window counts of the encoder calls for `n` windows."""
        full, rest = divmod(n, self.encoder_windows)
        last = [min(self.encoder_windows, round_up(rest, self.steps_per_octave, 1))] if rest else []
        return [self.encoder_windows] * full + last


def default_buckets(platform: str) -> Buckets:
    """Fine buckets for a CPU; elsewhere coarse ones, short caches that grow, and few looks at the loop's condition."""
    if platform == "cpu":
        return Buckets()
    return Buckets(
        steps_per_octave=2,
        token_unit=64,
        cache_steps_per_octave=1,
        cache_ahead=64,
        prefill_block=2048,
        prefill_tokens=8192,
        steps_per_check=2,
    )
