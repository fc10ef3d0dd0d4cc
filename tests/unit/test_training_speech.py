"""The training data: what is said, in which voice, and what happens to it. Only one test needs the synthesiser itself."""

from __future__ import annotations

import collections
import itertools
import json
import shutil

import numpy as np
import pytest

from qwen_asr_jax.errors import UsageError
from training import augment, corpus, synthesis
from training.augment import CLEAN, NOISY, TRAINING
from training.batches import LETTERS
from training.clips import NO_SPEECH, ClipSource
from training.corpus import make_corpus
from training.lexicon import ENGLISH, GERMAN, GROUP_WEIGHTS, LANGUAGES
from training.sentences import MAX_WORDS, draw_sentence
from training.synthesis import HELD_OUT_SPEEDS, HELD_OUT_VARIANTS, TRAINING_VARIANTS, Voice, draw_voice, speak

RATE = 16_000


def sentences(count=2000):
    return [draw_sentence(np.random.default_rng([5, i])) for i in range(count)]


@pytest.fixture
def spoken(monkeypatch, tmp_path):
    """A corpus whose speech is a tone of 0.3 s per word: no synthesiser needed."""

    def tone(text, voice):
        samples = np.sin(np.arange(round(0.3 * RATE) * len(text.split())) * (0.05 + 0.001 * voice.pitch))
        return samples.astype(np.float32)

    monkeypatch.setattr(corpus, "speak", tone)
    monkeypatch.setattr(corpus, "require_espeak", lambda: "none")
    return make_corpus(tmp_path / "corpus", 200, seed=3)


def test_groups_of_the_lexicon():
    assert sum(GROUP_WEIGHTS.values()) == pytest.approx(1.0)
    for lexicon in LANGUAGES:
        assert set(lexicon.groups) == set(GROUP_WEIGHTS)
        words = [word for group in lexicon.groups.values() for word in group]
        assert len(words) == len(set(words))
        assert len(lexicon.groups["letter"]) == 26
        assert len(lexicon.groups["word"]) >= 60
        assert {len(lexicon.groups["digit"]), len(lexicon.groups["number"])} == {10, 91}
        assert all(set(word.lower()) <= set(LETTERS) for word in lexicon.words())
    assert not {"to", "too", "for", "our", "hear"} & ENGLISH.words()  # they sound like other words
    assert "einundzwanzig" in GERMAN.words()


def test_sentences_are_written_as_the_model_writes():
    drawn = sentences()
    known = {lexicon.name: {word.lower() for word in lexicon.words()} for lexicon in LANGUAGES}
    for sentence in drawn:
        assert sentence.text[0].isupper()
        assert sentence.text.count(".") == 1
        assert sentence.text.endswith(".")
        words = sentence.text[:-1].lower().split()
        assert 1 <= len(words) <= MAX_WORDS + 2
        assert set(words) <= known[sentence.language]
        assert sentence.spoken.replace(",", "").lower() == sentence.text.lower()
    by_language = collections.Counter(sentence.language for sentence in drawn)
    assert all(0.45 < count / len(drawn) < 0.55 for count in by_language.values())
    said = {word for sentence in drawn for word in sentence.text[:-1].lower().split()}
    assert len(said) > 0.9 * sum(len(words) for words in known.values())


def test_no_english_ten_is_followed_by_a_number_that_would_join_it():
    numbers = {*ENGLISH.groups["digit"], *ENGLISH.groups["number"]}
    for sentence in sentences():
        words = sentence.text[:-1].lower().split()
        if sentence.language == "English":
            assert not any(a.endswith("ty") and b in numbers for a, b in itertools.pairwise(words)), sentence


def test_training_never_hears_the_held_out_voices_and_speeds():
    assert not set(TRAINING_VARIANTS) & set(HELD_OUT_VARIANTS)
    rng = np.random.default_rng(0)
    kept = {speed for low, high in HELD_OUT_SPEEDS for speed in range(low, high)}
    for language in ("English", "German"):
        training = [draw_voice(rng, language, held_out=False) for _ in range(500)]
        test = [draw_voice(rng, language, held_out=True) for _ in range(500)]
        assert {voice.speed for voice in test} == kept
        assert not {voice.speed for voice in training} & kept
        assert {voice.variant for voice in training} == set(TRAINING_VARIANTS)
        assert all(110 <= voice.speed <= 230 for voice in training)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_speaks():
    slow = speak("alpha bravo seven.", Voice("en-us", "m3", 110, 50, 0))
    fast = speak("alpha bravo seven.", Voice("en-us", "m3", 230, 50, 0))
    assert slow.dtype == np.float32
    assert 1.2 * len(fast) < len(slow) < 4 * RATE
    assert np.abs(slow).max() == pytest.approx(1.0)
    with pytest.raises(RuntimeError, match=r"xx\+m3"):
        speak("alpha", Voice("xx", "m3", 110, 50, 0))


def test_without_espeak_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="apt-get install espeak-ng"):
        synthesis.require_espeak()


