"""The engine: golden tokens, buckets, block-wise prefill, state reuse, the end of sequences."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.buckets import Buckets, default_buckets, round_up
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.engine.engine import Engine, prompt_block, window_index
from qwen_asr_jax.errors import QwenASRError, UsageError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.text.prompt import Prompt, build_prompt
from tests.audio_samples import synthetic

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "tokens.json").read_text(encoding="utf-8"))["cases"]


def with_buckets(model: QwenASR, **changes) -> QwenASR:
    buckets = dataclasses.replace(model.engine.buckets, **changes)
    engine = Engine(model.engine.checkpoint, model.engine.policy, buckets)
    return QwenASR(engine, model.tokenizer, model.name, 0.0)


def expected_tokens(model: QwenASR, case: dict) -> list[int]:
    """The reference's tokens without an end token."""
    return [t for t in case["tokens"] if t not in model.engine.config.eos_token_ids]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['seconds']}s")
def test_golden_tokens(model, case):
    result = model.transcribe(
        synthetic(case["seconds"], case["seed"]),
        language=case["language"],
        context=case["context"],
        max_new_tokens=len(case["tokens"]),
    )
    assert list(result.tokens) == expected_tokens(model, case)


def test_golden_tokens_in_one_batch_and_the_native_layout(tiny_native):
    model = load_model(tiny_native, policy="fp32")
    cases = [c for c in GOLDEN if not c["context"] and not c["language"]]
    results = model.transcribe([synthetic(c["seconds"], c["seed"]) for c in cases], max_new_tokens=24)
    assert [list(r.tokens) for r in results] == [expected_tokens(model, c) for c in cases]


@pytest.mark.parametrize("block", [32, 64, 192])
def test_prefill_in_blocks_equals_one_pass(model, block):
    cases = [c for c in GOLDEN if not c["context"] and not c["language"]]
    small = with_buckets(model, prefill_block=block)
    results = small.transcribe([synthetic(c["seconds"], c["seed"]) for c in cases], max_new_tokens=24)
    assert [list(r.tokens) for r in results] == [expected_tokens(model, c) for c in cases]


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunk_length_does_not_matter(model, chunk):
    case = GOLDEN[3]
    result = with_buckets(model, decode_chunk=chunk).transcribe(synthetic(case["seconds"], case["seed"]), max_new_tokens=24)
    assert list(result.tokens) == expected_tokens(model, case)


def test_leftovers_in_the_cache_are_never_read(model):
    case = GOLDEN[3]
    samples = synthetic(case["seconds"], case["seed"])
    model.transcribe(samples, max_new_tokens=24)
    (key, spare), *_ = model.engine._spare.items()
    poison = jax.tree.map(lambda x: jnp.full_like(x, 1e4), (spare.k_cache, spare.v_cache))
    model.engine._spare[key] = dataclasses.replace(spare, k_cache=poison[0], v_cache=poison[1])
    assert list(model.transcribe(samples, max_new_tokens=24).tokens) == expected_tokens(model, case)


def test_a_state_with_nan_is_reported_and_not_reused(model):
    params = model.engine.checkpoint.params
    broken = params["decoder"] | {"norm": {"weight": params["decoder"]["norm"]["weight"] * jnp.nan}}
    checkpoint = dataclasses.replace(model.engine.checkpoint, params=params | {"decoder": broken})
    engine = Engine(checkpoint, model.engine.policy, model.engine.buckets)
    with pytest.raises(QwenASRError, match="overflowed under policy fp32"):
        QwenASR(engine, model.tokenizer, "broken", 0.0).transcribe(synthetic(1.0), max_new_tokens=4)
    assert not engine._spare


