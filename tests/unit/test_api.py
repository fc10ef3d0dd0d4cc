"""The Python interface: what goes in, what comes out, and that earlier clips leave no trace in later ones."""

from __future__ import annotations

import dataclasses
import io
import os

import jax
import numpy as np
import pytest
import soundfile

import qwen_asr_jax
from qwen_asr_jax import QwenASRError, Timings, Transcription, load_model
from qwen_asr_jax.audio.ahead import Read
from qwen_asr_jax.audio.read import Waveform, read_audio
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.errors import AudioError, AudioTooLongError, BackendError, UsageError
from qwen_asr_jax.pipelines.batches import groups
from qwen_asr_jax.text.languages import LANGUAGE_CODES
from qwen_asr_jax.text.prompt import build_prompt
from tests.audio_samples import RATE, synthetic

LENGTHS = (0.3, 3, 9, 17)


@pytest.fixture(scope="module")
def clips():
    """Clips of very different lengths, shortest first."""
    return [synthetic(seconds, seed) for seed, seconds in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def solo(model, clips):
    """What each clip gives when it runs alone."""
    return [model.transcribe(clip) for clip in clips]


def wav(samples: np.ndarray) -> bytes:
    with io.BytesIO() as f:
        soundfile.write(f, samples, RATE, format="WAV", subtype="FLOAT")
        return f.getvalue()


def test_everything_public_can_be_imported():
    assert sorted(qwen_asr_jax.__all__) == ["Policy", "QwenASR", "QwenASRError", "Timings", "Transcription", "load_model"]
    for name in qwen_asr_jax.__all__:
        assert getattr(qwen_asr_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="whisper"):
        qwen_asr_jax.whisper


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "file object", "array", "array and rate", "reader", "list of one"])
def test_every_kind_of_input_gives_the_same_tokens(model, clips, solo, tmp_path, kind):
    clip = clips[0]
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(clip))
    source = {
        "str": str(path),
        "path": path,
        "bytes": wav(clip),
        "file object": io.BytesIO(wav(clip)),
        "array": clip,
        "array and rate": (clip, RATE),
        "reader": lambda: read_audio(path),
        "list of one": [path],
    }[kind]
    result = model.transcribe(source)
    if kind == "list of one":
        (result,) = result
    assert result.tokens == solo[0].tokens
    assert result.name == (str(path) if kind in {"str", "path", "reader", "list of one"} else result.name)
    assert (result.duration, result.batch_size, result.warnings) == (0.3, 1, ())


def test_a_list_gives_what_each_clip_gives_alone(model, clips, solo):
    order = [3, 0, 2, 1]
    together = model.transcribe([clips[i] for i in order])
    assert [r.tokens for r in together] == [solo[i].tokens for i in order]
    assert [r.text for r in together] == [solo[i].text for i in order]
    assert [r.finish_reason for r in together] == [solo[i].finish_reason for i in order]
    assert [r.duration for r in together] == [LENGTHS[i] for i in order]
    assert {r.batch_size for r in together} == {4}
    assert {r.finish_reason for r in solo} == {"eos", "length"}, "the clips should end in both ways"


def test_an_empty_list_gives_an_empty_list(model):
    assert model.transcribe([]) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_transcribe_iter_keeps_the_order_at_any_batch_size(model, clips, solo, batch_size):
    order = [1, 0, 2, 0, 1]
    results = model.transcribe_iter((clips[i] for i in order), batch_size=batch_size)
    assert [r.tokens for r in results] == [solo[i].tokens for i in order]


def test_threads_that_read_ahead_change_nothing(model, clips, tmp_path):
    """Nine files in batches of two: a group of eight, and one that is read while these run."""
    paths = []
    for i, at in enumerate((1, 0, 2, 0, 1, 1, 0, 2, 0)):
        paths.append(tmp_path / f"{i}.wav")
        paths[-1].write_bytes(wav(clips[at]) if i != 4 else b"no audio")

    def results(workers):
        found = list(model.transcribe_iter(paths, batch_size=2, audio_workers=workers, max_new_tokens=8))
        texts = [str(each) if isinstance(each, QwenASRError) else each.text for each in found]
        return texts, [getattr(each, "tokens", None) for each in found], [getattr(each, "batch_size", 0) for each in found]

    wanted = results(0)
    assert wanted[2] == [2, 2, 2, 2, 0, 2, 2, 1, 1]
    assert results(2) == results(None) == wanted
    del paths[4]
    assert [each.tokens for each in model.transcribe(paths, max_new_tokens=8, audio_workers=2)] == [*filter(None, wanted[1])]


