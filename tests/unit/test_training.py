"""Training: batches, the objective, resuming, and that what is trained is what the engine then runs."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.text.tokenizer import load_tokenizer
from training import batches, corpus, loss, model, train, watch
from training.batches import IGNORED, LETTERS, draw_batch, make_batch, max_targets, seconds_of_step
from training.clips import Clip, ClipSource
from training.corpus import make_corpus
from training.lexicon import LANGUAGES

RATE = 16_000
TOTAL = 1000
SMALL = dataclasses.replace(
    model.CONFIG,
    audio=dataclasses.replace(
        model.CONFIG.audio, conv_channels=8, embed_dim=32, num_layers=1, num_heads=2, mlp_dim=64, output_dim=32
    ),
    text=dataclasses.replace(
        model.CONFIG.text, embed_dim=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16
    ),
)


@pytest.fixture(autouse=True)
def no_espeak(monkeypatch):
    """Every word is a tone of its own."""

    def tones(text, voice):
        del voice
        words = text.replace(",", "").replace(".", "").lower().split()
        pieces = [np.sin(np.arange(1000 * len(word)) * (0.1 + sum(map(ord, word)) % 97 / 50)) for word in words]
        return np.concatenate(pieces).astype(np.float32)

    monkeypatch.setattr(corpus, "speak", tones)
    monkeypatch.setattr(corpus, "require_espeak", lambda: "none")


@pytest.fixture
def small(monkeypatch):
    """A geometry and batches that compile and run in no time."""
    monkeypatch.setattr(model, "CONFIG", SMALL)
    monkeypatch.setattr(train, "CONFIG", SMALL)
    monkeypatch.setattr(batches, "SHAPES", {2: 6, 4: 3, 8: 2, 16: 1, 30: 1})
    monkeypatch.setattr(watch, "_SENTENCES", 60)
    monkeypatch.setattr(watch, "_CLIPS", {"clean": 2, "noisy": 2, "long": 1, "none": 2})


@pytest.fixture
def source(tmp_path):
    return ClipSource(make_corpus(tmp_path / "corpus", 300, seed=1))


@pytest.fixture
def tokenizer(source, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    return model.make_tokenizer(tmp_path / "tokenizer", [u.sentence.text for u in source.corpus.utterances])


def test_the_vocabulary_writes_everything_that_is_said(tokenizer):
    assert tokenizer.size <= model.CONFIG.text.vocab_size
    for lexicon in LANGUAGES:
        for word in lexicon.words():
            text = f"language {lexicon.name}<asr_text>{word.capitalize()} {word}."
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert max(tokenizer.encode(f" {word}.")) < model.VOCABULARY_SIZE
    assert len(tokenizer.encode("language English<asr_text>")) == 3


def test_the_curriculum_goes_from_short_to_long():
    drawn = [seconds_of_step(0, step, TOTAL) for step in range(TOTAL)]
    assert set(drawn[:50]) == {2, 4}
    assert 30 not in drawn[:300]
    assert set(drawn[300:]) == set(batches.SHAPES)
    assert drawn == [seconds_of_step(0, step, TOTAL) for step in range(TOTAL)]


@pytest.mark.parametrize("step", [0, 100, 400, 900])
def test_a_batch_is_the_prompt_the_audio_and_the_answer(source, tokenizer, step):
    batch = draw_batch(source, tokenizer, model.CONFIG, 0, step, TOTAL)
    seconds = seconds_of_step(0, step, TOTAL)
    assert batch.ids.shape[0] == batches.SHAPES[seconds]
    assert batch.targets.shape[1] == max_targets(seconds)
    for row in range(batch.ids.shape[0]):
        answer = batch.targets[row][batch.targets[row] != IGNORED]
        start = batch.answer_start[row]
        np.testing.assert_array_equal(batch.ids[row, start + 1 : start + len(answer)], answer[:-1])
        assert answer[-1] == tokenizer.special.im_end
        at_audio = batch.ids[row] == tokenizer.special.audio_pad
        assert at_audio.sum() == batch.num_audio_tokens[row]
        np.testing.assert_array_equal(batch.audio_index[row][at_audio], np.arange(at_audio.sum()))
        assert (batch.audio_index[row][~at_audio] == -1).all()
        text = tokenizer.decode([i for i in batch.transcript[row] if i != IGNORED])
        spelled = "".join(LETTERS[i] for i in batch.letters[row] if i != IGNORED)
        assert tokenizer.decode(answer).split("<asr_text>")[1] == text
        assert spelled == text.lower().replace(".", "")
    again = draw_batch(source, tokenizer, model.CONFIG, 0, step, TOTAL)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(again), strict=True))


def test_answers_that_do_not_fit_are_refused(tokenizer):
    clip = Clip(np.zeros(RATE, np.float32), "English", "seven " * 40, ())
    with pytest.raises(ValueError, match="tokens in 2 s"):
        make_batch([clip], [""], tokenizer, model.CONFIG, 2)


def test_a_context_without_room_is_left_out(tokenizer):
    clip = Clip(np.ones(2 * RATE, np.float32), "English", "Seven.", ())
    long = make_batch([clip], ["Zulu " * 60], tokenizer, model.CONFIG, 2)
    none = make_batch([clip], [""], tokenizer, model.CONFIG, 2)
    some = make_batch([clip], ["Zulu."], tokenizer, model.CONFIG, 2)
    np.testing.assert_array_equal(long.ids, none.ids)
    assert some.answer_start[0] > none.answer_start[0]


def parameters_and_loss(batch, params=None, key=0):
    definitions, fresh = loss.new_model(SMALL, 0)
    params = fresh if params is None else params
    total, metrics = jax.jit(loss.loss, static_argnums=(1, 2))(params, definitions, SMALL, batch, jax.random.key(key))
    return definitions, params, float(total), {name: float(value) for name, value in metrics.items()}


def test_padding_changes_no_loss(source, tokenizer):
    clips = [source.speech(2.0, batches.augment.CLEAN, np.random.default_rng(i)) for i in range(2)]
    short = make_batch(clips, ["", ""], tokenizer, SMALL, 2)
    longer = make_batch(clips, ["", ""], tokenizer, SMALL, 4)
    assert longer.ids.shape[1] > short.ids.shape[1]
    *_, total, metrics = parameters_and_loss(short)
    *_, padded_total, padded_metrics = parameters_and_loss(longer)
    assert padded_total == pytest.approx(total, rel=1e-4)
    assert padded_metrics == pytest.approx(metrics, rel=1e-4)


def test_every_parameter_is_trained(source, tokenizer):
    batch = make_batch([source.speech(2.0, batches.augment.CLEAN, np.random.default_rng(0))], [""], tokenizer, SMALL, 2)
    definitions, params = loss.new_model(SMALL, 0)
    gradient = jax.jit(jax.grad(loss.loss, has_aux=True), static_argnums=(1, 2))
    gradients, _ = gradient(params, definitions, SMALL, batch, jax.random.key(0))
    silent = [path for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if not np.any(leaf)]
    # A bias of keys shifts all scores of a query alike, which softmax does not see.
    assert {jax.tree_util.keystr(path[-3:]) for path in silent} <= {"['self_attn']['k_proj']['bias']"}


def test_the_engine_chooses_what_the_training_predicts(source, tokenizer, small, tmp_path):
    """Forced logits of the training's forward pass against greedy decoding of the exported checkpoint."""
    _, params = loss.new_model(SMALL, 3)
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype("float32"), params)
    model.export(tmp_path / "model", params, tmp_path / "tokenizer")
    engine = load_model(tmp_path / "model", "fp32")
    samples = source.speech(2.0, batches.augment.CLEAN, np.random.default_rng(0)).samples
    heard = engine.transcribe(samples, max_new_tokens=8)
    # The batch that would have taught exactly this answer.
    clip = Clip(samples, "English", "Seven.", ())
    batch = make_batch([clip], [""], tokenizer, SMALL, 4)
    answer = np.array(heard.tokens)
    assert len(set(heard.tokens)) > 1  # else any position would do
    start = batch.answer_start[0]
    batch.ids[0, start + 1 : start + len(answer)] = answer[:-1]
    batch.targets[0] = IGNORED
    batch.targets[0, : len(answer)] = answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_BAND_WIDTH", 0)
        *_, metrics = parameters_and_loss(batch, params)
    assert float(metrics["accuracy"]) == 1.0


