"""From a model's name or directory to an object that transcribes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Callable

from qwen_asr_jax import kernels, runtime
from qwen_asr_jax.config import ModelConfig, read_config
from qwen_asr_jax.engine.buckets import Buckets
from qwen_asr_jax.engine.memory_plan import MemoryPlan, device_limit, plan_memory
from qwen_asr_jax.engine.programs import Workload
from qwen_asr_jax.errors import BackendError, CheckpointError
from qwen_asr_jax.pipelines.health import casts_to_float16, check_model
from qwen_asr_jax.pipelines.offline import QwenASR, default_max_new_tokens
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import DEFAULT_POLICY, Policy, get_policy
from qwen_asr_jax.text.prompt import build_prompt
from qwen_asr_jax.text.tokenizer import Tokenizer, load_tokenizer

PLANNED_S = 30.0
"""Length of the clips that memory is planned for."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    model_dir: str | os.PathLike[str],
    policy: str | Policy = DEFAULT_POLICY,
    *,
    backend: str = "auto",
    threads: int = 0,
    implementation: str = "auto",
    memory_fraction: float = 0.0,
    options: EngineOptions | None = None,
    batch_size: int = 1,
    on_plan: Callable[[MemoryPlan], None] | None = None,
) -> QwenASR:
    """Loads a Qwen3-ASR checkpoint.

    Args:
      model_dir: a directory in the original layout, the transformers-native layout, or written by
        `scripts/convert_checkpoint.py`; or a Hub id such as `Qwen/Qwen3-ASR-0.6B`, if `huggingface_hub` is installed. A
        directory never touches the network.
      policy: `fp32`, `bf16`, `fp16`, `int8` or `int8_all`, or a `Policy`.
      backend: `auto`, `cpu` or `gpu`.
      threads: CPU threads; 0 for the physical cores.
      implementation: `xla`, `cpu` or `cuda` (native kernels), or `auto` for what the policy says: unless it names one, native
        kernels on a CPU where they are available. What that came to is in the model's `engine.policy`.
      memory_fraction: most of a GPU's memory that the process may take, up to 1; 0 for XLA's own choice, three quarters. It is
        taken as needed. Refused on a CPU.
      options: shapes that the engine rounds to; None for the platform's defaults.
      batch_size: clips at once that memory is planned for, of `PLANNED_S` seconds each.
      on_plan: told how much that will be, before anything is loaded.

    Returns:
      The model; see `QwenASR.transcribe`. Under float16 its layers have been probed: where it holds values that are too large
      for that, its `warnings` say so.

    Raises:
      CheckpointError: the directory, its weights or its tokenizer cannot be used, or it holds no transcription model.
      UsageError: unknown policy or backend, or a number that makes no sense.
      BackendError: the backend or the kernels are not there, the device has too little memory for one clip of that length, or
        JAX was started differently before.
    """
    policy = get_policy(policy)
    if implementation != "auto":
        policy = dataclasses.replace(policy, implementation=implementation)
    opened = open_model(
        model_dir, policy, backend=backend, threads=threads, memory_fraction=memory_fraction, options=options
    )

    from qwen_asr_jax.checkpoint.load import load_checkpoint
    from qwen_asr_jax.engine.compilations import compilations
    from qwen_asr_jax.engine.engine import Engine

    compilations()  # counting starts here
    start = time.perf_counter()
    if on_plan is not None or device_limit() is not None:
        plan = opened.plan(PLANNED_S, batch_size)
        if on_plan is not None:
            on_plan(plan)
        if not plan.fits:  # batches that do not fit are run in parts, but one clip must
            opened.plan(PLANNED_S, 1).check()
    checkpoint = load_checkpoint(opened.path, opened.config, opened.policy)
    engine = Engine(checkpoint, opened.policy, opened.buckets, screen_head=opened.options.screen_head)
    warnings = check_model(opened.path, engine, opened.tokenizer) if casts_to_float16(opened.policy) else ()
    return QwenASR(
        engine,
        opened.tokenizer,
        name=opened.path.resolve().name if os.path.isdir(os.path.expanduser(model_dir)) else os.fspath(model_dir),
        load_s=opened.seconds + time.perf_counter() - start,
        path=opened.path,
        warnings=warnings,
    )


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """All of a model but its weights.

    Attributes:
      path: its directory.
      config: geometry and ids.
      policy: with its kernels and projections chosen.
      tokenizer: text to ids and back.
      options: as asked for.
      buckets: what these come to here.
      seconds: how long opening took, JAX's start not counted.
    """

    path: pathlib.Path
    config: ModelConfig
    policy: Policy
    tokenizer: Tokenizer
    options: EngineOptions
    buckets: Buckets
    seconds: float

    def workload(self, seconds: float, rows: int, new_tokens: int = 0) -> Workload:
        """So many clips of so many seconds with the usual prompt; `new_tokens` 0 for the usual budget."""
        prompt = len(build_prompt(self.tokenizer, 0).ids)
        return Workload(seconds, rows, prompt, new_tokens or default_max_new_tokens(seconds))

    def plan(self, seconds: float, rows: int, new_tokens: int = 0) -> MemoryPlan:
        """What such a workload needs of the device's memory."""
        workload = self.workload(seconds, rows, new_tokens)
        return plan_memory(self.config, self.policy, self.buckets, workload, device_limit())


