"""evaluate.py as a user runs it: twice on one file, killed in between, with another policy, and without a model."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import soundfile

from tests.audio_samples import RATE, synthetic
from tests.script_output import without_kernel_notice

ROOT = pathlib.Path(__file__).parents[2]
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture
def evaluate(tmp_path):
    def run(*arguments, status=0, **variables):
        """Runs the script in `tmp_path`; returns stdout, and stderr by lines."""
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": CACHE,
            "XDG_CACHE_HOME": str(tmp_path / "home"),
        }
        command = [sys.executable, f"{ROOT}/scripts/evaluate.py", *map(str, arguments)]
        done = subprocess.run(command, env=env | variables, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stderr
        return done.stdout, without_kernel_notice(done.stderr).splitlines()

    return run


@pytest.fixture
def manifest(tmp_path):
    """Two clips that are spoken, a silent one, and one that is no audio; in another folder than the results."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for seed, (name, text) in enumerate({"a": "Über the hills.", "b": "and far away", "silent": ""}.items()):
        soundfile.write(folder / f"{name}.wav", synthetic(0.5, seed), RATE)
        lines.append({"audio": f"{name}.wav", "text": text, "language": "en", "voice": f"v{seed}"})
    (folder / "broken.wav").touch()
    lines.append({"audio": "broken.wav", "text": "never heard", "voice": "v1"})
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def without_imports(tmp_path, *modules):
    """A PYTHONPATH on which the modules cannot be imported."""
    folder = tmp_path / "without" / "-".join(modules)
    folder.mkdir(parents=True)
    for module in modules:
        (folder / f"{module}.py").write_text(f"raise ImportError('No module named {module}')")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_runs_share_a_file_and_are_resumed(tmp_path, evaluate, manifest, tiny_original):
    model = [f"--manifest={manifest}", f"--model_dir={tiny_original}", "--group_by=voice", "--batch_size=2"]
    path = tmp_path / "test.results.jsonl"
    out, err = evaluate(*model, "--worst=1", status=1)
    assert err == [
        "evaluate.py: broken.wav: is empty (0 bytes)",
        "evaluate.py: 1 of 4 clips failed; the same command tries them again",
        "evaluate.py: results: test.results.jsonl",
    ]
    lines = path.read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == ["a.wav", "b.wav", "broken.wav", "silent.wav"]
    for text in (
        "Word error rate",
        "voice: v0",
        "nothing is said",
        "1 clip failed and not counted: broken.wav",
        "Most errors",
    ):
        assert text in out

    # Killed in the middle of the last line: that clip and the failed one are all that is left.
    whole = [line for line in lines if json.loads(line)["error"] is None]
    path.write_text("\n".join(whole)[:-9])
    (manifest.parent / "broken.wav").write_bytes((manifest.parent / "a.wav").read_bytes())
    _, err = evaluate(*model)
    assert err == [
        "evaluate.py: test.results.jsonl: its last line was cut off and is removed; that clip is transcribed again",
        "evaluate.py: 2 of 4 clips are in test.results.jsonl already, transcribed by the same model and settings",
        "evaluate.py: results: test.results.jsonl",
    ]
    again = path.read_text().splitlines()
    assert again[:2] == whole[:2]
    assert len(again) == 4
    by_id = {values["id"]: values for values in map(json.loads, again)}
    assert by_id["broken.wav"]["audio_sha256"] == by_id["a.wav"]["audio_sha256"]

    # Nothing is left to do; then another policy, whose table has both.
    _, err = evaluate(*model)
    assert err[0].startswith("evaluate.py: 4 of 4 clips are in ")
    assert path.read_text().splitlines() == again
    out, err = evaluate(*model, "--policy=fp32", "--markdown=pages/accuracy.md", "--worst=1")
    assert [line for line in err if "already" in line] == []
    assert len(path.read_text().splitlines()) == 8
    totals = [line for line in out.splitlines() if "| total" in line]
    assert [line.split("|")[2].strip() for line in totals] == ["bf16", "fp32"] * 2  # errors, silence
    page = (tmp_path / "pages" / "accuracy.md").read_text()
    assert page.startswith("# Accuracy: test.jsonl\n")
    assert out.partition("\n\nMost errors")[0] in page

    # The tables again, where JAX cannot be imported.
    absent = without_imports(tmp_path, "jax", "jaxlib", "flax")
    arguments = ["--report=test.results.jsonl", f"--manifest={manifest}", "--group_by=voice", "--worst=1"]
    assert evaluate(*arguments, PYTHONPATH=absent) == (out, [])
    out, err = evaluate("--report=test.results.jsonl", "--normalizer=basic", "--limit=1", PYTHONPATH=absent)
    assert "voice" not in out
    assert err == []


def test_one_line_for_what_is_wrong(tmp_path, evaluate, manifest, tiny_original):
    def fails(*arguments, **variables):
        out, (line,) = evaluate(*arguments, status=2, **variables)
        assert out == ""
        return line.removeprefix("evaluate.py: ")

    model = f"--model_dir={tiny_original}"
    assert fails(model).startswith("--manifest is missing; usage: ")
    assert fails("a.wav").startswith("unexpected argument 'a.wav'")
    assert fails(f"--manifest={manifest}", "--group_by=speaker").endswith("no clip has a field 'speaker'; there are: voice")
    assert fails(f"--manifest={manifest}", f"--output={manifest}", model).endswith("something else; choose another --output")
    assert fails("--report=none.jsonl") == "none.jsonl: cannot be read (No such file or directory)"
    assert fails("--report=r.jsonl", "--policy=bf16").startswith("--policy means nothing to --report")
    (tmp_path / "r.jsonl").touch()
    assert fails("--report=r.jsonl") == "r.jsonl: holds no results"
    for module, name in (("jiwer", "jiwer"), ("whisper_normalizer", "whisper-normalizer")):
        said = fails(f"--manifest={manifest}", model, PYTHONPATH=without_imports(tmp_path, module))
        assert said.startswith(f"{name} can")
        assert 'pip install -e ".[eval]"' in said
    (manifest.parent / "b.wav").unlink()
    assert fails(f"--manifest={manifest}", model) == f"{manifest}:2: no such audio file: {manifest.parent}/b.wav"
    assert not (tmp_path / "test.results.jsonl").exists()