def settings(**changes):
    return train.Settings(**{"steps": 6, "seed": 0, "corpus_size": 200, "learning_rate": 1e-3} | changes)


def run(output, **changes):
    return train.train(output, settings(**changes), save_every=2, watch_every=3)


@pytest.mark.usefixtures("small")
def test_training_resumed_is_training_uninterrupted(tmp_path, monkeypatch):
    kinds = ("clean", "noisy", "long", "spoken_silence", "wrong_language")
    monkeypatch.setattr(watch.Watch, "look", lambda self, model_dir: dict.fromkeys(kinds, 50.0))
    whole = run(tmp_path / "whole")
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "held_out" in line] == [3, 6]
    assert (tmp_path / "whole/training.png").stat().st_size > 5000

    class Interrupted(Exception):
        pass

    drawn = train.draw_batch

    def interrupted(*arguments):
        if arguments[4] == 5:
            raise Interrupted
        return drawn(*arguments)

    monkeypatch.setattr(train, "draw_batch", interrupted)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts")
    monkeypatch.setattr(train, "draw_batch", drawn)
    parts = run(tmp_path / "parts")
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert steps == [line["step"] for line in log]
    with pytest.raises(UsageError, match="other settings"):
        run(tmp_path / "parts", learning_rate=2e-3)


@pytest.mark.usefixtures("small")
def test_what_is_exported_is_an_ordinary_checkpoint(tmp_path):
    model_dir = run(tmp_path / "run", steps=2)
    watched = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["held_out"]
    assert set(watched) == {"clean", "noisy", "long", "spoken_silence", "wrong_language"}
    assert all(np.isfinite(value) for value in watched.values())
    names = {path.name for path in model_dir.iterdir()}
    assert names >= {"config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors"}
    assert names >= {"vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json"}
    loaded = load_model(model_dir)
    assert loaded.engine.config.layout == "original"
    assert loaded.engine.config.languages == ("English", "German")
    assert load_tokenizer(model_dir).size == loaded.tokenizer.size
