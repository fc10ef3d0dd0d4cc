"""Files of results: what is kept, what a killed process leaves, and which lines count when they are read again."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.evaluation.manifest import Clip
from qwen_asr_jax.evaluation.results import (
    append_result,
    default_output,
    mend,
    open_results,
    parse,
    read_results,
    reusable,
    select,
)
from tests.evaluation_results import result

SHA = hashlib.sha256(b"samples").hexdigest()


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"samples")
    return Clip("a", "a.wav", tmp_path / "a.wav", "one two three")


def test_a_line_holds_everything(tmp_path):
    path = tmp_path / "new folder" / "r.jsonl"
    whole = result("ein 你好 \ud800", fields={"set": "x", "n": 3})
    for each in (whole, result(None, transcribe_s=None)):
        append_result(path, each)
    assert read_results(path) == ([whole, result(None, transcribe_s=None)], [])
    assert read_results(path)[0][0].run == whole.run


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"id": 3}, "id is no string"),
        ({"fields": []}, "fields is no object"),
        ({"transcribe_s": "fast"}, "transcribe_s is no number"),
        ({"hypothesis": None}, "neither a hypothesis nor an error"),
    ],
)
def test_what_is_no_result(change, reason):
    values = json.loads(result("x").to_json())
    with pytest.raises(ValueError, match=reason):
        parse(json.dumps(values | change))
    del values["policy"]
    with pytest.raises(ValueError, match="without policy"):
        parse(json.dumps(values))
    assert parse(json.dumps(values | {"policy": "bf16", "a later field": 1})) == result("x")


def test_a_cut_off_last_line_is_removed(tmp_path):
    path = tmp_path / "r.jsonl"
    assert mend(path) is None
    whole = result("x").to_json().encode() + b"\n"
    for length in (1, 12, 40, len(whole) - 2):
        path.write_bytes(whole + whole[:length])
        results, (remark,) = open_results(path)
        assert results == [result("x")]
        assert remark.startswith(f"{path}: its last line was cut off")
        assert path.read_bytes() == whole
    path.write_bytes(whole + whole[:-1])  # only the line's end is missing
    assert open_results(path) == ([result("x")] * 2, [])
    append_result(path, result("y"))
    assert read_results(path) == ([result("x"), result("x"), result("y")], [])


def test_broken_lines_cost_no_other_and_foreign_files_are_left_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    line = result("x").to_json()
    path.write_text(f"{line}\n{line[:50]}\n\n{line}\n")
    results, problems = open_results(path)
    assert results == [result("x")] * 2
    assert [p.partition(" ")[0] for p in problems] == [f"{path}:2:"]
    for foreign in ('{"audio": "a.wav", "text": "x"}\n', "my diary"):
        path.write_text(foreign)
        with pytest.raises(UsageError, match="holds no results but something else; choose another --output"):
            open_results(path)
        assert path.read_text() == foreign


def test_names_of_files(tmp_path, monkeypatch):
    (tmp_path / "dev-clean").mkdir()
    monkeypatch.chdir(tmp_path / "dev-clean")
    for given, name in {"../my.test.jsonl": "my.test", ".": "dev-clean"}.items():
        assert str(default_output(type(tmp_path)(given))) == f"{name}.results.jsonl"


def test_what_need_not_be_transcribed_again(clip, tmp_path):
    there = result("x", id="a", audio_sha256=SHA)
    assert reusable([there], there.run, [clip]) == {"a": SHA}
    assert reusable([dataclasses.replace(there, model="renamed")], there.run, [clip]) == {"a": SHA}
    for other in (
        {"fingerprint": "0" * 64},
        {"policy": "int8"},
        {"settings": {"backend": "cpu", "implementation": "xla", "language": "German"}},
        {"reference": "one two four"},
        {"audio_sha256": "other"},
        {"hypothesis": None, "error": "clip.wav: is empty"},
        {"id": "b"},
    ):
        assert reusable([dataclasses.replace(there, **other)], there.run, [clip]) == {}
    clip.path.write_bytes(b"other samples")
    assert reusable([there], there.run, [clip]) == {}
    clip.path.unlink()
    assert reusable([there], there.run, [clip]) == {}


def test_another_manifest_with_the_same_ids_between(clip):
    there = result("x", id="a", audio_sha256=SHA)
    between = dataclasses.replace(there, reference="other", audio_sha256="b")
    assert reusable([there, between], there.run, [clip]) == {"a": SHA}
    selection = select([there, between], [clip])
    assert (len(selection.results), selection.outdated) == (1, 0)
    assert selection.results[0].hypothesis == "x"


def test_the_last_line_of_a_run_and_clip_counts():
    failed, done = result(None), result("one two")
    int8 = result("one", policy="int8")
    selection = select([failed, int8, done])
    assert {(r.policy, r.hypothesis) for r in selection.results} == {("bf16", "one two"), ("int8", "one")}
    assert selection.outdated == 0


def test_what_has_changed_since_is_left_out_and_counted(clip):
    old = result("old", id="a", audio_sha256="old")
    new = result("new", id="a", audio_sha256=SHA, policy="int8")
    assert [(s.results, s.outdated) for s in [select([old, new])]] == [([new], 1)]
    assert [r.hypothesis for r in select([new, old], [clip], {"a": SHA}).results] == ["new"]
    changed = dataclasses.replace(clip, text="four five")
    assert (select([old, new], [changed]).results, select([old, new], [changed]).outdated) == ([], 2)


def test_the_manifest_has_the_last_word_on_languages_and_fields(clip):
    changed = dataclasses.replace(clip, language="Dutch", fields={"set": "y"})
    (chosen,) = select([result("x", id="a"), result("x", id="not there")], [changed]).results
    assert (chosen.reference_language, chosen.fields) == ("Dutch", {"set": "y"})
