"""Ours against transformers in float32: several geometries, both layouts, clips from 0.3 to 35 seconds."""

from __future__ import annotations

import pytest

from qwen_asr_jax import runtime
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.run_config import EngineOptions
from tests.parity.cases import GEOMETRIES, TOKENS, checkpoints, clip, compare, load, references

MEL_BOUND = 1e-4
ENCODER_BOUND = 1e-5
LOGIT_BOUND = 2e-5
"""Of a standard deviation of the logits, in float32. In half precision the bound is what transformers itself loses there:
with sums, residuals and norms in float32 we must lose no more."""


@pytest.fixture(scope="module", params=GEOMETRIES)
def case(request, tmp_path_factory):
    """Both layouts of one geometry, and the oracle's answers for every clip."""
    root = checkpoints(GEOMETRIES[request.param], tmp_path_factory.mktemp("parity"))
    return root, references(root)


@pytest.mark.parametrize("layout", ["original", "native"])
def test_fp32_is_token_exact(case, layout):
    root, answers = case
    model = load(root, layout, "fp32")
    for name, reference in answers.items():
        row = compare(model, reference, clip(name))
        assert row.mel_error < MEL_BOUND, name
        assert row.encoder_error < ENCODER_BOUND, name
        assert row.logit_error < LOGIT_BOUND, name
        assert row.tokens_equal, name
        assert len(reference.tokens) == TOKENS or reference.tokens[-1] in model.engine.config.eos_token_ids


def test_fp32_as_a_gpu_runs_it_is_token_exact(case):
    """Fused projections, convolutions in groups, caches that grow; alone and as one batch that is encoded by window."""
    root, answers = case
    options = EngineOptions(cache_ahead=4, prefill_tokens=512)
    with runtime.lowering_for("gpu"):
        model = load_model(root / "original", "fp32", implementation="xla", options=options)
        assert model.engine.policy.fused
        for name, reference in answers.items():
            row = compare(model, reference, clip(name))
            assert row.encoder_error < ENCODER_BOUND, name
            assert row.logit_error < LOGIT_BOUND, name
            assert row.tokens_equal, name
        batch = model.transcribe([clip(name) for name in answers], max_new_tokens=TOKENS)
        ends = model.engine.config.eos_token_ids
        for result, (name, reference) in zip(batch, answers.items(), strict=True):
            assert list(result.tokens) == [t for t in reference.tokens if t not in ends][: len(result.tokens)], name


@pytest.mark.parametrize("policy", ["bf16", "fp16"])
def test_half_precision_loses_no_more_than_transformers(case, policy):
    root, answers = case
    model = load(root, "original", policy)
    for name, reference in answers.items():
        assert compare(model, reference, clip(name)).logit_error <= reference.own_errors[policy], name
