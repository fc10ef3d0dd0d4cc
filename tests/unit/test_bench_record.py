"""Records: what is written can be read, what cannot be read is named, and nothing else is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import pytest

from qwen_asr_jax.bench.record import SCHEMA, Record, append_records, parse, read_records
from qwen_asr_jax.bench.summary import STATISTICS, summarize
from qwen_asr_jax.errors import OutputError, UsageError
from qwen_asr_jax.json_lines import check_appendable
from tests.bench_records import record


def test_round_trip():
    assert parse(record().to_json()) == record()
    values = json.loads(record().to_json())
    assert next(iter(values)) == "schema"
    assert values["schema"] == SCHEMA
    assert set(values) == {field.name for field in dataclasses.fields(Record)}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"schema": 99}, "schema 99"),
        ({"schema": None}, "schema None"),
        ({"workload": "sing"}, "unknown workload 'sing'"),
        ({"colour": "red"}, "unknown field colour"),
        ({"runs": {}}, "runs is not a list"),
        ({"runs": [1.0]}, "runs is not a list"),
        ({"summary": {"total_ms": {"min": 1.0}}}, "summary of total_ms"),
        ({"memory": []}, "memory is not an object"),
        ({"summary": None}, "summary is not an object"),
        ({"summary": {"x": dict.fromkeys(STATISTICS, "1")}}, "summary of x holds what is no number"),
        ({"model": "m"}, "model is not an object"),
        ({"contexts": [1]}, "contexts is not a list of objects"),
        ({"notes": None}, "notes is not a list of strings"),
        ({"notes": [1]}, "notes is not a list of strings"),
        ({"rtf": float("nan")}, "a number in it is none, or infinite"),
    ],
)
def test_wrong_records_are_named(change, reason):
    with pytest.raises(ValueError, match=reason):
        parse(json.dumps(json.loads(record().to_json()) | change))


def test_what_may_be_absent():
    values = json.loads(record().to_json()) | {"model": None, "audio": None, "sweep": None}
    assert parse(json.dumps(values)).model is None


def test_a_number_too_large_for_a_float():
    with pytest.raises(ValueError, match="infinite"):
        parse(record(rtf=1.5).to_json().replace("1.5", "1e999"))


def test_missing_fields_are_named():
    values = json.loads(record().to_json())
    del values["env"], values["device"]
    with pytest.raises(ValueError, match="without device, env"):
        parse(json.dumps(values))


@pytest.mark.parametrize("line, reason", [("{", "not JSON"), ("[]", "not a JSON object"), ("3", "not a JSON object")])
def test_lines_that_are_no_objects(line, reason):
    with pytest.raises(ValueError, match=reason):
        parse(line)


def test_not_a_number_cannot_be_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        record(rtf=float("nan")).to_json()


def test_corrupt_lines_cost_nothing_else(tmp_path):
    path = tmp_path / "runs.jsonl"
    good = [record(threads=n) for n in (1, 2, 3)]
    lines = [good[0].to_json(), '{"schema": 1, "workl', "", good[1].to_json(), "\udcff", good[2].to_json()]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    records, problems = read_records([path])
    assert records == good
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}:2", f"{path}:5"]
    assert "skipped, not JSON" in problems[0]


def test_appending_behind_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    append_records(path, [record(threads=1)])
    with open(path, "a") as f:
        f.write(record(threads=2).to_json()[:100])
    append_records(path, [record(threads=3), record(threads=4)])
    records, problems = read_records([path])
    assert [r.threads for r in records] == [1, 3, 4]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}:2: ")


def test_checking_leaves_a_file_as_it_is(tmp_path):
    path = tmp_path / "runs.jsonl"
    check_appendable(path)
    assert path.read_bytes() == b""
    path.write_bytes(b"cut off")
    check_appendable(path)
    assert path.read_bytes() == b"cut off"


def test_unwritable_and_unreadable_files(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        check_appendable(tmp_path / "file" / "runs.jsonl")
    with pytest.raises(OutputError, match="cannot be written"):
        append_records(tmp_path, [record()])
    with pytest.raises(UsageError, match="cannot be read"):
        read_records([pathlib.Path(os.fspath(tmp_path / "absent.jsonl"))])


def test_provenance_gaps():
    assert record().provenance_gaps() == ()
    env = dict(record().env)
    assert record(env=env | {"dirty": True}).provenance_gaps() == ("uncommitted changes",)
    assert record(env=env | {"commit": None}).provenance_gaps() == ("commit",)
    assert record(model={"name": "x"}).provenance_gaps() == ("fingerprint",)
    assert record(workload="roofline", model=None).provenance_gaps() == ()
    assert record(env={}).provenance_gaps() == ("date", "commit", "cpu", "jax")


def test_summary_is_checked_against_the_statistics():
    figures = summarize([1.0, 2.0])
    assert parse(record(summary={"total_ms": figures}).to_json()).summary["total_ms"]["mean"] == 1.5