@pytest.mark.parametrize("workers", [0, 3])
def test_first_results_come_while_later_inputs_are_unread(model, clips, tmp_path, workers):
    """Batches of two are sorted in groups of eight, and eight more may be read while a group runs."""
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(clips[0]))
    pulled = 0

    def inputs():
        nonlocal pulled
        for _ in range(50):
            pulled += 1
            yield path

    results = model.transcribe_iter(inputs(), batch_size=2, audio_workers=workers, max_new_tokens=1)
    for i, result in enumerate(results):
        assert isinstance(result, Transcription)
        assert pulled <= i // 8 * 8 + 8 + 8 * (workers > 0)
    assert (i, pulled) == (49, 50)


def test_a_list_with_a_bad_input_raises_before_those_sorted_with_it_are_run(model, clips, monkeypatch):
    monkeypatch.setattr(model.engine, "encode", lambda *_: pytest.fail("a batch was run"))
    with pytest.raises(AudioError, match="<8 bytes>"):
        model.transcribe([clips[0], b"no audio"], batch_size=1 + 1)


def test_long_audio_makes_groups_smaller_but_batches_whole():
    reads = [Read(Waveform(str(i), np.zeros(10, np.float32), 1.0), 0.0) for i in range(10)]
    assert [len(group) for group in groups(reads, 2, most_samples=1000)] == [8, 2]
    assert [len(group) for group in groups(reads, 2, most_samples=30)] == [4, 4, 2]
    assert [len(group) for group in groups(reads, 2, most_samples=1)] == [2] * 5
    assert [len(group) for group in groups(reads, 1, most_samples=1000)] == [1] * 10


