"""The tables of an entry, and what changed since an earlier one: which figures, which marks, which verdicts."""

from __future__ import annotations

import dataclasses

import pytest

from qwen_asr_jax.bench import fields, plots, tables
from qwen_asr_jax.bench.baseline import compare
from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.bench.report import headline
from tests.bench_records import ENV, record
from tests.report_pages import NAME, OLD, full, lines, section, with_runs, write

EOS, CUT = ({"sha256": reason, "finish_reason": reason} for reason in ("eos", "length"))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Plots take time, and none of these tests is about them."""
    monkeypatch.setattr(plots, "draw", lambda rows: {})


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), (0.0, "0"), (1234.5, "1234"), (99.96, "100"), (9.996, "10.0"), (0.11, "0.110"), (0.00012, "0.000120")],
)
def test_three_digits(value, text):
    assert fields.digits(value) == text


def test_figures_of_a_transcription(tmp_path):
    page = write(tmp_path, full())
    (row,) = lines(section(page, "## Summary"))
    assert row["model"] == "test-model"
    assert row["clip"] == "clip.wav, 11.0 s"
    assert row["total ms"] == "1000 (990-1010)"
    assert (row["encode"], row["prefill"], row["decode"], row["TTFT ms"]) == ("500", "200", "250", "720")
    assert (row["tokens"], row["ms/token"], row["RTF"], row["RTFx"]) == ("25", "10.0", "0.0909", "11.0")
    assert (row["of floor"], row["CPU/wall"]) == ("62 %", "1.90")
    (row,) = lines(section(page, "## Stage breakdown"))
    assert [row[name] for name in ("mel", "encode", "prefill", "decode", "other")] == [
        "10.0 (1 %)",
        "500 (50 %)",
        "200 (20 %)",
        "250 (25 %)",
        "40.0 (4 %)",
    ]


def test_rows_differ_in_what_they_show():
    rows = fields.make_rows([full(env=OLD | {"commit": ENV["commit"]}), full(), full(threads=4)])
    assert [(row.threads, row.repeat) for row in rows] == [("2", "#1"), ("2", "#2"), ("4", "")]
    assert fields.measured_at(rows[0].record) < fields.measured_at(rows[1].record)
    sweep = {"name": "chunks", "id": "1", "point": {"config": "a.py", "policy": "bf16", "env": "X=1"}}
    assert [row.point for row in fields.make_rows([full(sweep=sweep)])] == ["env=X=1"]
    rows = fields.make_rows([full(settings={"decode_tokens": n}) for n in (0, 30)])
    assert [(row.point, row.repeat) for row in rows] == [("decode_tokens=0", ""), ("decode_tokens=30", "")]
    page = tables.summary_table(fields.make_rows([full()]))
    assert not {"threads", "#", "env", "point", "backend", "batch"} & lines(page)[0].keys()


def test_other_workloads(tmp_path):
    runs = [{"total_ms": 300.0, "conv_stem_ms": 120.0, "transformer_ms": 176.0, "per_layer_ms": 9.77, "cpu_per_wall": 1.9}]
    contexts = [{"context_tokens": 64, "ms_per_token": 50.0, "gb_s": 30.0}, {"context_tokens": 1024, "ms_per_token": 63.0}]
    decode = [{"ms_per_token": ms, "total_ms": 32 * ms} for ms in (49.0, 50.0, 52.0)]
    load = [
        {"cold_import_s": 1.5, "warm_import_s": 1.4, "cold_import_rss_bytes": 2e8, "cold_total_s": 9.0, "warm_total_s": 3.0}
    ]
    roofline = record(workload="roofline", model=None, policy=None, audio=None)
    page = write(
        tmp_path,
        with_runs(record(workload="encoder", tokens=143.0), runs),
        with_runs(record(workload="prefill", tokens=150.0, gflop_s=151.0), runs),
        with_runs(record(workload="decode", tokens=32.0, gb_s=30.0, contexts=contexts, floor_fraction=0.9), decode),
        record(workload="batch", batch_size=8, rtfx=40.0),
        with_runs(roofline, [{"read_gb_s": 31.0, "bf16_4096_gflop_s": 340.0, "loop_step_us": 1.25}]),
        with_runs(record(workload="load"), load),
    )
    (encoder,), (prefill,), (batch,) = (lines(section(page, f"## {name}")) for name in ("Encoder", "Prefill", "Batches"))
    assert [encoder[name] for name in ("conv stem ms", "transformer ms", "ms/layer", "audio tokens")] == [
        "120",
        "176",
        "9.77",
        "143",
    ]
    assert [prefill[name] for name in ("prompt tokens", "total ms", "ms/token", "GFLOP/s")] == ["150", "300", "2.00", "151"]
    assert [batch[name] for name in ("batch", "audio s/s", "tokens/s")] == ["8", "40.0", "-"]
    (row,) = lines(section(page, "## Decode"))
    assert [row[name] for name in ("ms/token", "GB/s", "of floor")] == ["50.0 (49.0-52.0)", "30.0", "90 %"]
    growth = [(row["context tokens"], row["against the first"]) for row in lines(section(page, "## Decode against context"))]
    assert growth == [("64", "-"), ("1024", "+26 %")]
    limits = {row["figure"]: (row["median"], row["unit"]) for row in lines(section(page, "## Roofline"))}
    assert limits == {"read": ("31.0", "GB/s"), "bf16 4096": ("340", "GFLOP/s"), "loop step": ("1.25", "µs")}
    cold, warm = lines(section(page, "## Start-up"))
    columns = ("start", "import s", "total s", "RSS MB: imported")
    assert [cold[name] for name in columns] == ["cold", "1.50", "9.00", "200"]
    assert [warm[name] for name in columns] == ["warm", "1.40", "3.00", "-"]
    assert "weights s" not in cold
    assert "Cold is a start with an empty compilation cache" in section(page, "## Start-up")
    assert "nan" not in page.lower()
    assert "None" not in page


def memory(weights: dict[str, int], cache: int, peak: int) -> dict:
    return {"weights": weights, "cache_bytes": cache, "temp_bytes": {"encode": 5e7, "prefill": 8e7}, "peak_rss_bytes": peak}


def test_memory_saved_against_fp32(tmp_path):
    single = memory({"float32": 3_000_000_000}, 200_000_000, 4_000_000_000)
    half = memory({"bfloat16": 1_490_000_000, "float32": 10_000_000}, 100_000_000, 2_400_000_000)
    larger = memory(half["weights"], 900_000_000, 5_000_000_000)  # work that fp32 was not measured on
    page = write(
        tmp_path,
        full(policy="fp32", memory=single),
        full(memory=half),
        record(workload="batch", batch_size=8, memory=larger),
    )
    bf16, fp32 = lines(section(page, "## Memory"))
    assert (bf16["weights MB"], bf16["by dtype"]) == ("1500", "bfloat16 1490, float32 10.0")
    assert (bf16["cache MB"], bf16["largest temp MB"], bf16["peak RSS MB"]) == ("900", "80.0 (prefill)", "5000")
    assert (bf16["weights saved"], bf16["cache saved"], bf16["RSS saved"]) == ("50 %", "50 %", "40 %")
    assert fp32["weights saved"] == "-"
    assert "peak device MB" not in fp32


def test_memory_is_compared_over_the_same_number_of_tokens(tmp_path):
    single, half = memory({"float32": 100}, 900, 1000), memory({"bfloat16": 50}, 300, 500)
    few, many = ({"decode_tokens": n} for n in (8, 4000))
    swept = [{"id": str(n), "point": {"config": f"{n}.py"}} for n in (1, 2)]  # a config is its policy and its options
    same = [
        full(policy="fp32", memory=single, settings=few, sweep=swept[0]),
        full(memory=half, settings=few, sweep=swept[1]),
    ]
    bf16, _ = lines(section(write(tmp_path, *same), "## Memory"))
    assert bf16["cache saved"] == "67 %"
    other = dataclasses.replace(same[1], settings=many)
    assert "saved |" not in section(write(tmp_path, same[0], other, name="other"), "## Memory")


def test_what_the_token_budget_cut_is_marked(tmp_path):
    batch = record(workload="batch", batch_size=2, rtfx=40.0, tokens=60.0, transcript={"finish_reason": "eos,length"})
    page = write(tmp_path, full(tokens=30.0, transcript=CUT), full(policy="fp32", transcript=EOS), batch)
    for heading, tokens in (("## Summary", ["30 ‡", "25"]), ("## Batches", ["60 ‡"])):
        assert [row["tokens"] for row in lines(section(page, heading))] == tokens
        assert section(page, heading).count("\n\n‡ cut at the token budget: RTFx is that of so many tokens, not of") == 1
    assert "‡" not in write(tmp_path, full(transcript=EOS), name="whole")
    assert "RTFx 11.0 (clip.wav, 30 tokens ‡)" in (tmp_path / "README.md").read_text()


def test_headline_prefers_speech_that_ended_by_itself():
    jfk, silence = ({"name": name, "sha256": name, "seconds": 11.0} for name in ("clips/jfk.wav", "silence 5 s"))
    candidates = [
        (full(rtfx=4.0, audio=jfk, transcript=EOS), "RTFx 4.00 (jfk.wav, 25 tokens)"),
        (full(rtfx=9.0, audio=jfk, transcript=CUT), "RTFx 9.00 (jfk.wav, 25 tokens ‡)"),
        (full(rtfx=50.0, audio=silence, transcript=EOS), "RTFx 50.0 (silence 5 s, 25 tokens)"),
        (full(rtfx=99.0, audio=silence, transcript=CUT), "RTFx 99.0 (silence 5 s, 25 tokens ‡)"),
    ]
    for i, (_, said) in enumerate(candidates):
        assert headline([r for r, _ in candidates[i:]]) == f"test-model bf16: {said}, 10.0 ms/token"
    steps = with_runs(record(workload="decode", batch_size=8), [{"ms_per_token": 1.0}])
    assert headline([steps]) == "-"  # a step of eight rows is no token's time


def test_decoding_a_batch(tmp_path):
    contexts = [{"context_tokens": 64, "ms_per_token": 50.0, "tokens_per_s": 80.0}, {"context_tokens": 256}]
    runs = [{"ms_per_token": 50.0, "tokens_per_s": 80.0}]
    page = write(tmp_path, with_runs(record(workload="decode", batch_size=4, contexts=contexts), runs))
    assert lines(section(page, "## Decode"))[0]["tokens/s"] == "80.0"
    assert [row["tokens/s"] for row in lines(section(page, "## Decode against context"))] == ["80.0", "-"]
    assert "`ms/token` is per step, in which every row gets one token" in section(page, "## Decode")
    page = write(tmp_path, with_runs(record(workload="decode", contexts=contexts), runs), name="single")
    assert "tokens/s" not in page
    assert "per step" not in page


def test_before_and_after(tmp_path):
    gone, bare = record(workload="batch", batch_size=2), with_runs(record(workload="batch", batch_size=4), [{"tokens": 1.0}])
    write(
        tmp_path, *(dataclasses.replace(r, env=OLD) for r in (full(), full(runs=5, policy="fp32"), gone, bare)), name="first"
    )
    same, faster = full(1.001), full(0.75, runs=5, policy="fp32", transcript={"sha256": "1"})
    page = write(tmp_path, same, faster, full(policy="fp16"), bare, baseline="first")
    part = section(page, "## Before and after")
    assert "[first](../first/README.md)" in part
    assert "commit ffffffffffff -> 0123456789ab" in part
    bf16, fp32 = lines(section(page, "### full"))
    assert (bf16["before"], bf16["after"], bf16["delta"], bf16["verdict"]) == ("1000", "1001", "+0.1 %", "noise")
    assert (fp32["before"], fp32["after"], fp32["delta"]) == ("1000", "750", "-25.0 %")
    assert (fp32["after/before"], fp32["verdict"], fp32["encode"], fp32["text"]) == ("0.750", "faster", "-25.0 %", "-")
    assert "- Only in the baseline: 1 (batch 1)." in part
    assert "- Without a counterpart in the baseline: 1 (full 1)." in part
    assert "- Measured in both, but with no figure in common: 1 (batch 1)." in part
    assert f"--name={NAME} --baseline=first" in page


def test_more_per_second_is_faster_and_few_runs_prove_nothing(tmp_path):
    factors = (1, 1.01, 1.02, 1.03, 1.04)
    before, after = ([{"audio_s_per_s": value * i} for i in factors] for value in (20.0, 30.0))
    batch = record(workload="batch", batch_size=2)
    write(tmp_path, with_runs(batch, before), full(runs=4), full(runs=5, policy="fp32"), name="first")
    page = write(
        tmp_path,
        with_runs(batch, after),
        full(0.5, runs=5),
        full(2.0, runs=5, policy="fp32"),
        name="second",
        baseline=str(tmp_path / "first" / "results.jsonl"),
    )
    assert lines(section(page, "### batch"))[0]["verdict"] == "faster"
    assert [row["verdict"] for row in lines(section(page, "### full"))] == ["few runs", "slower"]
    assert lines(section(page, "### full"))[0]["encode"] == "-49.7 %"


def reading(*rates: float, **changes) -> Record:
    """A transcription beside whose runs memory was read at these rates."""
    base = full(runs=len(rates), **changes)
    return with_runs(base, [run | {"read_gb_s": rate} for run, rate in zip(base.runs, rates, strict=True)])


def test_the_read_rate_of_both_sides_is_shown(tmp_path):
    write(tmp_path, reading(30.0, 31.0, 32.0), reading(40.0, policy="fp32"), full(policy="fp16"), name="first")
    page = write(
        tmp_path, reading(33.0), reading(41.0, policy="fp32"), reading(9.0, policy="fp16"), name="a", baseline="first"
    )
    part = section(page, "## Before and after")
    assert "Memory read rate beside the runs: 31.0 to 40.0 GB/s before, 33.0 to 41.0 after." in part
    assert "It moved" not in part
    page = write(tmp_path, reading(46.5), reading(20.0, policy="fp32"), name="b", baseline="first")
    moved = "**It moved by more than 10 % for 2 of 2 (-50 % to +50 %)**, and times and floors with it."
    assert moved in section(page, "## Before and after")
    assert "Memory read rate" not in write(tmp_path, full(policy="fp16"), name="c", baseline="first")


def test_counterparts():
    renamed = {"name": "other-name", "fingerprint": "ab" * 32}
    unknown = {"name": "test-model", "fingerprint": None}
    other = {"name": "test-model", "fingerprint": "00" * 32}
    for model, pairs in ((renamed, 1), (unknown, 0), (other, 0)):
        assert len(compare([full()], [full(model=model)]).pairs) == pairs, model
    assert len(compare([full(model=unknown)], [full(model=unknown)]).pairs) == 1
    for change in (
        {"threads": 4},
        {"policy": "fp16"},
        {"device": "x"},
        {"backend": "gpu"},
        {"batch_size": 2},
        {"audio": None},
        {"settings": {"decode_tokens": 8}},
        {"settings": {"decode_tokens": 0, "engine": {"prefill_block": 64}}},
        {"settings": {"decode_tokens": 0, "policy": {"cache_dtype": "float32"}}},
    ):
        assert not compare([full()], [full(**change)]).pairs, change
    failed = compare([full()], [full(error="out of memory")])
    assert (failed.pairs, len(failed.gone)) == ([], 1)
    repeated = compare([full(2.0, env=OLD), full(1.0)], [full(0.5)])
    assert [before.ms_per_token for before, _ in repeated.pairs] == [10.0]
    assert repeated.repeats == 1
