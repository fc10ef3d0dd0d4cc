"""From a model's name or directory to an object that transcribes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import time

from qwen_asr_jax import runtime
from qwen_asr_jax.config import ModelConfig, read_config
from qwen_asr_jax.errors import CheckpointError
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import Policy, get_policy
from qwen_asr_jax.text.tokenizer import Tokenizer

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    model_dir: str | os.PathLike[str],
    policy: str | Policy = "bf16",
    *,
    backend: str = "auto",
    threads: int = 0,
    options: EngineOptions | None = None,
) -> QwenASR:
    """Loads a Qwen3-ASR checkpoint.

    Args:
      model_dir: a directory in the original layout, the transformers-native layout, or written by
        `scripts/convert_checkpoint.py`; or a Hub id such as `Qwen/Qwen3-ASR-0.6B`, if `huggingface_hub` is installed. A
        directory never touches the network.
      policy: `fp32`, `bf16` or `fp16`, or a `Policy`.
      backend: `auto`, `cpu` or `gpu`.
      threads: CPU threads; 0 for the physical cores.
      options: shapes that the engine rounds to; None for the platform's defaults.

    Returns:
      The model; see `QwenASR.transcribe`.

    Raises:
      CheckpointError: the directory, its weights or its tokenizer cannot be used, or it holds no transcription model.
      UsageError: unknown policy or backend.
      BackendError: the backend is not there, or JAX was started differently before.
    """
    policy = get_policy(policy)
    path = find_model(model_dir)
    config = read_config(path)
    if config.kind == "aligner":
        raise CheckpointError(
            f"{path}: is a forced aligner, which times given words and cannot transcribe; use a Qwen3-ASR model"
        )
    runtime.configure(backend, threads)

    from qwen_asr_jax.checkpoint.load import load_checkpoint
    from qwen_asr_jax.engine.compilations import compilations
    from qwen_asr_jax.engine.engine import Engine
    from qwen_asr_jax.text.tokenizer import load_tokenizer

    compilations()  # counting starts here
    start = time.perf_counter()
    tokenizer = load_tokenizer(path)
    config = reconcile(path, config, tokenizer)
    checkpoint = load_checkpoint(path, config, policy)
    engine = Engine(checkpoint, policy, (options or EngineOptions()).buckets())
    return QwenASR(engine, tokenizer, name=path.name, load_s=time.perf_counter() - start)


def find_model(model_dir: str | os.PathLike[str]) -> pathlib.Path:
    """The local directory of a model: the path itself, or the Hub's cached or freshly downloaded copy.

    Raises:
      CheckpointError: it is neither a directory nor a Hub id that can be fetched.
    """
    path = pathlib.Path(model_dir).expanduser()
    if path.is_dir():
        try:
            next(path.iterdir(), None)
        except OSError as e:
            raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from None
        return path
    if path.exists():
        raise CheckpointError(f"{path}: is a file; model_dir must be the directory that holds config.json")
    name = os.fspath(model_dir)
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(
            f"{path}: no such directory; get a model with: hf download Qwen/Qwen3-ASR-0.6B --local-dir {path}"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(
            f'{name}: no such directory; to fetch it from the Hub: pip install "qwen_asr_jax[hub]"'
        ) from None
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name))
    except Exception as e:  # network, authentication, offline mode and unknown ids all raise their own kinds
        raise CheckpointError(f"{name}: cannot be fetched from the Hub ({str(e).splitlines()[0]})") from None


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
    if not config.eos_token_ids:
        return dataclasses.replace(config, eos_token_ids=(special.end_of_text, special.im_end))
    return config