def test_decode_stops_when_all_rows_have_ended_and_marks_the_rest(model):
    engine = model.engine
    samples = [synthetic(1.0, seed) for seed in (1, 2, 3)]
    tokens = [engine.num_audio_tokens(len(s)) for s in samples]
    features = engine.encode(engine.log_mel(samples), tokens)
    state = engine.prefill([build_prompt(model.tokenizer, n) for n in tokens], features, [1, 3, 6])
    state, new = engine.decode(state, 32)
    assert new.tokens.shape == (4, engine.buckets.decode_chunk)
    chosen = (new.tokens != verbs.NO_TOKEN).sum(axis=1)
    assert chosen.tolist() == [0, 2, 5, 0]  # the fourth row pads the batch
    assert new.done.all()
    state, more = engine.decode(state, 32)
    assert (more.tokens == verbs.NO_TOKEN).all()


def test_second_clip_of_another_length_compiles_nothing(model):
    model.transcribe(synthetic(10.2), max_new_tokens=8)
    log = compilations()
    log.clear()
    model.transcribe(synthetic(10.4), max_new_tokens=9)
    assert log.programs == []


@pytest.mark.parametrize("steps, unit", [(8, 1), (8, 16), (2, 64), (2, 256)])
def test_buckets_are_few_and_tight(steps, unit):
    buckets = {n: round_up(n, steps, unit) for n in range(1, 5000)}
    for n, b in buckets.items():
        assert b >= n
        assert b % unit == 0
        assert b - n < max(unit, n / steps + 1)
        assert round_up(b, steps, unit) == b
    assert len({b for n, b in buckets.items() if 1024 < n <= 2048}) <= steps


def test_encoder_buckets_are_exact_for_short_clips():
    assert [Buckets().chunks(n) for n in range(1, 17)] == list(range(1, 17))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_blocks_cover_prompts_and_fit_the_cache(backend):
    buckets = default_buckets(backend)
    for n in (1, 15, 158, 1023, 1024, 1025, 5000, 15615):
        blocks = buckets.blocks(n)
        assert sum(blocks) >= n
        assert max(blocks) <= buckets.prefill_block
        assert buckets.cache(n, 100) >= max(sum(blocks), n + (buckets.cache_ahead or 100))
        assert buckets.longer_cache(buckets.cache(n, 100)) > buckets.cache(n, 100)


def test_prompt_blocks_place_the_audio():
    prompts = [Prompt((5, 6, 9, 9, 9, 7), 2, 3), Prompt((5, 9, 9, 7), 1, 2)]
    ids, index = prompt_block(prompts, np.asarray([0, 26]), 4, 2, 3)
    assert ids.tolist() == [[9, 9, 9], [9, 7, 0], [0, 0, 0], [0, 0, 0]]
    assert index.tolist() == [[0, 1, 2], [27, -1, -1], [-1, -1, -1], [-1, -1, -1]]


GPU = dataclasses.asdict(default_buckets("gpu"))
SHORT = {"cache_unit": 16, "cache_ahead": 3, "prefill_tokens": 256}
"""Caches that are full after a few tokens, and prompts of a batch that do not fit one call."""


@pytest.mark.parametrize("changes", [GPU, GPU | SHORT, SHORT | {"steps_per_check": 8}, {"steps_per_check": 32}], ids=str)
def test_shapes_do_not_change_tokens(model, changes):
    cases = [c for c in GOLDEN if not c["context"] and not c["language"]]
    other = with_buckets(model, **changes)
    results = other.transcribe([synthetic(c["seconds"], c["seed"]) for c in cases], max_new_tokens=24)
    assert [list(r.tokens) for r in results] == [expected_tokens(model, c) for c in cases]
    for case in cases:
        (result,) = other.transcribe([synthetic(case["seconds"], case["seed"])], max_new_tokens=24)
        assert list(result.tokens) == expected_tokens(model, case)


def test_a_cache_grows_when_it_is_full(model):
    engine = with_buckets(model, **SHORT).engine
    samples = synthetic(2.0, 1)
    prompt = build_prompt(model.tokenizer, engine.num_audio_tokens(len(samples)))
    features = engine.encode(engine.log_mel([samples]), [prompt.num_audio_tokens])
    state = engine.prefill([prompt], features, [40], ignore_eos=True)
    slots, tokens = [state.k_cache[0].shape[1]], 1
    while tokens < 40:
        state, chosen = engine.decode(state, 40 - tokens, ignore_eos=True)
        new = chosen.tokens[0][chosen.tokens[0] != verbs.NO_TOKEN]
        assert len(new) or chosen.full[0]
        tokens += len(new)
        slots.append(state.k_cache[0].shape[1])
    assert slots == sorted(slots)
    assert slots[-1] > slots[0]
    assert slots[-1] == state.v_cache[-1].shape[1]
    assert int(state.length[0]) == len(prompt.ids) + 39 < slots[-1]


