"""Transcribing a manifest's clips with the tiny model: lines as they come, failures, batches, and what names a run."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil

import pytest
import soundfile

from qwen_asr_jax.bench.environment import fingerprint
from qwen_asr_jax.errors import CheckpointError, UsageError
from qwen_asr_jax.evaluation.manifest import Clip
from qwen_asr_jax.evaluation.results import read_results
from qwen_asr_jax.evaluation.transcribe import run_of, transcribe_clips
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.pipelines.run_config import EngineOptions
from tests.audio_samples import RATE, synthetic


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def clips(tmp_path):
    """Three clips that can be read, not in the order of their lengths, and behind the first one that cannot."""
    made = []
    for name, seconds in {"a": 1.5, "empty": 0, "b": 0.3, "c": 1.0}.items():
        path = tmp_path / f"{name}.wav"
        if seconds:
            soundfile.write(path, synthetic(seconds), RATE, subtype="PCM_16")
        else:
            path.touch()
        made.append(Clip(name, f"{name}.wav", path, f"text of {name}", "German", fields={"set": "x"}))
    return made


@pytest.mark.parametrize(
    "batch_size, audio_workers, order",
    [(1, 0, ["a", "empty", "b", "c"]), (1, 2, ["a", "empty", "b", "c"]), (2, None, ["empty", "b", "c", "a"])],
)
def test_one_line_per_clip(model, clips, tmp_path, batch_size, audio_workers, order, capsys):
    output = tmp_path / "r.jsonl"
    run = run_of(model, None, EngineOptions())
    done = transcribe_clips(model, run, clips, output, batch_size=batch_size, audio_workers=audio_workers)
    assert done.failed == ["empty"]
    assert done.audio == {clip.id: hashlib.sha256(clip.path.read_bytes()).hexdigest() for clip in clips}
    results, problems = read_results(output)
    assert problems == []
    assert [r.id for r in results] == order
    for result in results:
        clip = next(clip for clip in clips if clip.id == result.id)
        assert (result.run, result.audio_sha256, result.fields) == (run, done.audio[clip.id], {"set": "x"})
        assert (result.reference, result.reference_language, result.audio) == (clip.text, "German", clip.audio)
        if result.id == "empty":
            assert (result.hypothesis, result.error) == (None, "empty.wav: is empty (0 bytes)")
            continue
        wanted = model.transcribe(clip.path)
        assert (result.hypothesis, result.language, result.duration_s) == (wanted.text, wanted.language, wanted.duration)
        assert (result.finish_reason, result.error) == (wanted.finish_reason, None)
        assert result.transcribe_s > 0
        assert result.batch_size == (1 if result.id == order[-1] else batch_size)
    assert "empty.wav: is empty (0 bytes)" in capsys.readouterr().err


def test_a_clip_has_an_equal_part_of_its_batch(model, clips, tmp_path, monkeypatch):
    found = []
    whole = QwenASR.transcribe_iter

    def kept(self, *arguments, **options):
        for result in whole(self, *arguments, **options):
            found.append(result)
            yield result

    monkeypatch.setattr(QwenASR, "transcribe_iter", kept)
    readable = [clip for clip in clips if clip.id != "empty"]
    transcribe_clips(model, run_of(model, None, EngineOptions()), readable, tmp_path / "r.jsonl", batch_size=3)
    results, _ = read_results(tmp_path / "r.jsonl")
    assert len(results) == len(found) == 3
    for result, timings in zip(results, (each.timings for each in found), strict=True):
        batch_ms = timings.total_ms - timings.load_audio_ms
        assert result.transcribe_s == pytest.approx((timings.load_audio_ms + batch_ms / 3) / 1e3, abs=1e-6)


def test_what_names_a_run(model, tiny_original):
    run = run_of(model, None, EngineOptions())
    assert (run.model, run.policy, run.fingerprint) == (tiny_original.name, "fp32", fingerprint(tiny_original))
    assert run.options.keys() == {"backend", "implementation", "tokenizer"}
    german = run_of(model, "de", EngineOptions(decode_chunk=4))
    assert german.options["language"] == "German"
    assert german.options["engine"]["decode_chunk"] == 4
    assert german.key != run.key
    with pytest.raises(UsageError, match="unknown language 'Klingon'"):
        run_of(model, "Klingon", EngineOptions())
    with pytest.raises(CheckpointError, match="its directory is not known"):
        run_of(QwenASR(model.engine, model.tokenizer, "made", 0.0), None, EngineOptions())


def test_another_vocabulary_is_another_run(model, tiny_original, tmp_path):
    copy = shutil.copytree(tiny_original, tmp_path / tiny_original.name)
    own = run_of(model, None, EngineOptions())
    assert run_of(load_model(copy, "fp32"), None, EngineOptions()).key == own.key
    (copy / "vocab.json").write_text((copy / "vocab.json").read_text() + "\n")
    assert run_of(load_model(copy, "fp32"), None, EngineOptions()).key != own.key


def test_a_forced_language_is_what_the_model_is_asked_for(model, clips, tmp_path):
    run = run_of(model, "German", EngineOptions())
    transcribe_clips(model, run, clips[2:3], tmp_path / "r.jsonl", batch_size=1)
    ((result,), _) = read_results(tmp_path / "r.jsonl")
    wanted = model.transcribe(clips[2].path, language="German")
    assert (result.language, result.hypothesis) == ("German", wanted.text)
    assert dataclasses.asdict(result)["settings"]["language"] == "German"
