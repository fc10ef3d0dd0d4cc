"""Comparing sets of records: which ratios, which words, which exit status; partly through the real script."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from qwen_asr_jax.bench import compare
from qwen_asr_jax.bench.compare import compare_sets
from qwen_asr_jax.bench.record import Record
from qwen_asr_jax.errors import UsageError
from tests.compare_script import FAILED, ROOT, USAGE, fails, record, script, write


def test_sets_are_paired_run_by_run():
    (row,), remarks, missing, measured = compare_sets([record([10.0, 20.0])], [record([11.0, 30.0])])
    assert (row.what, row.figure) == ("full tiny bf16 cpu 4 threads batch 1 fox.flac", "total_ms")
    assert (row.values_a, row.values_b) == ((10, 20), (11, 30))
    assert not row.interleaved
    assert (remarks, missing, measured) == ([], [], 1)


@pytest.mark.parametrize(
    "field, change",
    [
        ("model", {"model": {"name": "models/tiny", "fingerprint": "f2"}}),
        ("policy", {"policy": "fp32"}),
        ("backend", {"backend": "gpu"}),
        ("device", {"device": "Other CPU"}),
        ("threads", {"threads": 2}),
        ("batch_size", {"batch_size": 8}),
        ("audio", {"audio": {"name": "clips/fox.flac", "sha256": "a2", "seconds": 7.0}}),
        ("workload", {"workload": "encoder"}),
        ("policy", {"settings": {"policy": {"name": "bf16, changed", "cache_dtype": "float32"}}}),
        ("engine", {"settings": {"engine": {"decode_chunk": 0, "prefill_block": 64}}}),
        ("decode_tokens", {"settings": {"decode_tokens": 8}}),
        ("sweep point", {"sweep": {"name": "s", "id": "1", "point": {"env": {"XLA_FLAGS": "x"}}}}),
    ],
)
def test_records_match_in_all_fields_unless_one_is_left_out(field, change):
    a, b = [record([10.0])], [record([11.0], **change)]
    with pytest.raises(UsageError, match=f"differ in {field} "):
        compare_sets(a, b)
    if field in compare.ACROSS:
        (row,) = compare_sets(a, b, across=[field]).rows
        assert row.ratio.median == pytest.approx(1.1)


def test_names_count_only_where_fingerprints_are_missing():
    nameless = {"model": {"name": "tiny"}, "audio": {"name": "fox.flac"}}
    assert len(compare_sets([record([1.0], **nameless)], [record([1.0], **nameless)])[0]) == 1
    preset = {"engine": {"decode_chunk": 0}, "policy": {}}  # 0 is the platform's own value
    assert len(compare_sets([record([1.0])], [record([1.0], settings=preset)])[0]) == 1
    swept = {"sweep": {"name": "s", "id": "1", "point": {"threads": 4, "policy": "bf16"}}}  # said by its own fields
    moved = {**swept, "model": {"name": "elsewhere", "fingerprint": "f1"}, "audio": {"name": "b.wav", "sha256": "a1"}}
    assert len(compare_sets([record([1.0])], [record([1.0], **moved)])[0]) == 1


def test_runs_of_one_key_are_joined_and_what_is_over_is_said():
    a = [record([1.0, 2.0]), record([3.0], policy="fp32"), record([3.0])]
    b = [record([2.0]), record([4.0]), record([], error="out of memory"), record([1.0], threads=8)]
    (row,), remarks, *_ = compare_sets(a, b)
    assert (row.values_a, row.values_b) == ((1, 2), (2, 4))
    assert remarks == [
        "not compared, as they have no valid runs: 1 of B's records",
        f"{row.what}: A has 3 runs and B 2; the first 2 of each are paired",
        "not compared, as nothing on the other side is like them: 1 of A's records, 1 of B's",
    ]


def test_mixing_on_one_side_is_said():
    a = [record([1.0]), record([1.0], policy="fp32")]
    (row,), remarks, *_ = compare_sets(a, [record([1.0, 1.0], policy="fp16")], across=["policy"])
    assert row.what == "full tiny cpu 4 threads batch 1 fox.flac"
    assert remarks == [f"{row.what}: the runs of A are of more than one policy"]


def test_several_devices_are_told_apart():
    records = [record([1.0]), record([1.0], device="Other CPU")]
    assert [row.what.split(" 4 ")[0] for row in compare_sets(records, records)[0]] == [
        "full tiny bf16 cpu Some CPU",
        "full tiny bf16 cpu Other CPU",
    ]


def test_each_workload_has_its_figure_and_roofline_needs_a_choice():
    roofline = record([20.0], "roofline", "read_gb_s", model=None, policy=None, audio=None)
    records = [record([1.0]), record([2.0], "decode", "ms_per_token"), record([3.0], "load", "warm_total_s"), roofline]
    rows, remarks, missing, measured = compare_sets(records, records)
    assert (missing, measured) == ([], 3)
    assert [row.figure for row in rows] == ["total_ms", "ms_per_token", "warm_total_s"]
    (remark,) = remarks
    assert remark == "roofline cpu 4 threads batch 1: roofline: no main figure, choose a --metric: read_gb_s"
    rows, remarks, missing, measured = compare_sets(records, records, metric="read_gb_s")
    assert (missing, measured) == ([], 1)
    assert [row.figure for row in rows] == ["read_gb_s"]
    assert len(remarks) == 3
    with pytest.raises(UsageError, match="no main figure, choose a --metric: read_gb_s"):
        compare_sets([roofline], [roofline])


def lacking(run: dict, recompiled: int = 0) -> list[Record]:
    """A set with one measurement as it should be, one that failed, and one with the given runs."""
    odd = dataclasses.replace(record([10.0] * 6, threads=3), runs=[run] * 6, compile={"recompiles": recompiled})
    return [record([10.0] * 6), record([], policy="fp32", error="out of memory"), odd]


A = [record([10.0] * 6), record([10.0] * 6, policy="fp32"), record([10.0] * 6, threads=3), record([], threads=5, error="no")]


@pytest.mark.parametrize(
    "b, missing",
    [
        (A, []),
        (lacking({"total_ms": 10.0}), ["fp32"]),
        (lacking({"total_ms": 10.0}, recompiled=1), ["fp32", "3 threads"]),
        (lacking({"tokens": 10.0}), ["fp32", "3 threads"]),
        (lacking({"total_ms": 0}), ["fp32", "3 threads"]),
        ([*A, record([10.0] * 6, policy="fp16")], []),
    ],
)
def test_what_a_has_and_b_has_not_is_missing(b, missing):
    found = compare_sets(A, b)
    assert found.measured == 3
    assert len(found.missing) == len(missing)
    assert all(part in what for part, what in zip(missing, found.missing, strict=True))


def test_what_a_cannot_be_compared_by_itself_is_not_missing():
    other = dataclasses.replace(record([1.0], threads=3), runs=[{"tokens": 1.0}])
    found = compare_sets([record([1.0]), other], [record([1.0])], metric="total_ms")
    assert (len(found.rows), found.missing, found.measured) == (1, [], 1)


def test_the_gate_fails_where_b_lacks_something(tmp_path):
    a, b = write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", A[:1])
    out, err = script(a, b, "--fail_above=1.1", f"--output_json={tmp_path}/kept.jsonl", status=FAILED)
    assert "no difference shown" in out
    assert err.startswith("compare.py: without a valid counterpart in B: 2 of A's 3 measurements (full tiny fp32 ")
    assert err.endswith("; --allow_missing permits that\n")
    assert err.count("\n") == 1
    assert (tmp_path / "kept.jsonl").read_text().count("\n") == 1
    assert script(a, b, "--fail_above=1.1", "--allow_missing")[1] == ""
    assert script(a, b)[1] == ""
    assert script(b, a, "--fail_above=1.1")[1] == ""


def test_rows_are_kept_behind_a_line_that_was_cut_off(tmp_path):
    a = write(tmp_path / "a.jsonl", A[:1])
    (tmp_path / "kept.jsonl").write_text('{"schema": 1, "ki')
    script(a, a, f"--output_json={tmp_path}/kept.jsonl")
    cut, kept = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert cut == '{"schema": 1, "ki'
    assert json.loads(kept)["verdict"] == "no difference shown"


def test_too_few_pairs_say_nothing(tmp_path):
    a, b = (write(tmp_path / f"{ms}.jsonl", [record([ms] * 5)]) for ms in (10.0, 20.0))
    assert "too few pairs (5) to say" in script(a, b)[0]


def test_rows_say_what_they_were_asked_for():
    asked = {"decode_tokens": 8, "engine": {"prefill_block": 64}, "policy": {"name": "x", "cache_dtype": "float32"}}
    one = [record([1.0], settings=asked)]
    (row,) = compare_sets(one, one).rows
    assert row.what.endswith(" fox.flac 8 tokens prefill_block=64 cache_dtype=float32")


def test_what_cannot_be_compared_at_all():
    one = [record([1.0])]
    for a, b, options, said in (
        (one, [], {}, "B holds no record with valid runs"),
        (one, [record([], error="no")], {}, "B holds no record with valid runs"),
        (one, one, {"metric": "speed"}, "no figure 'speed' .*: total_ms"),
        (one, one, {"across": ["colour"]}, "no field 'colour'; there are policy, "),
        (one, [dataclasses.replace(one[0], runs=[{"total_ms": "x"}])], {}, "total_ms is 'x'"),
    ):
        with pytest.raises(UsageError, match=said):
            compare_sets(a, b, **options)


def test_the_script_compares_two_files_and_reports_broken_lines(tmp_path):
    a = write(tmp_path / "a.jsonl", [record([10.0] * 6)])
    b = write(tmp_path / "b.jsonl", [record([8.0] * 6, policy="fp32")])
    b.write_text('{"schema": 1\n' + b.read_text())
    out, err = script(a, b, "--across=policy", "--fail_above=1.1")
    assert "B faster by 20 %" in out
    assert out.splitlines()[-1] == (
        "The runs of A and B were not interleaved: a drift of the machine between them is in these ratios."
    )
    assert err.count("\n") == 1
    assert f"{b}:1: skipped, not JSON" in err
    out, err = script(b, a, "--across=policy", "--fail_above=1.1", status=FAILED)
    assert "B/A of total_ms is 1.250, above 1.1" in err


def test_files_that_cannot_be_compared_get_one_line(tmp_path):
    a = write(tmp_path / "a.jsonl", [record([10.0] * 5)])
    b = write(tmp_path / "b.jsonl", [record([10.0] * 5, threads=2)])
    assert "differ in threads (see --across)" in fails(USAGE, a, b)
    assert "needs 6 pairs or more, got 5" in fails(USAGE, a, a, "--fail_above=1.1")
    assert f"{tmp_path}/c.jsonl: no such file" in fails(USAGE, a, tmp_path / "c.jsonl")
    assert "a.jsonl: compare it with another file" in fails(USAGE, a, "true")
    assert "--pairs is for two commands" in fails(USAGE, a, a, "--pairs=3")


def test_jax_is_not_started():
    code = f"import runpy, sys; runpy.run_path({str(ROOT / 'scripts/compare.py')!r}); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"
