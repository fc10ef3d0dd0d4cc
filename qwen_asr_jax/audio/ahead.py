"""Inputs read ahead by threads, while the caller is busy with those before.

Threads, not processes: libsndfile, libsoxr and NumPy's loops let go of the interpreter's lock, so that reading holds it for
2 to 6 % of its time only (docs/decisions/audio-ahead.md).
"""

from __future__ import annotations

import atexit
import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TypeAlias

from qwen_asr_jax.audio.frames import SAMPLE_RATE
from qwen_asr_jax.audio.read import AudioInput, Waveform, read_audio
from qwen_asr_jax.errors import QwenASRError
from qwen_asr_jax.runtime import default_threads

HELD_S = 4 * 3600
"""Seconds of audio to hold ready at most, 0.9 GB of samples; what is being read at that moment comes on top."""

_MOST_BY_DEFAULT = 16
_JOIN_S = 5.0

Source: TypeAlias = AudioInput | Waveform | Callable[[], Waveform]
"""What can be transcribed: an `AudioInput`, a clip that has been read, or a function that reads one when its turn comes."""


@dataclasses.dataclass(frozen=True)
class AnyThread:
    """A function that reads a clip and may be called ahead of its turn, in any thread, while others are read."""

    read: Callable[[], Waveform]

    def __call__(self) -> Waveform:
        """Reads it."""
        return self.read()


@dataclasses.dataclass(frozen=True)
class Read:
    """What came of one input.

    Attributes:
      found: the clip, or the error that says why there is none.
      load_ms: milliseconds that reading took, in whichever thread.
    """

    found: Waveform | QwenASRError
    load_ms: float

    @property
    def num_samples(self) -> int:
        """Samples that it holds in memory."""
        return len(self.found.samples) if isinstance(self.found, Waveform) else 0


def read_source(source: Source) -> Read:
    """Reads one input, here and now; an `AudioError` is what came of it."""
    start = time.perf_counter()
    try:
        found = _read(source)
    except QwenASRError as e:
        return Read(e, (time.perf_counter() - start) * 1e3)
    return Read(found, (time.perf_counter() - start) * 1e3)


def _read(source: Source) -> Waveform:
    if isinstance(source, Waveform):
        return source
    return source() if callable(source) else read_audio(source)


def default_workers(batch_size: int) -> int:
    """Threads that read ahead unless told: none for clips that run one by one, else one per core but one, at most 16."""
    return 0 if batch_size == 1 else min(_MOST_BY_DEFAULT, max(1, default_threads() - 1))


@dataclasses.dataclass
class _Entry:
    """An input that was pulled; `read` is None where the caller itself reads it in its turn."""

    source: Source
    read: Future[Read] | None


class ReadAhead:
    """Iterates over what came of each source, in their order, while threads read those that follow.

    Threads read paths, encoded files, arrays and `AnyThread`. Other functions and file objects are not known to bear that:
    they are read where and when their result is asked for, and nothing behind them is pulled before. Any exception but a
    `QwenASRError` is raised in the place of its input.

    To be closed, or used in a `with` statement: threads end when the last input is taken or when it is closed.

    Args:
      sources: pulled in the caller's thread.
      workers: threads; 0 reads each input when it is asked for.
      clips: inputs to read ahead of the one that is asked for, at most.
      seconds: seconds of audio to hold ready, at most; each thread may be reading one more clip.
    """

    def __init__(self, sources: Iterable[Source], workers: int, clips: int, seconds: float = HELD_S):
        self._sources = iter(sources)
        self._workers = workers
        self._clips = clips if workers else 0
        self._most_samples = seconds * SAMPLE_RATE
        self._pulled: collections.deque[_Entry] = collections.deque()
        self._waiting: collections.deque[_Entry] = collections.deque()  # of those, the ones that no thread has taken yet
        self._held_samples = 0
        self._closed = False
        self._changed = threading.Condition()  # guards the three above
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Read]:
        return self

    def __next__(self) -> Read:
        self._pull()
        if not self._pulled:
            self.close()
            raise StopIteration
        entry = self._pulled.popleft()
        if entry.read is None:
            return read_source(entry.source)
        read = entry.read.result()
        with self._changed:
            self._held_samples -= read.num_samples
            self._changed.notify_all()
        return read

    def close(self) -> None:
        """Ends the threads, once they have read what they are at; what was read ahead is dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._pulled.clear()
        self._sources = iter(())
        deadline = time.monotonic() + _JOIN_S  # a pipe that nobody writes to must not hold up the end of the process
        for thread in self._threads:
            if thread is not threading.current_thread():  # where a forgotten iterator happened to be collected
                thread.join(max(0.0, deadline - time.monotonic()))
        self._threads.clear()
        atexit.unregister(self.close)

    def _pull(self) -> None:
        """Pulls as many sources as may be read ahead, and the one that is asked for."""
        while len(self._pulled) <= self._clips and not (self._pulled and self._pulled[-1].read is None):
            try:
                source = next(self._sources)
            except StopIteration:
                return
            entry = _Entry(source, Future() if self._workers and _bears_threads(source) else None)
            self._pulled.append(entry)
            if entry.read is not None:
                self._hand_over(entry)

    def _hand_over(self, entry: _Entry) -> None:
        with self._changed:
            self._waiting.append(entry)
            self._changed.notify_all()
        if len(self._threads) < self._workers:
            if not self._threads:
                # The interpreter must not end while a daemon is in libsoxr: its C++ frames cannot be unwound.
                atexit.register(self.close)
            thread = threading.Thread(target=self._work, name="audio-reader", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """One thread: reads what waits, in order, as long as there is room."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (self._waiting and self._held_samples < self._most_samples),
                )
                if self._closed:
                    return
                entry = self._waiting.popleft()
            assert entry.read is not None
            try:
                read = read_source(entry.source)
            except BaseException as e:  # not of the input: for the caller to see
                entry.read.set_exception(e)
                continue
            with self._changed:
                self._held_samples += read.num_samples
            entry.read.set_result(read)


def _bears_threads(source: Source) -> bool:
    """Whether it may be read ahead of its turn, in another thread; worth it or not."""
    if isinstance(source, Waveform):
        return False  # there is nothing to read
    return isinstance(source, AnyThread) or not (callable(source) or hasattr(source, "read"))