def test_a_result_is_frozen_and_has_the_promised_fields(model, solo):
    result = solo[0]
    assert isinstance(result, Transcription)
    names = {f.name for f in dataclasses.fields(result)}
    assert names >= {"text", "language", "tokens", "finish_reason", "truncated", "timings", "duration"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.timings.mel_ms = 0
    assert isinstance(result.tokens, tuple)
    assert all(type(token) is int and 0 <= token < model.engine.config.text.vocab_size for token in result.tokens)
    assert not set(result.tokens) & set(model.engine.config.eos_token_ids)
    assert isinstance(result.timings, Timings)
    stages = dataclasses.asdict(result.timings)
    assert all(value >= 0 for value in stages.values())
    parts = [stages[f"{name}_ms"] for name in ("load_audio", "mel", "encode", "prefill", "decode")]
    assert sum(parts) <= stages["total_ms"]
    assert sum(parts[:-1]) <= stages["ttft_ms"] <= stages["total_ms"]
    assert result.rtf == pytest.approx(stages["total_ms"] / 1000 / 0.3)
    assert result.rtf * result.rtfx == pytest.approx(1)


@pytest.mark.parametrize("i", range(len(LENGTHS)))
def test_the_token_budget_is_what_ends_an_endless_text(solo, i):
    result = solo[i]
    ended = result.finish_reason == "eos"
    assert result.truncated is not ended
    budget = 64 + 16 * int(np.ceil(LENGTHS[i]))
    assert len(result.tokens) < budget if ended else len(result.tokens) == budget


@pytest.mark.parametrize("budget", [1, 2, 33])
def test_max_new_tokens_cuts_the_same_tokens_short(model, clips, solo, budget):
    result = model.transcribe(clips[1], max_new_tokens=budget)
    assert result.tokens == solo[1].tokens[:budget]
    assert (result.finish_reason, result.truncated) == ("length", True)


@pytest.mark.parametrize("language", ["German", "german", " GERMAN ", "de", "DE"])
def test_a_forced_language_may_be_named_in_any_way(model, clips, language):
    result = model.transcribe(clips[0], language)
    assert result.language == "German"
    assert result.tokens == model.transcribe(clips[0], language="German").tokens


def test_language_and_context_matter_and_blank_ones_do_not(model, clips, solo):
    assert model.transcribe(clips[0], language="French").tokens != solo[0].tokens
    assert model.transcribe(clips[0], context="names: Ada, Grace").tokens != solo[0].tokens
    assert model.transcribe(clips[0], language=" ", context="").tokens == solo[0].tokens


CALLS = {
    "one": lambda model, clips: model.transcribe(clips[0], language="Klingon"),
    "list": lambda model, clips: model.transcribe(clips, language="Klingon"),
    "iter": lambda model, clips: next(model.transcribe_iter(clips, language="Klingon")),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_language_lists_the_known_ones(model, clips, call):
    with pytest.raises(UsageError) as e:
        CALLS[call](model, clips)
    assert "'Klingon'" in str(e.value)
    assert "\n" not in str(e.value)
    for name, code in LANGUAGE_CODES.items():
        assert f"{name} ({code})" in str(e.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": -1},
        {"batch_size": 0},
        {"batch_size": 257},
        {"audio_workers": -1},
        {"audio_workers": 65},
        {"language": "Klingon"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_wrong_arguments_fail_before_any_input_is_read(model, options):
    def reader():
        pytest.fail("an input was read")

    with pytest.raises(UsageError, match="Klingon" if "language" in options else next(iter(options))):
        list(model.transcribe_iter([reader], **options))
    with pytest.raises(UsageError):
        model.transcribe([reader], **options)
    if not options.keys() & {"batch_size", "audio_workers"}:
        with pytest.raises(UsageError):
            model.transcribe(reader, **options)


def test_on_text_works_for_one_input_only(model, clips):
    with pytest.raises(UsageError, match="one input"):
        model.transcribe([clips[0]], on_text=print)


@pytest.mark.parametrize(
    "seconds, seed, options",
    [
        (1, 1, {"language": "German", "max_new_tokens": 40}),
        (2, 0, {"language": "German", "max_new_tokens": 2}),
        (2, 0, {"language": "German", "max_new_tokens": 64}),
        (1, 1, {"language": "German", "max_new_tokens": 1}),
        (1, 1, {"max_new_tokens": 40}),
    ],
    ids=["forced", "incomplete last character", "white space at the end", "one token", "no language line"],
)
def test_streamed_pieces_make_the_text(model, seconds, seed, options):
    """The tiny model writes noise; where it writes half a character, that stays U+FFFD in both."""
    clip, pieces = synthetic(seconds, seed), []
    result = model.transcribe(clip, on_text=pieces.append, **options)
    assert result.tokens == model.transcribe(clip, **options).tokens
    assert result.text
    assert all(pieces)
    assert "".join(pieces) == result.text


def test_text_streams_while_it_is_decoded(model):
    pieces = []
    model.transcribe(synthetic(1, 1), language="German", max_new_tokens=40, on_text=pieces.append)
    assert len(pieces) > 3


def test_a_list_raises_and_an_iterator_yields_the_error_in_its_place(model, clips, solo, tmp_path):
    inputs = [clips[0], tmp_path / "absent.wav", clips[1], b"no audio", clips[0]]
    with pytest.raises(AudioError, match=r"absent\.wav: no such file"):
        model.transcribe(inputs)
    for batch_size in (1, 2):
        found = list(model.transcribe_iter(inputs, batch_size=batch_size))
        assert [type(r) for r in found] == [Transcription, AudioError, Transcription, AudioError, Transcription]
        assert "absent.wav" in str(found[1])
        assert "<8 bytes>" in str(found[3])
        assert [found[i].tokens for i in (0, 2, 4)] == [solo[i].tokens for i in (0, 1, 0)]


def test_audio_that_is_too_long_says_how_much_fits(model, clips, solo):
    long = np.zeros(400 * RATE, np.float32)  # 400 s: 5200 audio tokens, the model has 4096 positions
    with pytest.raises(AudioTooLongError, match=r"400\.0 s .*4096 positions; one pass can hold (\d+) s") as e:
        model.transcribe(long, max_new_tokens=100)
    longest = int(str(e.value).split("can hold ")[1].split()[0])
    assert (4096 - 100 - 30) // 13 - 1 <= longest <= (4096 - 100 - 10) // 13
    found = list(model.transcribe_iter([long, clips[0]]))
    assert isinstance(found[0], QwenASRError)
    assert found[1].tokens == solo[0].tokens


@pytest.mark.parametrize("batch_size", [1, 2])
def test_progress_only_rises_and_ends_at_the_total(model, clips, batch_size):
    seen = []
    inputs = [clips[2], clips[0], b"no audio", clips[1]]
    results = list(model.transcribe_iter(inputs, batch_size=batch_size, on_progress=seen.append))
    assert len(results) == 4
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert seen[0] > 0
    assert seen[-1] == pytest.approx(0.3 + 3 + 9)


def test_a_clip_of_another_length_in_the_same_buckets_compiles_nothing(model):
    def shapes(clip):
        tokens = model.engine.num_audio_tokens(len(clip))
        prompt = len(build_prompt(model.tokenizer, tokens).ids)
        buckets = model.engine.buckets
        return buckets.chunks(-(-len(clip) // RATE)), buckets.blocks(prompt), buckets.cache(prompt, 40)

    first, second = synthetic(8.6, 1), synthetic(8.9, 2)
    assert shapes(first) == shapes(second)
    model.transcribe(first, max_new_tokens=40)
    log = compilations()
    before = log.count
    model.transcribe(second, max_new_tokens=40)
    model.transcribe(first, max_new_tokens=30, on_text=lambda _: None)
    assert log.programs[before:] == []


def test_earlier_clips_leave_no_trace(model, clips, solo):
    for i in (0, 0, 1, 0, 3, 0, 1):
        result = model.transcribe(clips[i])
        assert result.tokens == solo[i].tokens
    model.transcribe(clips[1:3])
    assert model.transcribe(clips[0]).tokens == solo[0].tokens


def test_one_nan_row_does_not_poison_its_batch_or_the_next(model, clips, solo, monkeypatch):
    features = model.engine.encode

    def poisoned(log_mel, num_tokens):
        found = features(log_mel, num_tokens)
        return dataclasses.replace(found, arrays=(found.arrays[0].at[0].set(np.nan), *found.arrays[1:]))

    with monkeypatch.context() as patched:
        patched.setattr(model.engine, "encode", poisoned)
        bad, good = model.transcribe_iter(clips[:2], batch_size=2)
    assert isinstance(bad, QwenASRError)
    assert "overflowed under policy fp32" in str(bad)
    assert good.tokens == solo[1].tokens
    assert [r.tokens for r in model.transcribe(clips[:2])] == [solo[0].tokens, solo[1].tokens]


@pytest.mark.usefixtures("model")  # JAX is running
def test_arguments_that_come_too_late_are_refused(tiny_original):
    threads = 2 if os.environ.get("NPROC") == "1" else 1
    with pytest.raises(BackendError, match=f"threads={threads} comes too late"):
        load_model(tiny_original, threads=threads)
    here = jax.default_backend()
    backend, reason = ("gpu", "no GPU") if here == "cpu" else ("cpu", "too late")
    with pytest.raises(BackendError, match=reason):
        load_model(tiny_original, backend=backend)
    load_model(tiny_original, backend=here)


@pytest.mark.parametrize(
    "options, names",
    [
        ({"backend": "tpu"}, ["'tpu'", "auto, cpu, gpu"]),
        ({"threads": -1}, ["threads", "-1"]),
        ({"threads": 10**6}, ["threads", "1000000"]),
        ({"policy": "fp8"}, ["'fp8'", "fp32, bf16, fp16"]),
    ],
)
def test_unknown_backends_policies_and_thread_counts_are_refused(tiny_original, options, names):
    with pytest.raises(UsageError) as e:
        load_model(tiny_original, **options)
    for name in names:
        assert name in str(e.value)