def open_model(
    model_dir: str | os.PathLike[str],
    policy: Policy,
    *,
    backend: str = "auto",
    threads: int = 0,
    memory_fraction: float = 0.0,
    options: EngineOptions | None = None,
) -> OpenedModel:
    """Reads everything but the weights, and starts JAX; arguments and errors as of `load_model`."""
    path = find_model(model_dir)
    config = read_config(path)
    if config.kind == "aligner":
        raise CheckpointError(
            f"{path}: is a forced aligner, which times given words and cannot transcribe; use a Qwen3-ASR model"
        )
    runtime.configure(backend, threads, memory_fraction)
    policy = with_chosen_kernels(policy)
    start = time.perf_counter()
    tokenizer = load_tokenizer(path)
    options = options or EngineOptions()
    return OpenedModel(
        path=path,
        config=reconcile(path, config, tokenizer),
        policy=policy,
        tokenizer=tokenizer,
        options=options,
        buckets=options.buckets(),
        seconds=time.perf_counter() - start,
    )


def with_chosen_kernels(policy: Policy) -> Policy:
    """The policy with what its `implementation` and `projections` come to here. Starts JAX.

    Raises:
      BackendError: the kernels are not available, or there are none of that name.
    """
    try:
        implementation = kernels.for_policy(policy)
    except NotImplementedError as e:
        raise BackendError(str(e)) from None
    projections = policy.projections
    if projections == "auto":
        # On a CPU each matrix stays mapped from its file, and fewer launches gain nothing.
        projections = "separate" if runtime.platform() == "cpu" else "fused"
    return dataclasses.replace(policy, implementation=implementation, projections=projections)


def find_model(model_dir: str | os.PathLike[str]) -> pathlib.Path:
    """The local directory of a model: the path itself, or the Hub's cached or freshly downloaded copy.

    Raises:
      CheckpointError: it is neither a directory nor a Hub id that can be fetched.
    """
    path = pathlib.Path(os.path.expanduser(model_dir))
    try:
        if os.path.isdir(path):
            os.listdir(path)
            return path
        exists = path.exists()
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from None
    if exists:
        raise CheckpointError(f"{path}: is a file; model_dir must be the directory that holds config.json")
    name = os.fspath(model_dir)
    if name.startswith("random:"):
        raise CheckpointError(f"{name}: is known to bench.py alone; scripts/make_checkpoint.py writes such a model to disk")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(
            f"{path}: no such directory; get a model with: hf download Qwen/Qwen3-ASR-0.6B --local-dir {path}"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f"{name}: no such directory; if it is a Hub id: pip install huggingface_hub") from None
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name))
    except Exception as e:  # network, authentication, offline mode and unknown ids all raise their own kinds
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise CheckpointError(f"{name}: no such directory, and it cannot be fetched from the Hub ({reason})") from None


def reconcile(path: pathlib.Path, config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The configuration with ids that agree with the tokenizer.

    Raises:
      CheckpointError: the tokenizer belongs to another model.
    """
    special = tokenizer.special
    if config.audio_token_id != special.audio_pad:
        raise CheckpointError(
            f"{path}: config.json has audio_token_id {config.audio_token_id}, the tokenizer has <|audio_pad|> at"
            f" {special.audio_pad}; both must come from one model"
        )
    if tokenizer.size > config.text.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.size} entries, config.json only vocab_size {config.text.vocab_size};"
            " both must come from one model"
        )
    # Either end token ends the text, also where the files name only one; a fine-tuned model may have more.
    eos_ids = tuple(sorted({*config.eos_token_ids, special.end_of_text, special.im_end}))
    if not 0 <= eos_ids[0] <= eos_ids[-1] < config.text.vocab_size:
        raise CheckpointError(f"{path}: eos_token_id {list(config.eos_token_ids)} is not within the vocabulary")
    return dataclasses.replace(config, eos_token_ids=eos_ids)
