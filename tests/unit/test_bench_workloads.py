"""Workloads on the tiny model: what they time is what they say, and recompiling is noticed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from qwen_asr_jax import kernels
from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench import runner, workloads
from qwen_asr_jax.bench.cost import Limits
from qwen_asr_jax.bench.inputs import bench_batches, silence
from qwen_asr_jax.bench.options import Listener, Options
from qwen_asr_jax.bench.record import MAIN_FIGURE, parse
from qwen_asr_jax.bench.runner import bench_model
from qwen_asr_jax.bench.timing import Stopwatch, measure
from qwen_asr_jax.errors import AudioError, QwenASRError, UsageError
from qwen_asr_jax.pipelines.run_config import EngineOptions
from tests.audio_samples import synthetic

LIMITS = Limits(read_gb_s=10.0, f32_gflop_s=100.0, bf16_gflop_s=200.0, date="2026-01-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def small_roofline(monkeypatch):
    """No gigabyte is read, and nothing is kept in the user's cache."""
    monkeypatch.setattr(runner.roofline, "prepare_read", lambda: lambda: 20.0)
    monkeypatch.setattr(runner.roofline, "kept", lambda: LIMITS)
    monkeypatch.setattr(kernels, "missing", lambda: None)  # however this package was installed


@pytest.fixture(scope="module")
def clip():
    return Waveform(name="clip.wav", samples=synthetic(1.5), duration_s=1.5)


@pytest.fixture
def bench(model, tiny_original):
    def run(workload, clips, **options):
        options = Options(**{"runs": 2, "warmup": 1, "decode_tokens": 5, "contexts": (), **options})
        return bench_model(model, tiny_original, workload, clips, options, Listener())

    return run


def test_full_is_what_transcribe_does(bench, model, clip):
    record = bench("full", [clip], decode_tokens=7)
    result = model.transcribe(clip, max_new_tokens=7)
    assert record.tokens == len(result.tokens) + (result.finish_reason == "eos")
    assert record.transcript["finish_reason"] == result.finish_reason
    stages = {"mel_ms", "encode_ms", "prefill_ms", "decode_ms"}
    assert stages | {"total_ms", "ttft_ms", "tokens", "cpu_per_wall", "ms_per_token", "read_gb_s"} == set(record.summary)
    for run in record.runs:
        assert sum(run[stage] for stage in stages) <= run["total_ms"]
        assert run["ttft_ms"] <= run["total_ms"]
    assert record.rtf == record.summary["total_ms"]["median"] / 1500
    assert record.rtfx * record.rtf == pytest.approx(1.0)
    assert set(record.floor) == {"total_ms", "encode_ms", "prefill_ms", "decode_ms"}
    assert record.floor["total_ms"]["ms"] == pytest.approx(
        sum(record.floor[name]["ms"] for name in ("encode_ms", "prefill_ms", "decode_ms"))
    )
    assert record.compile["recompiles"] == 0
    assert record.notes == ()


def test_one_token_has_no_time_per_token(bench, clip):
    record = bench("full", [clip], decode_tokens=1)
    assert record.ms_per_token is None
    assert "decode_ms" not in record.floor
    assert record.tokens == 1


def test_silence_is_given_as_it_is(bench, model):
    clip = silence(2.0)
    assert (len(clip.samples), clip.duration_s, clip.samples.any()) == (32000, 2.0, False)
    result = model.transcribe(clip, max_new_tokens=5)
    assert bench("full", [clip]).tokens == len(result.tokens) + (result.finish_reason == "eos")


def test_encoder_and_its_halves(bench, model, clip):
    record = bench("encoder", [clip])
    engine = model.engine
    assert record.tokens == engine.num_audio_tokens(len(clip.samples))
    assert {"total_ms", "conv_stem_ms", "transformer_ms", "per_layer_ms"} <= set(record.summary)
    run = record.runs[0]
    assert run["per_layer_ms"] == run["transformer_ms"] / engine.config.audio.num_layers
    mel = engine.log_mel([clip.samples])
    counts = np.array([int(record.tokens)], np.int32)
    definition, params = engine.checkpoint.audio, engine.checkpoint.params["audio_tower"]
    halves = workloads._transform(definition, params, workloads._convolve(definition, params, mel), counts)
    np.testing.assert_allclose(halves, engine.encode(mel, counts).arrays[0], rtol=1e-5, atol=1e-6)


def test_prefill(bench, model, clip):
    record = bench("prefill", [clip])
    prompt = model.prepare(clip).prompt
    assert record.tokens == len(prompt.ids)
    assert record.ms_per_token == record.summary["total_ms"]["median"] / len(prompt.ids)
    assert record.gflop_s > 0


