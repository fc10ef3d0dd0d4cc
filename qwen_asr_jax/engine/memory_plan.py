"""How much memory a model and its batches will need, by arithmetic, before anything is loaded.

Weights and caches are exact; where caches grow, for their first size, and for what the next one adds. Temporaries are what the
largest stage holds at its peak under plain XLA: the arrays that its largest operation reads and writes, by the shapes that the
engine rounds to. Native CPU kernels need less.
"""

from __future__ import annotations

import dataclasses

import jax

from qwen_asr_jax import runtime
from qwen_asr_jax.audio.frames import SAMPLE_RATE, num_audio_tokens, num_frames
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.engine.buckets import Buckets
from qwen_asr_jax.engine.programs import Workload
from qwen_asr_jax.engine.state import cache_bytes
from qwen_asr_jax.engine.verbs import MEL_ROWS
from qwen_asr_jax.errors import BackendError
from qwen_asr_jax.nn.conv_stem import chunks_at_once
from qwen_asr_jax.policy import Policy

_F32 = 4


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a workload needs on the device.

    Attributes:
      weights: all parameters.
      cache: keys and values of the batch, as they begin.
      growth: what is added where a row's text outgrows that; 0 where the cache has room for the whole budget.
      temporaries: the largest stage's, with the arrays that wait for it.
      stage: which stage that is.
      limit: what the device's allocator may still take; None where there is no limit (CPU).
      what: the workload, for people.
    """

    weights: int
    cache: int
    growth: int
    temporaries: int
    stage: str
    limit: int | None
    what: str

    @property
    def total(self) -> int:
        """Bytes at the peak, if no text outgrows the first cache."""
        return self.weights + self.cache + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether the total is within the limit."""
        return self.limit is None or self.total <= self.limit

    def __str__(self) -> str:
        """The sum in one line."""
        line = (
            f"{self.what}: weights {_gb(self.weights)} + cache {_gb(self.cache)} + temporaries {_gb(self.temporaries)}"
            f" ({self.stage}) = {_gb(self.total)} GB"
        )
        line += "" if self.limit is None else f" of {_gb(self.limit)} GB"
        return f"{line}; {_gb(self.growth)} more if a text outgrows the cache" if self.growth else line

    def check(self) -> None:
        """Refuses what cannot fit.

        Raises:
          BackendError: the total is above the limit; the message holds the sum and what would make it smaller.
        """
        if not self.fits:
            raise BackendError(
                f"not enough memory on the device for {self}; use --policy=int8_all, a smaller model, shorter audio, or a"
                " larger --memory_fraction"
            )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size >= 1e8 else f"{size / 1e9:.3f}"


def plan_memory(
    config: ModelConfig, policy: Policy, buckets: Buckets, workload: Workload, limit: int | None = None
) -> MemoryPlan:
    """The plan for one batch.

    Args:
      policy: with its kernels and projections chosen.
      limit: see `MemoryPlan`; `device_limit` asks the device.
    """
    _, _, params = abstract_model(config, policy)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return dataclasses.replace(plan_batch(config, policy, buckets, workload, limit), weights=weights)


def plan_batch(
    config: ModelConfig, policy: Policy, buckets: Buckets, workload: Workload, limit: int | None = None
) -> MemoryPlan:
    """The plan for one batch of a model that is loaded: `weights` is 0. Arguments as of `plan_memory`."""
    prompt, rows, slots = _sizes(config, buckets, workload)
    stages = _stages(config, policy, buckets, workload)
    stage = max(stages, key=stages.__getitem__)
    grown = slots if slots >= prompt + workload.new_tokens else buckets.longer_cache(slots)
    cache = cache_bytes(config.text, policy, rows, slots)
    return MemoryPlan(
        weights=0,
        cache=cache,
        growth=cache_bytes(config.text, policy, rows, grown) - cache,
        temporaries=stages[stage],
        stage=stage,
        limit=limit,
        what=f"{workload.rows} x {workload.seconds:g} s, policy {policy.name}",
    )


def _sizes(config: ModelConfig, buckets: Buckets, workload: Workload) -> tuple[int, int, int]:
    """Tokens of a prompt, rows of the batch, slots of the cache as it begins."""
    tokens = num_audio_tokens(num_frames(round(workload.seconds * SAMPLE_RATE)), config.audio)
    prompt = workload.prompt_tokens + tokens
    return prompt, buckets.rows(workload.rows), buckets.cache(prompt, workload.new_tokens)


def _stages(config: ModelConfig, policy: Policy, buckets: Buckets, workload: Workload) -> dict[str, int]:
    """Bytes at the peak of every stage, of what it computes and of what it was given."""
    prompt, rows, slots = _sizes(config, buckets, workload)
    audio, text, operand = config.audio, config.text, policy.compute.itemsize
    frames = num_frames(round(workload.seconds * SAMPLE_RATE))
    clip_chunks = -(-frames // audio.chunk_frames)
    chunks = buckets.chunks(clip_chunks)
    mel = rows * chunks * audio.chunk_frames * audio.num_mel_bins * _F32

    # Spectra: the frames, folded into even and odd halves, and real and imaginary parts, some 400 values each.
    at_once = min(rows, MEL_ROWS) * chunks * audio.chunk_frames
    log_mel = at_once * 4 * 400 * _F32 + mel

    if workload.rows == 1:
        encoded_chunks, all_chunks = chunks, chunks
    else:
        width = min(clip_chunks, audio.window_chunks)
        blocks = buckets.windows(workload.rows * -(-clip_chunks // width))
        encoded_chunks, all_chunks = blocks[0] * width, sum(blocks) * width
    features = all_chunks * audio.chunk_tokens * audio.output_dim * _F32
    # A convolution's output, in float32 and with a border in the operands' dtype, and nine views of a quarter of it.
    first_layer = -(-audio.chunk_frames // 2) * -(-audio.num_mel_bins // 2) * audio.conv_channels
    convolving = chunks_at_once(encoded_chunks, policy.compute_dtype) * first_layer * (_F32 + operand * (1.07 + 9 / 4))
    tokens = encoded_chunks * audio.chunk_tokens
    mlp = tokens * (audio.mlp_dim * (_F32 + operand) + 3 * audio.embed_dim * _F32)
    encode = mel + features + max(convolving, mlp)

    block = buckets.blocks(prompt)[0]
    group = buckets.rows_at_once(rows, block) or rows
    seen = block if len(buckets.blocks(prompt)) == 1 else slots
    mlp = group * block * text.mlp_dim * (2 * _F32 + operand)
    attention = group * text.num_heads * block * seen * 2 * _F32
    held = rows * block * text.embed_dim * _F32 + group * block * text.embed_dim * 2 * _F32
    sliced = 0 if group == rows else cache_bytes(text, policy, group, slots)
    prefill = features + held + sliced + max(mlp, attention)

    # A batch that shrinks has a quarter of its cache twice for a moment.
    quarter = cache_bytes(text, policy, rows // 4, slots)
    step = rows * (config.head_rows + 4 * text.mlp_dim + 2 * text.num_heads * slots) * _F32 + quarter
    stages = {"log_mel": log_mel, "encode": encode, "prefill": prefill, "decode": step}
    return {name: int(size) for name, size in stages.items()}


def device_limit() -> int | None:
    """Bytes that the device's allocator may still take; None on a CPU, where it has no limit of its own."""
    limit, used = runtime.device_memory("bytes_limit"), runtime.device_memory("bytes_in_use")
    return None if limit is None or used is None else limit - used
