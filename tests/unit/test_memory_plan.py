"""The memory plan: its sums against real arrays and XLA's own analysis, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from qwen_asr_jax import runtime
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.engine import memory_plan
from qwen_asr_jax.engine.buckets import default_buckets
from qwen_asr_jax.engine.memory_plan import MemoryPlan, plan_memory
from qwen_asr_jax.engine.programs import Workload, compile_all, programs
from qwen_asr_jax.errors import BackendError, QwenASRError
from qwen_asr_jax.pipelines.job import plan_of
from qwen_asr_jax.pipelines.load import load_model, open_model, with_chosen_kernels
from qwen_asr_jax.policy import PRESETS
from tests.audio_samples import synthetic

GPU = default_buckets("gpu")
CLIP = Workload(seconds=30, rows=1, prompt_tokens=15, new_tokens=544)
GB = 1e9


def on_a_gpu(preset, policy, workload=CLIP, limit=None):
    with runtime.lowering_for("gpu"):
        return plan_memory(MODELS[preset], with_chosen_kernels(PRESETS[policy]), GPU, workload, limit)


@pytest.mark.parametrize(
    "preset, policy, most",
    [
        ("0.6b", "fp32", 3.3),
        ("0.6b", "bf16", 1.8),
        ("0.6b", "fp16", 1.8),
        ("0.6b", "int8", 1.3),
        ("0.6b", "int8_all", 1.0),
        ("1.7b", "bf16", 4.5),
    ],
)
def test_a_clip_of_30_s_fits_its_target(preset, policy, most):
    plan = on_a_gpu(preset, policy)
    assert 0.5 * most * GB < plan.total <= most * GB
    assert plan.total == plan.weights + plan.cache + plan.temporaries


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("rows, slots", [(1, 512), (3, 1024)])
def test_weights_and_cache_are_those_of_the_loaded_model(tiny_original, policy, rows, slots):
    model = load_model(tiny_original, PRESETS[policy], implementation="xla")
    new_tokens = slots - 200
    plan = plan_memory(
        model.engine.config, model.engine.policy, model.engine.buckets, Workload(10, rows, 15, new_tokens), limit=None
    )
    assert plan.weights == sum(leaf.nbytes for leaf in jax.tree.leaves(model.engine.checkpoint.params))
    state = model.engine._state(model.engine.buckets.rows(rows), slots)
    assert plan.cache == sum(leaf.nbytes for leaf in jax.tree.leaves((state.k_cache, state.v_cache)))


SHALLOW = dataclasses.replace(
    MODELS["0.6b"],
    audio=dataclasses.replace(MODELS["0.6b"].audio, num_layers=1),
    text=dataclasses.replace(MODELS["0.6b"].text, num_layers=3),
)
"""Few layers: temporaries depend on their number only where prompts go through in groups, with a piece of every cache each."""


@pytest.mark.parametrize("seconds, rows", [(11, 1), (30, 1), (60, 1), (30, 4), (4, 256)])
def test_temporaries_are_about_what_xla_allocates(seconds, rows):
    """For a GPU's programs, compiled here: in float32, the one format that no backend has to convert."""
    workload = Workload(seconds, rows, 15, 90)
    with runtime.lowering_for("gpu"):
        policy = with_chosen_kernels(PRESETS["fp32"])
        found = [p for p in programs(SHALLOW, policy, GPU, [workload]) if p.name.startswith(("encode", "prefill"))]
        allocated = {done.name.split()[0]: done.temp_bytes for done in compile_all(found, 1)}
        planned = memory_plan._stages(SHALLOW, policy, GPU, workload)
    for stage, size in allocated.items():
        assert 0.7 * size < planned[stage] < 1.6 * size, stage