@pytest.mark.parametrize("steps", [1, 5, 70])
def test_decode_takes_exactly_its_steps(bench, model, clip, steps, monkeypatch):
    calls = []
    decode = model.engine.decode
    monkeypatch.setattr(model.engine, "decode", lambda s, n, **k: calls.append((n, k)) or decode(s, n, **k))
    record = bench("decode", [clip], decode_tokens=steps, runs=1)
    assert record.tokens == steps
    chunk = model.engine.buckets.decode_chunk
    assert [n for n, _ in calls[len(calls) // 2 :]] == list(range(steps, 0, -chunk))
    assert all(options == {"ignore_eos": True} for _, options in calls)


def test_decode_goes_past_end_tokens(model, clip):
    engine = model.engine
    job = model.prepare(clip, max_new_tokens=9)
    features = engine.encode(engine.log_mel([clip.samples]), [job.prompt.num_audio_tokens])

    def tokens(ignore_eos):
        state = engine.prefill([job.prompt], features, [9], ignore_eos=ignore_eos)
        first = int(state.token[0])
        state, rest = engine.decode(state, 8, ignore_eos=ignore_eos)
        engine.release(state)
        return [first, *rest.tokens[0][rest.tokens[0] >= 0].tolist()]

    said = tokens(ignore_eos=True)
    assert len(said) == 9
    original = engine._eos_ids
    try:
        engine._eos_ids = jax.device_put(np.full_like(original, said[3]))
        assert tokens(ignore_eos=False) == said[: said.index(said[3]) + 1]
        assert tokens(ignore_eos=True) == said
    finally:
        engine._eos_ids = original


def test_decode_rate_is_bytes_over_time(bench, model, clip):
    record = bench("decode", [clip], decode_tokens=5)
    text, params = model.engine.config.text, model.engine.checkpoint.params
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves([params["decoder"], model.engine.screen]))
    if model.engine.screen is not None:  # the head is read in int8, and the tied table only row by row
        weights -= params["decoder"]["embed_tokens"]["weight"].nbytes
    per_token = 2 * text.num_layers * text.num_kv_heads * text.head_dim * 4
    context = len(model.prepare(clip).prompt.ids) + 3  # the middle one of five steps reads its own token as well
    by_hand = (weights + context * per_token) / record.summary["ms_per_token"]["median"] / 1e6
    assert record.gb_s == pytest.approx(by_hand)
    assert record.floor["ms_per_token"]["bound"] == "bytes"
    assert record.floor_fraction == pytest.approx(record.gb_s / 20.0)  # the rate between the runs, not the kept one


def test_contexts_up_to_the_models_positions(bench, model, clip):
    record = bench("decode", [clip], contexts=(32, 1024, 4096, 10**6), decode_tokens=4)
    assert [point["context_tokens"] for point in record.contexts] == [32, 1024]
    few, many = record.contexts
    assert few["cache_bytes"] < many["cache_bytes"]
    per_token = 2 * 3 * 2 * 16 * 4
    read = [point["gb_s"] * point["ms_per_token"] * 1e6 for point in record.contexts]
    assert read[1] - read[0] == pytest.approx((1024 - 32) * per_token)
    assert model.engine.config.text.max_positions == 4096


def test_decode_of_several_rows(bench, clip):
    record = bench("decode", [clip] * 3, decode_tokens=4, contexts=(64,))
    assert record.tokens == 12
    run = record.runs[0]
    assert run["tokens_per_s"] == pytest.approx(12 / run["total_ms"] * 1e3)
    assert run["ms_per_token"] == run["total_ms"] / 4  # of a step
    at = record.contexts[0]
    assert 2.99e3 / at["max_ms_per_token"] <= at["tokens_per_s"] <= 3.01e3 / at["min_ms_per_token"]


def test_a_batch_of_one_has_a_throughput(bench, clip):
    record = bench("batch", [clip])
    assert record.runs[0]["audio_s_per_s"] == pytest.approx(1500 / record.runs[0]["total_ms"])


def test_contexts_are_what_they_say(bench, clip):
    assert workloads.mean_context(64, 30) == 64.5
    assert workloads.mean_context(8, 30) == 15.5
    assert bench("decode", [clip], decode_tokens=30, contexts=(8,)).contexts[0]["context_tokens"] == 16


def test_no_memory_for_a_context_costs_only_that(bench, clip, monkeypatch):
    decode_at = workloads.decode_at

    def no_memory(model, context, steps, rows):
        if context == 256:
            raise MemoryError
        return decode_at(model, context, steps, rows)

    monkeypatch.setattr(workloads, "decode_at", no_memory)
    record = bench("decode", [clip], contexts=(64, 256, 1024))
    assert [point["context_tokens"] for point in record.contexts] == [64, 1024]
    assert record.notes == ("no memory for decoding at 256 tokens of context; use a smaller batch, model or policy",)


def test_no_memory_for_a_workload_is_one_line(bench, clip, monkeypatch):
    def no_memory(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(workloads, "prefill", no_memory)
    with pytest.raises(QwenASRError, match="no memory for prefill of 1 clips"):
        bench("prefill", [clip])


def test_a_profile_that_fails_is_only_noted(bench, clip, tmp_path, monkeypatch):
    def broken(run, folder):
        raise RuntimeError("no permission\nsecond line")

    monkeypatch.setattr(runner, "profile_table", broken)
    record = bench("prefill", [clip], profile_dir=tmp_path)
    assert record.notes == ("no profile: no permission",)
    assert record.runs


def test_settings_name_what_is_not_preset(model, tiny_original, clip):
    policy = dataclasses.replace(model.engine.policy, name="fp32, changed")
    options = Options(runs=1, warmup=1)
    assert options.settings(model.engine.policy, EngineOptions()) == {"runs": 1, "warmup": 1, "decode_tokens": 0}
    changed = options.settings(policy, EngineOptions(decode_chunk=8))
    assert changed["policy"]["cache_dtype"] == "float32"
    assert changed["engine"]["decode_chunk"] == 8


def test_faster_than_the_floor_is_noted(bench, clip, monkeypatch):
    monkeypatch.setattr(runner.roofline, "kept", lambda: dataclasses.replace(LIMITS, f32_gflop_s=1e-6))
    assert bench("prefill", [clip]).notes[0].startswith("faster than the floor")


def test_batch_counts_all_clips(bench, model, clip):
    other = Waveform(name="other.wav", samples=synthetic(0.8), duration_s=0.8)
    record = bench("batch", [clip, other, clip])
    texts = [model.transcribe(each, max_new_tokens=5) for each in (clip, other, clip)]
    assert record.tokens == sum(len(result.tokens) + (result.finish_reason == "eos") for result in texts)
    assert (record.batch_size, record.audio["name"], record.audio["seconds"]) == (3, "clip.wav, other.wav x3", 3.8)
    figures = record.runs[0]
    assert figures["audio_s_per_s"] == pytest.approx(3800 / figures["total_ms"])
    assert figures["tokens_per_s"] == pytest.approx(1e3 * record.tokens / figures["total_ms"])


def test_records_say_where_they_come_from(bench, model, clip):
    record = bench("full", [clip])
    assert record.model["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(model.engine.checkpoint.params))
    assert len(record.model["fingerprint"]) == len(record.audio["sha256"]) == 64
    screen = model.engine.screen
    wanted = {"float32": 4 * record.model["parameters"]}
    if screen is not None:
        wanted = {"float32": wanted["float32"] + screen.scale.nbytes + screen.error.nbytes, "int8": screen.weight.nbytes}
    assert record.memory["weights"] == wanted
    assert record.memory["peak_rss_bytes"] > record.memory["weights"]["float32"]
    assert record.memory["cache_bytes"] == 256 * 2 * 3 * 2 * 16 * 4
    assert {"encode", "decode"} <= set(record.memory["temp_bytes"])
    assert record.env["jax"] == jax.__version__
    assert parse(record.to_json()) == dataclasses.replace(record, notes=tuple(record.notes))


def test_compiling_inside_a_measured_run_is_noticed(bench, clip, monkeypatch):
    original = workloads.prefill

    def with_a_new_program(*args):
        plan = original(*args)
        run = plan.run
        plan.run = lambda: run() | {"x_ms": float(jax.jit(lambda x: x + 1)(1.0))}
        return plan

    monkeypatch.setattr(workloads, "prefill", with_a_new_program)
    record = bench("prefill", [clip])
    assert record.compile["recompiles"] >= 2
    assert record.notes[0].startswith("INVALID: compiled inside measured runs: ")


def test_transcripts_that_differ_are_noted(bench, clip, model, monkeypatch):
    transcribe = model.transcribe
    count = iter(range(100))

    def fickle(*args, **kwargs):
        return [dataclasses.replace(result, text=f"{next(count)}") for result in transcribe(*args, **kwargs)]

    monkeypatch.setattr(model, "transcribe", fickle)
    assert bench("full", [clip]).notes == ("transcripts differ between runs",)


def test_measure_separates_warm_ups():
    seen = []
    measured = measure(lambda: {"n": float(len(seen))} | {"x": seen.append(1) or 0.0}, runs=3, warmup=2)
    assert [run["n"] for run in measured.runs] == [2.0, 3.0, 4.0]
    assert measured.recompiled == ()


def test_a_stopped_stopwatch_stands_still():
    watch = Stopwatch().stop()
    assert watch.ms == watch.ms
    assert watch.cpu_per_wall >= 0


def test_every_workload_has_a_main_figure(bench, clip):
    for workload in ("full", "encoder", "prefill", "decode"):
        assert MAIN_FIGURE[workload] in bench(workload, [clip], runs=1).summary


def test_batches(tmp_path):
    assert [len(batch) for batch in bench_batches("encoder", [], 1.0, 3)] == [3]
    assert [clip.name for clip in bench_batches("batch", [], 0.5, 2)[0]] == ["silence 0.5 s"] * 2
    for workload in ("full", "load"):
        with pytest.raises(UsageError, match="one clip at a time"):
            bench_batches(workload, [], 1.0, 2)
    with pytest.raises(UsageError, match="2 clips do not fit --batch_size=1"):
        bench_batches("batch", ["a", "b"], 1.0, 1)
    with pytest.raises(AudioError):
        bench_batches("full", [str(tmp_path / "absent.wav")], 1.0, 1)
    for seconds in (0.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="silence must last"):
            silence(seconds)
