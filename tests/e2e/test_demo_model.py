"""The bundled demonstration model: real speech to text, word for word, through every way in."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from qwen_asr_jax import demo
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.policy import PRESETS
from tests.script_output import without_kernel_notice

ROOT = pathlib.Path(__file__).parents[2]
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]
CLIPS = demo.clips()
LANGUAGES = {"short": "English", "english": "English", "german": "German", "long": "English", "silence": ""}

FORMATS = {
    "wav, 8 bit": ("WAV", "PCM_U8", 16000),
    "wav, 16 bit": ("WAV", "PCM_16", 22050),
    "wav, 24 bit": ("WAV", "PCM_24", 44100),
    "wav, 32 bit": ("WAV", "PCM_32", 48000),
    "wav, float": ("WAV", "FLOAT", 16000),
    "wav, 8 kHz": ("WAV", "PCM_16", 8000),
    "flac": ("FLAC", "PCM_24", 48000),
    "ogg": ("OGG", "VORBIS", 44100),
    "mp3": ("MP3", "MPEG_LAYER_III", 44100),
}


def run(script, *arguments, stdin=b""):
    """stdout and stderr, as bytes and text, of a script that must succeed."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": CACHE}
    command = [sys.executable, f"{ROOT}/scripts/{script}.py", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, env=env, timeout=300, cwd=ROOT)
    err = done.stderr.decode()
    assert done.returncode == 0, err
    return done.stdout, without_kernel_notice(err)


@pytest.fixture(scope="module")
def model():
    return load_model(demo.MODEL_DIR)


def test_the_clips_are_what_the_documentation_says():
    seconds = {name: soundfile.info(clip.path).duration for name, clip in CLIPS.items()}
    assert set(seconds) == set(LANGUAGES)
    assert seconds["short"] < 3
    assert 9 < seconds["english"] < 13
    assert 22 < seconds["long"] < 28
    assert sum(clip.path.stat().st_size for clip in CLIPS.values()) <= 600_000
    assert sum(path.stat().st_size for path in demo.MODEL_DIR.iterdir()) <= 8_000_000


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_exact_transcripts_on_every_policy(policy, implementation):
    model = load_model(demo.MODEL_DIR, dataclasses.replace(PRESETS[policy], implementation=implementation))
    for name, clip in CLIPS.items():
        result = model.transcribe(clip.path)
        assert (result.text, result.language, result.finish_reason) == (clip.text, LANGUAGES[name], "eos"), name


@pytest.mark.parametrize("policy", PRESETS)
def test_a_batch_says_what_each_clip_says_alone(policy):
    model = load_model(demo.MODEL_DIR, policy)
    paths = [clip.path for clip in CLIPS.values()]
    alone = [model.transcribe(path).tokens for path in paths]
    assert [each.tokens for each in model.transcribe(paths, batch_size=len(paths))] == alone
    assert [each.tokens for each in model.transcribe(paths, batch_size=2)] == alone


def test_forced_languages_and_a_context_change_no_word(model):
    for name in ("english", "german"):
        clip = CLIPS[name]
        forced = model.transcribe(clip.path, language=LANGUAGES[name])
        assert (forced.text, forced.language) == (clip.text, LANGUAGES[name])
        assert model.transcribe(clip.path, context="Zulu Monday").text == clip.text


def test_streamed_text_is_the_text(model):
    pieces: list[str] = []
    result = model.transcribe(CLIPS["english"].path, on_text=pieces.append)
    assert "".join(pieces) == result.text == CLIPS["english"].text
    assert len(pieces) > 2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_rates_and_channels_give_the_same_words(model, tmp_path, name, channels):
    container, subtype, rate = FORMATS[name]
    clip = CLIPS["german"]
    samples, own_rate = soundfile.read(clip.path)
    samples = soxr.resample(samples, own_rate, rate)
    if channels == 2:
        samples = np.stack([samples, 0.5 * samples], axis=1)
    path = tmp_path / f"clip.{container.lower()}"
    soundfile.write(path, samples, rate, format=container, subtype=subtype)
    assert model.transcribe(path).text == clip.text
    assert model.transcribe(path.read_bytes()).text == clip.text


@pytest.mark.parametrize("level_db", [-20, -40])
def test_quiet_recordings_give_the_same_words(model, level_db):
    samples, rate = soundfile.read(CLIPS["english"].path)
    assert model.transcribe((samples * 10 ** (level_db / 20), rate)).text == CLIPS["english"].text


@pytest.mark.parametrize("seconds", [0.1, 1.0, 12.0, 30.0])
def test_silence_is_empty(model, seconds):
    for samples in (np.zeros(round(16000 * seconds), np.float32), np.full(round(16000 * seconds), 0.25, np.float32)):
        result = model.transcribe(samples)
        assert (result.text, result.language) == ("", "")


def test_scripts_without_a_model_use_it_and_say_so():
    out, err = run("transcribe", CLIPS["english"].path)
    assert out.decode() == CLIPS["english"].text + "\n"
    assert err == f"transcribe.py: {demo.NOTICE}\n"
    assert "hf download Qwen/Qwen3-ASR-0.6B" in err


def test_two_runs_give_the_same_bytes():
    paths = [clip.path for clip in CLIPS.values()]
    first, _ = run("transcribe", *paths, "--batch_size=3")
    assert first == run("transcribe", *paths, "--batch_size=3")[0]
    for name, clip in CLIPS.items():
        assert clip.text in first.decode(), name


def test_standard_input():
    data = CLIPS["german"].path.read_bytes()
    out, _ = run("transcribe", "-", stdin=data)
    assert out.decode() == CLIPS["german"].text + "\n"
    samples, _ = soundfile.read(CLIPS["german"].path, dtype="int16")
    out, _ = run("transcribe", "-", "--stdin_format=s16le", "--output_format=json", stdin=samples.astype("<i2").tobytes())
    found = json.loads(out)
    assert (found["text"], found["language"]) == (CLIPS["german"].text, "German")


@pytest.mark.parametrize("clip", ["english", "silence"])
def test_the_demo_shows_what_was_expected_and_heard(clip):
    out, err = run("demo", f"--clip={clip}")
    lines = dict(line.split(maxsplit=1) for line in out.decode().splitlines() if len(line.split()) > 1)
    assert lines["expected"] == lines["heard"] == CLIPS[clip].text if CLIPS[clip].text else "heard" not in lines
    assert "RTFx" in lines["took"]
    assert "hf download" in out.decode()
    assert err == ""