def test_a_plan_that_does_not_fit_is_refused_with_its_sum():
    plan = on_a_gpu("0.6b", "bf16", dataclasses.replace(CLIP, rows=128), limit=8_000_000_000)
    with pytest.raises(BackendError) as refused:
        plan.check()
    text = str(refused.value)
    assert "128 x 30 s, policy bf16: weights 1.57 + cache 7.52 + temporaries" in text
    assert "of 8.00 GB" in text
    assert "--policy=int8_all" in text
    assert "\n" not in text


def test_a_plan_that_fits_or_has_no_limit_is_not():
    on_a_gpu("0.6b", "bf16", limit=2_000_000_000).check()
    on_a_gpu("1.7b", "fp32").check()
    assert MemoryPlan(1, 1, 5, 1, "decode", None, "x").total == 3


def test_loading_refuses_before_it_reads_a_tensor(tiny_original, monkeypatch):
    figures = {"bytes_limit": 300_000, "bytes_in_use": 100_000}
    monkeypatch.setattr(runtime, "device_memory", lambda figure="bytes_in_use": figures.get(figure))
    monkeypatch.setattr("qwen_asr_jax.checkpoint.load.load_checkpoint", lambda *_: pytest.fail("it was read"))
    plans = []
    with pytest.raises(BackendError, match=r"not enough memory .* 1 x 30 s, policy bf16: weights .* of 0.000 GB"):
        load_model(tiny_original, on_plan=plans.append)
    assert plans[0].limit == 200_000


def test_growth_is_what_the_next_cache_adds():
    plan = on_a_gpu("0.6b", "bf16", CLIP)  # 405 + 544 tokens, from 512 slots on
    assert plan.growth == plan.cache
    assert "more if a text outgrows the cache" in str(plan)
    short = on_a_gpu("0.6b", "bf16", dataclasses.replace(CLIP, new_tokens=60))
    assert short.growth == 0
    assert "outgrows" not in str(short)
    assert plan_memory(MODELS["0.6b"], PRESETS["bf16"], default_buckets("cpu"), CLIP).growth == 0


def limited(monkeypatch, size):
    figures = {"bytes_limit": size, "bytes_in_use": 0}
    monkeypatch.setattr(runtime, "device_memory", lambda figure="bytes_in_use": figures.get(figure))


def test_a_batch_that_does_not_fit_is_run_in_parts(model, monkeypatch):
    clips = [synthetic(1.0 + 0.2 * i, i) for i in range(5)]
    wanted = [model.transcribe(clip, max_new_tokens=8).tokens for clip in clips]
    jobs = [model.prepare(clip, max_new_tokens=8) for clip in clips]
    sizes = []
    run_stages = model._run_stages
    monkeypatch.setattr(model, "_run_stages", lambda jobs, *rest: sizes.append(len(jobs)) or run_stages(jobs, *rest))
    limited(monkeypatch, plan_of(model.engine, jobs[:2]).total)
    assert [result.tokens for result in model._run(jobs, None)] == wanted
    assert max(sizes) <= 2
    assert sum(sizes) == 5


def test_one_clip_that_does_not_fit_is_refused_with_its_sum(model, monkeypatch):
    limited(monkeypatch, 1000)
    with pytest.raises(QwenASRError, match=r"<array>: not enough memory on the device for 1 x 1 s, policy fp32: weights 0"):
        model.transcribe(synthetic(1.0), max_new_tokens=4)


def test_a_model_is_loaded_for_a_batch_that_will_be_run_in_parts(tiny_original, monkeypatch):
    opened = open_model(tiny_original, PRESETS["fp32"])
    limited(monkeypatch, opened.plan(30, 1).total)
    plans = []
    load_model(tiny_original, "fp32", batch_size=64, on_plan=plans.append)
    assert not plans[0].fits


def test_a_larger_batch_is_planned_for(tiny_original):
    opened = open_model(tiny_original, PRESETS["bf16"])
    assert opened.plan(30, 4).cache == 4 * opened.plan(30, 1).cache
    assert opened.plan(30, 1).limit is None  # a CPU