def test_a_corpus_is_the_same_every_time_and_kept(spoken, tmp_path):
    again = make_corpus(tmp_path / "again", 200, seed=3)
    assert again.utterances == spoken.utterances
    assert (tmp_path / "again/audio.i16").read_bytes() == (tmp_path / "corpus/audio.i16").read_bytes()
    assert make_corpus(tmp_path / "corpus", 200, seed=3).utterances == spoken.utterances
    np.testing.assert_allclose(
        spoken.audio(7), corpus.speak(spoken.utterances[7].sentence.spoken, spoken.utterances[7].voice), atol=1e-4
    )
    with pytest.raises(UsageError, match="another corpus"):
        make_corpus(tmp_path / "corpus", 200, seed=4)


def test_an_interrupted_corpus_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "require_espeak", lambda: "none")

    def fail(text, voice):
        raise RuntimeError("espeak-ng failed")

    monkeypatch.setattr(corpus, "speak", fail)
    with pytest.raises(RuntimeError):
        make_corpus(tmp_path / "corpus", 5, seed=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("conditions", [TRAINING, CLEAN, NOISY], ids=["training", "clean", "noisy"])
def test_clips_hold_what_their_transcripts_say(spoken, conditions):
    source = ClipSource(spoken)
    for i in range(60):
        seconds = [2.0, 5.0, 12.0, 30.0][i % 4]
        clip = source.speech(seconds, conditions, np.random.default_rng(i))
        said = [spoken.utterances[k].sentence for k in clip.indices]
        assert clip.text == " ".join(sentence.text for sentence in said)
        assert {sentence.language for sentence in said} == {clip.language}
        assert 0 < len(clip.samples) <= seconds * RATE
        assert clip.samples.dtype == np.float32
        assert 10 ** (-31 / 20) < np.abs(clip.samples).max() <= 1.0
        same = source.speech(seconds, conditions, np.random.default_rng(i))
        assert same.text == clip.text
        np.testing.assert_array_equal(same.samples, clip.samples)


def test_one_voice_per_clip_where_that_is_asked_for(spoken):
    source = ClipSource(spoken)
    for i in range(20):
        clip = source.speech(20.0, CLEAN, np.random.default_rng(i), same_voice=True, stop_share=0.0)
        assert len({spoken.utterances[k].voice.name for k in clip.indices}) == 1
        assert len(clip.samples) > 14 * RATE


def test_a_limit_that_nothing_fits_is_an_error(spoken):
    with pytest.raises(ValueError, match=r"fits 0\.1 s"):
        ClipSource(spoken).speech(0.1, CLEAN, np.random.default_rng(0))


def test_noise_has_the_level_asked_for():
    speech = np.sin(np.arange(RATE) * 0.3).astype(np.float32)
    for kind in augment.NOISES:
        noise = augment.noise(RATE, np.random.default_rng(1), (kind,))
        assert np.sqrt(np.mean(noise**2)) == pytest.approx(1.0, rel=1e-3)
    loud = augment.Conditions(0.0, 0.0, 0.0, 1.0, 0.0, snr_db=(10.0, 10.0), level_db=(0.0, 0.0))
    noisy = augment.disturbed(speech, loud, np.random.default_rng(2))
    spectrum = np.abs(np.fft.rfft(noisy)) ** 2
    tone = spectrum[np.argmax(spectrum) - 2 : np.argmax(spectrum) + 3].sum()
    assert 10 * np.log10(tone / (spectrum.sum() - tone)) == pytest.approx(10.0, abs=1.0)


def test_a_telephone_leaves_nothing_above_4_khz():
    narrow = augment.Conditions(0.0, 0.0, 1.0, 0.0, 0.0, snr_db=(0.0, 0.0), level_db=(0.0, 0.0))
    white = augment.noise(4 * RATE, np.random.default_rng(0), ("white",))
    spectrum = np.abs(np.fft.rfft(augment.disturbed(white, narrow, np.random.default_rng(0)))) ** 2
    high = spectrum[int(len(spectrum) * 4.2 / 8) :].sum()
    assert high < 1e-4 * spectrum.sum()


def test_rooms_ring_on():
    click = np.zeros(RATE, np.float32)
    click[1000] = 1.0
    room = augment.Conditions(0.0, 1.0, 0.0, 0.0, 0.0, snr_db=(0.0, 0.0), level_db=(0.0, 0.0))
    wet = augment.disturbed(click, room, np.random.default_rng(0))
    assert np.argmax(np.abs(wet)) == 1000
    assert np.abs(wet[:999]).max() < 1e-5
    assert np.abs(wet[1050:2000]).max() > 1e-3


def test_clips_without_speech(spoken):
    source = ClipSource(spoken)
    kinds = [source.no_speech(10.0, np.random.default_rng(i)) for i in range(60)]
    assert all((clip.language, clip.text, clip.indices) == (NO_SPEECH, "", ()) for clip in kinds)
    assert all(np.isfinite(clip.samples).all() and np.abs(clip.samples).max() <= 1.0 for clip in kinds)
    assert any(not clip.samples.any() for clip in kinds)
    assert any(clip.samples.any() for clip in kinds)
    assert {len(clip.samples) > 5 * RATE for clip in kinds} == {True, False}


def test_the_index_is_readable(spoken, tmp_path):
    first = json.loads((tmp_path / "corpus/index.jsonl").read_text().splitlines()[0])
    assert first["sentence"]["text"] == spoken.utterances[0].sentence.text
    assert first["voice"]["variant"] in TRAINING_VARIANTS
