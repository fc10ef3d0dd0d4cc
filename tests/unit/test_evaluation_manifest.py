"""Manifests in their three forms, and the one line that each kind of mistake in them gets."""

from __future__ import annotations

import json
import os

import pytest

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.evaluation.manifest import check_groups, language_name, read_manifest, unknown_languages


@pytest.fixture
def folder(tmp_path):
    """A folder with empty files: a manifest's audio must be there, but is not read."""
    for name in ("a.wav", "b.wav", "ü 你.wav"):
        (tmp_path / name).touch()
    return tmp_path


def manifest(folder, *lines, name="test.jsonl"):
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def refusal(path, limit=0):
    with pytest.raises(UsageError) as caught:
        read_manifest(path, limit)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fields_of_a_line(folder):
    path = manifest(
        folder,
        {
            "audio": "a.wav",
            "text": "Hello.",
            "language": "EN",
            "id": 7,
            "duration": 1.5,
            "set": "x",
            "snr": 3,
            "tags": ["t"],
        },
        "",
        {"audio_filepath": "b.wav", "text": "", "offset": 0},
    )
    first, second = read_manifest(path)
    assert (first.id, first.audio, first.path, first.text) == ("7", "a.wav", folder / "a.wav", "Hello.")
    assert (first.language, first.duration_s, first.fields) == ("English", 1.5, {"set": "x", "snr": 3})
    assert (second.id, second.text, second.language, second.duration_s, second.fields) == ("b.wav", "", "", None, {})
    assert [clip.id for clip in read_manifest(path, limit=1)] == ["7"]
    check_groups(["snr", "language"], [first.fields, second.fields])
    with pytest.raises(UsageError, match="no clip has a field 'voice'; there are: set, snr"):
        check_groups(["voice"], [first.fields, second.fields])


def test_paths_are_relative_to_the_manifest_and_text_may_be_of_any_script(folder, monkeypatch):
    (folder / "deep").mkdir()
    path = folder / "deep" / "m.jsonl"
    line = json.dumps({"audio": "../ü 你.wav", "text": "Größe\u2028世界"}, ensure_ascii=False)
    path.write_bytes(
        b"\xef\xbb\xbf" + line.encode() + b"\r\n" + json.dumps({"audio": str(folder / "a.wav"), "text": ""}).encode()
    )
    monkeypatch.chdir("/")
    first, second = read_manifest(path)
    assert first.path.exists()
    assert first.text == "Größe\u2028世界"
    assert second.path == folder / "a.wav"


@pytest.mark.parametrize(
    "written, name",
    [
        ("de", "German"),
        ("GERMAN", "German"),
        ("zh-CN", "Chinese"),
        ("zh-HK", "Cantonese"),
        ("en_US", "English"),
        ("sv-SE", "Swedish"),
        ("", ""),
        ("klingon", "Klingon"),
    ],
)
def test_names_of_languages(written, name):
    assert language_name(written) == name


def test_languages_that_no_model_knows(folder):
    path = manifest(
        folder, *({"audio": "a.wav", "id": i, "text": "", "language": x} for i, x in enumerate(["Englsh", "de", ""]))
    )
    assert unknown_languages(read_manifest(path)) == {"Englsh": 1}


GOOD = {"audio": "a.wav", "text": "x"}


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"audio": "a.wav", ', "not JSON"),
        ("[1]", "not a JSON object"),
        ({"text": "x"}, "without 'audio'"),
        ({"audio": "a.wav", "id": "q"}, "without 'text'"),
        ({"audio": "", "text": "x"}, "'audio' is no path"),
        ({"audio": "a\0.wav", "text": "x"}, "'audio' is no path"),
        ({"audio": 3, "text": "x"}, "'audio' must be a string, got 3"),
        ({"audio": "b.wav", "text": ["x"]}, "'text' must be a string"),
        ({"audio": "b.wav", "text": "x", "duration": "long"}, "'duration' is no number of seconds: 'long'"),
        ({"audio": "b.wav", "text": "x", "language": 3}, "'language' must be a string, got 3"),
        ({"audio": "b.wav", "text": "x", "offset": 2.5}, "has an 'offset'"),
        ('{"audio": "b.wav", "text": "x", "snr": 1e999}', "'snr' is no finite number"),
        ({"audio": "c.wav", "text": "x"}, "no such audio file: "),
        ({"audio": "n" * 300, "text": "x"}, "no such audio file: "),
        (GOOD, "id 'a.wav' is that of "),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_line_is_named(folder, line, reason):
    path = manifest(folder, GOOD, line)
    said = refusal(path)
    assert said.startswith(f"{path}:2: ")
    assert reason in said
    assert len(read_manifest(path, limit=1)) == 1


def test_a_manifest_that_cannot_be_read(folder):
    assert refusal(folder / "none.jsonl").endswith("no such manifest")
    assert "holds no clips" in refusal(manifest(folder, "", "  "))
    assert "no *.trans.txt" in refusal(folder)
    (folder / "latin.jsonl").write_bytes(b'\n{"audio": "a.wav", "text": "\xe9"}')
    assert refusal(folder / "latin.jsonl").startswith(f"{folder / 'latin.jsonl'}:2: not UTF-8")


def test_librispeech(tmp_path):
    for speaker, chapter in ((84, 121123), (174, 50561)):
        folder = tmp_path / "dev-clean" / str(speaker) / str(chapter)
        folder.mkdir(parents=True)
        (folder / f"{speaker}-{chapter}-0000.flac").touch()
        (folder / f"{speaker}-{chapter}.trans.txt").write_text(f"{speaker}-{chapter}-0000 GO DO YOU HEAR\n")
    first, second = read_manifest(tmp_path)
    assert (first.id, first.text, first.language) == ("174-50561-0000", "GO DO YOU HEAR", "English")
    assert second.audio == os.path.join("dev-clean", "84", "121123", "84-121123-0000.flac")
    assert second.fields == {"speaker": "84", "chapter": "121123"}
    assert second.path.exists()
    broken = tmp_path / "dev-clean" / "84" / "121123" / "84-121123.trans.txt"
    broken.write_text("84-121123-0000\n")
    assert refusal(tmp_path).startswith(f"{broken}:1: no text behind '84-121123-0000'")
    broken.write_text("84-121123-0000 A\n84-121123-0001 B\n")
    assert refusal(tmp_path).startswith(f"{broken}:2: no such audio file")


def test_common_voice(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp3").touch()
    (tmp_path / "b.mp3").touch()
    path = tmp_path / "test.tsv"
    path.write_text(
        'client_id\tpath\tsentence\tage\tlocale\nc1\ta.mp3\t"Ja", sagte er.\t\tde\nc2\tb.mp3\t你好\tteens\tzh-TW\n'
    )
    first, second = read_manifest(path)
    assert (first.id, first.path, first.text, first.language) == (
        "a.mp3",
        tmp_path / "clips/a.mp3",
        '"Ja", sagte er.',
        "German",
    )
    assert (second.path, second.language, second.fields) == (
        tmp_path / "b.mp3",
        "Chinese",
        {"client_id": "c2", "age": "teens"},
    )
    assert first.fields == {"client_id": "c1"}
    for content, reason in {
        "file\tsentence\n": "1: no column 'path'",
        "path\tsentence\na.mp3\n": "2: 1 columns where the first line names 2",
        "path\tsentence\n\tx\n": "2: the path is empty",
        "path\tsentence\nz.mp3\tx\n": "2: no such audio file",
    }.items():
        path.write_text(content)
        assert refusal(path).startswith(f"{path}:{reason}")