def test_rows_that_wait_for_a_longer_cache_keep_what_is_in_theirs(model):
    """One row's cache is full long before the other's; neither may lose a token or a slot by running along."""
    other = with_buckets(model, **SHORT, steps_per_check=16)
    clips = [synthetic(1.0, 4), synthetic(3.9, 5)]
    solo = [model.transcribe(clip, max_new_tokens=60).tokens for clip in clips]
    assert [r.tokens for r in other.transcribe(clips, max_new_tokens=60)] == solo


def test_a_batch_shrinks_when_most_rows_have_ended(model, monkeypatch):
    sizes = []
    original = verbs.select

    def select(state, rows, padding):
        sizes.append((state.token.shape[0], len(rows)))
        return original(state, rows, padding)

    monkeypatch.setattr(verbs, "select", select)
    clips = [synthetic(1.0 + 0.1 * i, i) for i in range(8)]
    budgets = [2, 2, 24, 2, 2, 2, 2, 9]
    other = with_buckets(model, decode_chunk=4)
    jobs = [other.prepare(clip, max_new_tokens=n) for clip, n in zip(clips, budgets, strict=True)]
    results = other._run(jobs, None)
    assert sizes == [(8, 2)]
    for clip, n, result in zip(clips, budgets, results, strict=True):
        assert result.tokens == model.transcribe(clip, max_new_tokens=n).tokens
    assert len(results[2].tokens) > 9  # it went on when the batch was small


