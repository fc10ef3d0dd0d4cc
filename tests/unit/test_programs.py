"""The list of programs: all that the engine then runs, and what a persistent cache then holds."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from qwen_asr_jax import runtime
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.engine.buckets import default_buckets
from qwen_asr_jax.engine.compilations import compilations
from qwen_asr_jax.engine.engine import Engine
from qwen_asr_jax.engine.programs import Workload, _Onlooker, compile_all, programs
from qwen_asr_jax.pipelines.load import with_chosen_kernels
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.policy import PRESETS
from qwen_asr_jax.text.prompt import build_prompt
from tests.audio_samples import synthetic

SHAPES = {
    "cpu": default_buckets("cpu"),
    "gpu": default_buckets("gpu"),
    "growing": dataclasses.replace(default_buckets("gpu"), cache_unit=16, cache_ahead=4, prefill_tokens=256),
}


class _Watched(Engine):
    """An engine that notes its calls under the same keys as the onlooker, and makes them."""

    def _call(self, verb, *args, **options):
        self.calls = getattr(self, "calls", set())
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x, (args, options)
        )
        self.calls.add((verb.__name__, *jax.tree.leaves(shapes)))
        return verb(*args, **options)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("seconds, rows", [(1.3, 1), (9.1, 1), (2.0, 3), (0.7, 16)])
def test_all_that_runs_was_on_the_list(model, shapes, seconds, rows):
    engine = model.engine
    prompt = len(build_prompt(model.tokenizer, 0).ids)
    onlooker = _Onlooker(engine.checkpoint, engine.policy, SHAPES[shapes], screen_head=True)
    onlooker.run_through(Workload(seconds, rows, prompt, 30))
    listed = {(name, *leaves) for name, *leaves, _ in onlooker.seen}
    watched = _Watched(engine.checkpoint, engine.policy, SHAPES[shapes], screen_head=True)
    clips = [synthetic(seconds, i) for i in range(rows)]
    QwenASR(watched, model.tokenizer, "watched", 0.0).transcribe(clips, max_new_tokens=30)
    assert {name for name, *_ in watched.calls} >= {"log_mel", "encode", "embed", "prefill", "decode"}
    assert watched.calls <= listed
    longest = prompt + engine.num_audio_tokens(round(seconds * 16000)) + 30
    for program in onlooker.seen.values():
        if program.name.startswith("grow"):
            assert int(program.name.split()[1].split("x")[1]) <= longest  # no cache that has room grows


def test_names_tell_programs_apart():
    with runtime.lowering_for("gpu"):
        policy = with_chosen_kernels(PRESETS["bf16"])
        workloads = [Workload(30, 64, 15, 200), Workload(5, 1, 15, 100)]
        found = [program.name for program in programs(MODELS["0.6b"], policy, default_buckets("gpu"), workloads)]
    assert len(found) == len(set(found))
    assert "decode 64 rows, 512 slots" in found
    assert "grow 512x512 to 1024 slots" in found
    assert "decode 16 rows, 1024 slots" in found
    assert "grow 128x1024 to 2048 slots" not in found
    assert "decode 1 rows, 256 slots" in found


@pytest.mark.parametrize("workload", [Workload(400, 1, 15, 100), Workload(30, 20, 15, 90), Workload(9, 70, 15, 90)])
def test_names_differ_for_prompts_in_blocks_and_clips_in_groups(workload):
    with runtime.lowering_for("gpu"):
        policy = with_chosen_kernels(PRESETS["bf16"])
        found = [program.name for program in programs(MODELS["0.6b"], policy, default_buckets("gpu"), [workload])]
    assert len(found) == len(set(found)), found


def test_compiling_beside_each_other(model):
    engine = model.engine
    workload = Workload(3.7, 1, 15, 20)
    found = programs(engine.config, engine.policy, engine.buckets, [workload], screen_head=False)
    done = {each.name: each for each in compile_all(found, 2)}
    assert set(done) == {program.name for program in found}
    assert all(each.seconds > 0 for each in done.values())
    encode = next(each for name, each in done.items() if name.startswith("encode"))
    assert encode.temp_bytes > 0
    log = compilations()
    before = log.cached
    jax.clear_caches()
    list(compile_all(found, 2))
    assert log.cached - before == len(found)  # read back
