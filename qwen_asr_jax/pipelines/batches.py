"""How many inputs are run, sorted and read at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from qwen_asr_jax.errors import UsageError

if TYPE_CHECKING:
    from qwen_asr_jax.audio.ahead import Read

MAX_BATCH_SIZE = 256
MAX_AUDIO_WORKERS = 64
AUDIO_WORKERS_HELP = (
    "Threads that read audio ahead; 0 for none; by default none at a batch size of 1, else one per core but one, at most 16."
)

_GROUP_BATCHES = 4


def check_batching(batch_size: int, audio_workers: int | None) -> None:
    """Whether so many clips may be run at once, and so many threads read them (None: automatic).

    Raises:
      UsageError: they may not.
    """
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError(f"batch_size must be 1 to {MAX_BATCH_SIZE}, got {batch_size}")
    if audio_workers is not None and not 0 <= audio_workers <= MAX_AUDIO_WORKERS:
        raise UsageError(f"audio_workers must be 0 (none) to {MAX_AUDIO_WORKERS}, got {audio_workers}")


def group_size(batch_size: int) -> int:
    """Clips to sort by length together: those of a few batches, so that each holds similar ones."""
    return 1 if batch_size == 1 else batch_size * _GROUP_BATCHES


def groups(reads: Iterable[Read], batch_size: int, most_samples: float) -> Iterator[list[Read]]:
    """Groups of `group_size` clips; of fewer, but whole batches, where these hold as many as `most_samples` samples."""
    group: list[Read] = []
    samples = 0
    for read in reads:
        group.append(read)
        samples += read.num_samples
        if len(group) == group_size(batch_size) or (samples >= most_samples and len(group) % batch_size == 0):
            yield group
            group, samples = [], 0
    if group:
        yield group
