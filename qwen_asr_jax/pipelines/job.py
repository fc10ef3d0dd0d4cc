"""One clip that is ready to run, and what a batch of them needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qwen_asr_jax.audio.frames import SAMPLE_RATE
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.engine.engine import Engine
from qwen_asr_jax.engine.memory_plan import MemoryPlan, device_limit, plan_batch
from qwen_asr_jax.engine.programs import Workload
from qwen_asr_jax.text.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class Job:
    """One clip, ready to run.

    Attributes:
      waveform: its samples.
      load_ms: milliseconds that reading it took.
      prompt: what the model is asked.
      budget: most tokens to choose.
    """

    waveform: Waveform
    load_ms: float
    prompt: Prompt
    budget: int


def plan_of(engine: Engine, jobs: Sequence[Job]) -> MemoryPlan:
    """What a batch needs of the device's memory, beside the weights."""
    seconds = max(len(job.waveform.samples) for job in jobs) / SAMPLE_RATE
    text_tokens = max(len(job.prompt.ids) - job.prompt.num_audio_tokens for job in jobs)
    workload = Workload(seconds, len(jobs), text_tokens, max(job.budget for job in jobs))
    limit = device_limit()
    limit = None if limit is None else limit + engine.spare_bytes()
    return plan_batch(engine.config, engine.policy, engine.buckets, workload, limit)
