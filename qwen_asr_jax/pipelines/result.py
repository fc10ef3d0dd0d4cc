"""What a transcription returns."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Timings:
    """Wall-clock milliseconds of each stage. In a batch, the stages behind `load_audio_ms` are those of the whole batch.

    A stage's time is what the host needed to enqueue it, and what then had to be waited for until its result was there: on a
    device that is still busy with the stage before, the host's part is hidden, and the sum stays the true one.

    Attributes:
      load_audio_ms: decoding and resampling this input.
      mel_ms: log-mel, from samples on the host to features on the device.
      encode_ms: audio encoder.
      prefill_ms: prompt into the cache, and the first token.
      decode_ms: all further tokens.
      ttft_ms: start of this input (or its batch) to the first token.
      total_ms: start to finished text.
    """

    load_audio_ms: float
    mel_ms: float
    encode_ms: float
    prefill_ms: float
    decode_ms: float
    ttft_ms: float
    total_ms: float


@dataclasses.dataclass(frozen=True)
class Transcription:
    """The transcript of one input.

    Attributes:
      text: the transcript.
      language: name of the language detected or forced; `""` where the model names none (silence).
      tokens: generated ids, end token excluded.
      finish_reason: `eos`, or `length` when the token budget ran out.
      truncated: the text is incomplete (`finish_reason` is `length`).
      timings: milliseconds per stage.
      duration: seconds of audio.
      name: the input's path or kind.
      batch_size: clips that were run together with this one, itself included.
      warnings: one line each, about input that is odd but usable.
    """

    text: str
    language: str
    tokens: tuple[int, ...]
    finish_reason: Literal["eos", "length"]
    truncated: bool
    timings: Timings
    duration: float
    name: str
    batch_size: int
    warnings: tuple[str, ...]

    @property
    def rtf(self) -> float:
        """Real-time factor: processing time / audio time. Below 1 is faster than real time."""
        return self.timings.total_ms / 1000 / self.duration

    @property
    def rtfx(self) -> float:
        """Inverse real-time factor: seconds of audio per second of processing."""
        return 1 / self.rtf
