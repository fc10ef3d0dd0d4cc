"""The few shapes that everything is padded to, so that clips of similar length share one compiled program."""

from __future__ import annotations

import dataclasses


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
      prefill_block: longest prompt piece that is run at once, in tokens; longer prompts go through in blocks, which bounds the
        memory that attention scores need.
      decode_chunk: most decode steps in one call; text can stream out between calls.
    """

    steps_per_octave: int = 8
    token_unit: int = 16
    cache_unit: int = 256
    prefill_block: int = 1024
    decode_chunk: int = 32

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
        """Slots of a cache for that prompt, padded blocks included, and as many new tokens."""
        return round_up(max(sum(self.blocks(prompt_tokens)), prompt_tokens + new_tokens), 2, self.cache_unit)


def default_buckets(backend: str) -> Buckets:
    """Fine buckets for a CPU, coarse ones elsewhere."""
    return Buckets() if backend == "cpu" else Buckets(steps_per_octave=2, token_unit=64, prefill_block=2048)
