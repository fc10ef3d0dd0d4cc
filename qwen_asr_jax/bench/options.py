"""What is asked of every workload, and who hears of its progress."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from qwen_asr_jax.bench.timing import Figures
from qwen_asr_jax.bench.workloads import CONTEXTS
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import Policy


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of every workload.

    Attributes:
      runs, warmup: measured runs, and runs before them that are not.
      decode_tokens: steps of `decode`, most tokens of `full` and `batch`; 0 for 32, and for as many as transcribing allows.
      contexts: where `decode` is measured again, in tokens.
      profile_dir: where one more run is traced to; None for no trace.
    """

    runs: int = 5
    warmup: int = 2
    decode_tokens: int = 0
    contexts: Sequence[int] = CONTEXTS
    profile_dir: pathlib.Path | None = None

    def settings(self, policy: Policy | None = None, engine: EngineOptions | None = None) -> dict[str, Any]:
        """The `settings` of a record."""
        found: dict[str, Any] = {"runs": self.runs, "warmup": self.warmup, "decode_tokens": self.decode_tokens}
        if policy is not None and not policy.is_preset:
            found["policy"] = policy.dtypes()  # the kernels have a field of their own
        if engine is not None and engine != EngineOptions():
            found["engine"] = dataclasses.asdict(engine)
        return found


class Listener:
    """Hears of progress; the default says nothing."""

    def status(self, text: str) -> None:
        """What is being done now."""

    def run(self, number: int, runs: int, figures: Figures, main: str, audio_s: float | None) -> None:
        """A measured run has ended."""

    def profile(self, table: str) -> None:
        """A traced run's costliest operations."""
