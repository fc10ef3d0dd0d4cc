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
from qwen_asr_jax.engine.engine import Engine, prompt_block
from qwen_asr_jax.errors import QwenASRError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.text.prompt import Prompt
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
    from qwen_asr_jax.text.prompt import build_prompt

    state = engine.prefill([build_prompt(model.tokenizer, n) for n in tokens], features, [1, 3, 6])
    state, new = engine.decode(state, 32)
    assert new.shape == (4, engine.buckets.decode_chunk)
    chosen = (new != verbs.NO_TOKEN).sum(axis=1)
    assert chosen.tolist() == [0, 2, 5, 0]  # the fourth row pads the batch
    assert np.asarray(state.done).all()
    state, more = engine.decode(state, 32)
    assert (more == verbs.NO_TOKEN).all()


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
        assert buckets.cache(n, 100) >= max(sum(blocks), n + 100)


def test_prompt_blocks_place_the_audio():
    prompts = [Prompt((5, 6, 9, 9, 9, 7), 2, 3), Prompt((5, 9, 9, 7), 1, 2)]
    ids, index = prompt_block(prompts, 4, 2, 3)
    assert ids.tolist() == [[9, 9, 9], [9, 7, 0], [0, 0, 0], [0, 0, 0]]
    assert index.tolist() == [[0, 1, 2], [1, -1, -1], [-1, -1, -1], [-1, -1, -1]]
