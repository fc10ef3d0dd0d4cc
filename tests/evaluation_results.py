"""Results of an evaluation for tests, made without a model."""

from __future__ import annotations

from qwen_asr_jax.evaluation.results import Result


def result(hypothesis: str | None, reference: str = "one two three", **values) -> Result:
    """A result of model "m" under bf16; a clip's id and audio are its reference unless said otherwise."""
    name = values.get("id", reference or "silence")
    return Result(
        **{
            "id": name,
            "audio": f"{name}.wav",
            "audio_sha256": "a",
            "reference": reference,
            "hypothesis": hypothesis,
            "reference_language": "German",
            "language": "German",
            "duration_s": 2.0,
            "fields": {},
            "finish_reason": "eos",
            "model": "m",
            "fingerprint": "f" * 64,
            "policy": "bf16",
            "settings": {"backend": "cpu", "implementation": "xla"},
            "batch_size": 1,
            "transcribe_s": 0.5,
            "package": "0.1.0",
            "date": "2026-01-01T00:00:00+00:00",
            "error": None if hypothesis is not None else "clip.wav: is empty (0 bytes)",
        }
        | values
    )