def test_clips_of_a_batch_are_encoded_by_window(model):
    engine, audio = model.engine, model.engine.config.audio
    clips = [synthetic(s, i) for i, s in enumerate((0.4, 17.3, 8.0, 3.05, 8.02))]
    counts = [engine.num_audio_tokens(len(clip)) for clip in clips]
    for buckets in (engine.buckets, dataclasses.replace(engine.buckets, encoder_windows=3)):
        other = Engine(engine.checkpoint, engine.policy, buckets)
        together = other.encode(other.log_mel(clips), counts)
        assert max(len(each) for each in together.arrays) <= buckets.encoder_windows
        table = np.concatenate([np.asarray(each).reshape(-1, each.shape[-1]) for each in together.arrays])
        for clip, n, first in zip(clips, counts, together.first, strict=True):
            alone = np.asarray(engine.encode(engine.log_mel([clip]), [n]).arrays[0])[0, :n]
            np.testing.assert_allclose(table[first : first + n], alone, atol=2e-5)
    windows = sum(-(-n // (audio.window_chunks * audio.chunk_tokens)) for n in counts)
    assert sum(len(each) for each in engine.encode(engine.log_mel(clips), counts).arrays) == windows == 8


def test_windows_of_clips(model):
    audio = model.engine.config.audio
    tokens, per_window = audio.chunk_tokens, audio.chunk_tokens * audio.window_chunks
    chunks, valid, first = window_index([5, per_window + 1, 2 * tokens], 12, audio)
    assert chunks.shape == (4, audio.window_chunks)
    assert chunks[0].tolist() == [0, *[-1] * 7]
    assert chunks[1].tolist() == list(range(12, 20))
    assert chunks[2].tolist() == [20, *[-1] * 7]
    assert chunks[3].tolist() == [24, 25, *[-1] * 6]
    assert valid.tolist() == [5, per_window, 1, 2 * tokens]
    assert first.tolist() == [0, per_window, 3 * per_window]
    assert window_index([5, 14], 4, audio)[0].tolist() == [[0, -1], [4, 5]]  # no wider than the longest clip


def test_spectra_of_many_clips_are_made_in_groups(model):
    engine = model.engine
    clips = [synthetic(0.5, i) for i in range(17)]
    together = engine.log_mel(clips)
    assert together.shape[0] == 32
    np.testing.assert_allclose(together[16], engine.log_mel(clips[16:])[0], atol=1e-5)


def test_buckets_refuse_steps_that_do_not_divide_a_chunk():
    with pytest.raises(UsageError, match=r"decode_chunk \(32\) must be a multiple of engine.steps_per_check \(5\)"):
        Buckets(steps_per_check=5)


@pytest.mark.parametrize("steps_per_check", [1, 4])
def test_one_compiled_loop_runs_again_with_other_inputs(model, steps_per_check):
    """A loop that is recorded on its first run must not repeat that run: where it was, it crashed or said the same."""
    engine = model.engine
    decoder, params = engine.checkpoint.decoder, engine.checkpoint.params["decoder"]
    loop = None
    for seed, budget in ((1, 20), (2, 13), (1, 20)):
        samples = synthetic(2.0, seed)
        prompt = build_prompt(model.tokenizer, engine.num_audio_tokens(len(samples)))
        features = engine.encode(engine.log_mel([samples]), [prompt.num_audio_tokens])
        state = engine.prefill([prompt], features, [budget], ignore_eos=True)
        first = int(state.token[0])
        arguments = (params, state, np.full(len(engine._eos_ids), verbs.NO_TOKEN, np.int32), np.int32(32))
        if loop is None:
            loop = verbs.decode.lower(decoder, *arguments, chunk=32, steps_per_check=steps_per_check).compile()
        state, chosen = loop(*arguments)
        found = [first, *(t for t in np.asarray(chosen.tokens)[0].tolist() if t != verbs.NO_TOKEN)]
        assert len(found) == budget
        wanted = model.transcribe(samples, max_new_tokens=budget).tokens
        assert tuple(found[: len(wanted)]) == wanted


def test_a_broken_row_does_not_reach_the_next_batch_through_a_smaller_one(model):
    """Its cache holds NaN, which no mask hides; a batch that shrinks must not take it along unmarked."""
    other = with_buckets(model, decode_chunk=4)
    engine, prefill = other.engine, other.engine.prefill
    clips = [synthetic(1.0 + 0.1 * i, i) for i in range(8)]
    jobs = [other.prepare(clip, max_new_tokens=n) for clip, n in zip(clips, [2, 2, 24, 2, 2, 2, 2, 2], strict=True)]

    def broken(prompts, features, *args, **options):
        flat = features.arrays[0].reshape(-1, features.arrays[0].shape[-1]).at[: features.first[1]].set(jnp.nan)
        arrays = (flat.reshape(features.arrays[0].shape), *features.arrays[1:])
        return prefill(prompts, dataclasses.replace(features, arrays=arrays), *args, **options)

    engine.prefill = broken
    first, *others = other._run(jobs, None)
    engine.prefill = prefill
    assert isinstance(first, QwenASRError)
    assert [r.tokens for r in others] == [
        model.transcribe(clip, max_new_tokens=job.budget).tokens for clip, job in zip(clips[1:], jobs[1:], strict=True)
    ]
    for state in engine._spare.values():
        assert all(bool(jnp.isfinite(cache).all()) for cache in state.k_cache)
    again = [other.prepare(clip, max_new_tokens=24) for clip in clips[:2]]
    assert [r.tokens for r in other._run(again, None)] == [
        model.transcribe(clip, max_new_tokens=24).tokens for clip in clips[:2]
    ]


def test_rows_of_a_smaller_state_keep_their_marks(model):
    engine = model.engine
    state = engine._state(4, 256)
    state = dataclasses.replace(state, finite=jnp.asarray([False, True, True, True]))
    assert verbs.select(state, np.asarray([0]), np.asarray([True])).finite.tolist() == [False]
    assert verbs.select(state, np.asarray([1]), np.asarray([True])).done.tolist() == [True]
