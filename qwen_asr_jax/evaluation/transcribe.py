"""Transcribes the clips that are left, and keeps each result as it comes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm

import qwen_asr_jax
from qwen_asr_jax import kernels
from qwen_asr_jax.audio.ahead import AnyThread
from qwen_asr_jax.audio.read import Waveform, duration_seconds, read_audio
from qwen_asr_jax.bench.environment import device_name, environment, fingerprint, now
from qwen_asr_jax.cli import warn
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.errors import CheckpointError, QwenASRError
from qwen_asr_jax.evaluation.manifest import Clip
from qwen_asr_jax.evaluation.results import Result, Run, append_result, canonical_json, file_sha256
from qwen_asr_jax.files import sha256_of
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.pipelines.result import Transcription
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.text.languages import resolve_language


def run_of(model: QwenASR, language: str | None, engine: EngineOptions) -> Run:
    """What the texts of this model, under these settings, depend on.

    Args:
      model: the loaded model.
      language: to be forced, by name or code; None for none.
      engine: what the model was loaded with.

    Raises:
      UsageError: the model does not know the language.
      CheckpointError: it is not known which directory the model came from.
    """
    if model.path is None:
        raise CheckpointError(f"{model.name}: its directory is not known, so its results could not be told from others'")
    policy = model.engine.policy
    settings: dict[str, Any] = {
        "backend": jax.default_backend(),
        "implementation": kernels.describe(policy),
        "tokenizer": _tokenizer_sha256(model.path),
    }
    if forced := resolve_language(language, model.engine.config.languages):
        settings["language"] = forced
    if not policy.is_preset:
        settings["policy"] = policy.dtypes()
    if engine != EngineOptions():
        settings["engine"] = dataclasses.asdict(engine)
    return Run(model.name, fingerprint(model.path), policy.name, canonical_json(settings))


def _tokenizer_sha256(model_dir: pathlib.Path) -> str:
    """Over the files that turn ids into text, by content; the fingerprint does not cover them."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    digests = [sha256_of(model_dir / name) for name in names if (model_dir / name).exists()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def _provenance() -> dict[str, Any]:
    """What the results of this process have in common: the code's commit, with a `+` where it was changed, and the machine."""
    backend = jax.default_backend()
    env = environment(backend)
    return {"commit": env["commit"] and env["commit"] + "+" * bool(env["dirty"]), "machine": device_name(backend)}


def describe(model: QwenASR) -> str:
    """The model and what compiling for it took so far, in one line."""
    policy, log = model.engine.policy, compilations()
    return (
        f"model {model.name}, policy {policy.name}, kernels {kernels.describe(policy)}, {jax.default_backend()}, weights"
        f" loaded in {model.load_s:.2f} s; compilations: {log.count - log.cached} in {log.compile_s:.2f} s, {log.cached} read"
        f" from the cache in {log.cache_s:.2f} s"
    )


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of a run.

    Attributes:
      audio: sha256 of the clips' audio, by id.
      failed: ids of the clips without a transcript.
    """

    audio: dict[str, str]
    failed: list[str]


def transcribe_clips(
    model: QwenASR,
    run: Run,
    clips: Sequence[Clip],
    output: pathlib.Path,
    *,
    batch_size: int,
    audio_workers: int | None = None,
) -> Done:
    """Transcribes the clips and appends a line for each to `output`; one that fails is said, and the others go on.

    With a batch size above 1 short clips come first, so that batches hold clips of like length and each can be written when
    its batch is done.

    Args:
      model: the loaded model.
      run: what `run_of` said.
      clips: of one manifest.
      output: file of results.
      batch_size: clips to run at once.
      audio_workers: as for `QwenASR.transcribe_iter`.

    Raises:
      OutputError: a line cannot be written.
    """
    seconds = {clip.id: clip.duration_s or duration_seconds(clip.path) or 0.0 for clip in clips}
    if batch_size > 1:
        clips = sorted(clips, key=lambda clip: seconds[clip.id])
    done, where = Done({}, []), _provenance()
    inputs = [AnyThread(functools.partial(_read, clip, done.audio)) for clip in clips]
    with _progress(sum(seconds.values())) as bar:
        results = model.transcribe_iter(
            inputs, language=run.options.get("language"), batch_size=batch_size, audio_workers=audio_workers
        )
        for i, (clip, result) in enumerate(zip(clips, results, strict=True), 1):
            append_result(output, _line(clip, result, run, done.audio.get(clip.id), where))
            problems = (
                [str(result)] if isinstance(result, QwenASRError) else [f"warning: {line}" for line in result.warnings]
            )
            if problems:
                bar.clear()
            for problem in problems:
                warn(problem)
            if isinstance(result, QwenASRError):
                done.failed.append(clip.id)
            bar.set_description_str(f"{i}/{len(clips)} clips", refresh=False)
            bar.update(seconds[clip.id])
    return done


def _progress(total_s: float) -> tqdm.tqdm[Any]:
    """A bar over seconds of audio, on a terminal."""
    return tqdm.tqdm(
        total=round(total_s, 1),
        disable=not sys.stderr.isatty(),
        bar_format="{desc} |{bar}| {n:.0f}/{total:.0f} s of audio, {elapsed} gone, {remaining} left",
    )


def _read(clip: Clip, audio: dict[str, str]) -> Waveform:
    """The clip's samples; the hash of its file goes to `audio`, also where it cannot be decoded."""
    audio[clip.id] = file_sha256(clip.path, clip.audio)
    return read_audio(clip.path, name=clip.audio)


def _line(
    clip: Clip, result: Transcription | QwenASRError, run: Run, sha256: str | None, where: Mapping[str, Any]
) -> Result:
    said: Mapping[str, Any]
    if isinstance(result, Transcription):
        t = result.timings
        share_ms = t.load_audio_ms + (t.total_ms - t.load_audio_ms) / result.batch_size
        said = {
            "hypothesis": result.text,
            "language": result.language,
            "duration_s": round(result.duration, 6),
            "finish_reason": result.finish_reason,
            "batch_size": result.batch_size,
            "transcribe_s": round(share_ms / 1e3, 6),
        }
    else:
        nothing = dict.fromkeys(("hypothesis", "duration_s", "finish_reason", "batch_size", "transcribe_s"))
        said = {**nothing, "language": "", "error": str(result)}
    return Result(
        id=clip.id,
        audio=clip.audio,
        audio_sha256=sha256,
        reference=clip.text,
        reference_language=clip.language,
        fields=clip.fields,
        model=run.model,
        fingerprint=run.fingerprint,
        policy=run.policy,
        settings=run.options,
        package=qwen_asr_jax.__version__,
        date=now(),
        **where,
        **said,
    )
