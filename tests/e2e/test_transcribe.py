"""The scripts as a user runs them: what goes to stdout, what to stderr, which exit status, and never a traceback.

What they transcribe is compared with the Python interface in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys

import pytest
import soundfile

from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.policy import PRESETS, Policy
from qwen_asr_jax.text.languages import LANGUAGE_CODES
from tests.audio_samples import RATE, synthetic
from tests.script_output import without_kernel_notice

ROOT = pathlib.Path(__file__).parents[2]
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]
KEYS = {"file", "duration_s", "language", "text", "tokens", "finish_reason", "truncated", "timings", "rtf", "rtfx"}
KEYS |= {"model", "policy", "backend", "batch_size", "warnings"}
TIMINGS = {"load_audio_ms", "mel_ms", "encode_ms", "prefill_ms", "decode_ms", "ttft_ms", "total_ms"}
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def command(script: str, *arguments: str | bytes | pathlib.Path) -> list[str | bytes]:
    return [sys.executable, f"{ROOT}/scripts/{script}.py", *map(os.fsencode, arguments)]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": CACHE, "HF_HUB_OFFLINE": "1"} | variables


def start(*arguments, **streams) -> subprocess.Popen:
    """Starts transcribe.py in the background; with kernels that are always there, so that it says nothing about them."""
    return subprocess.Popen(
        command("transcribe", "--implementation=xla", *arguments), stderr=subprocess.PIPE, env=environment(), **streams
    )


def run(script: str, *arguments, stdin: bytes = b"", status: int = 0, env: dict[str, str] | None = None):
    """Runs a script; returns its stdout and stderr as text. A failure never shows a traceback."""
    done = subprocess.run(
        command(script, *arguments), input=stdin, capture_output=True, cwd=ROOT, env=env or environment(), timeout=120
    )
    out, err = (stream.decode(errors="surrogateescape") for stream in (done.stdout, done.stderr))
    assert "Traceback" not in err, err
    assert done.returncode == status, err
    return out, without_kernel_notice(err)


def transcribe(model_dir, *arguments, **options):
    return run("transcribe", f"--model_dir={model_dir}", *arguments, **options)


def records(model_dir, *arguments, **options) -> tuple[list[dict], str]:
    """The JSON objects on stdout, and stderr."""
    out, err = transcribe(model_dir, "--output_format=json", *arguments, **options)
    assert out.endswith("\n")
    return [json.loads(line) for line in out[:-1].split("\n")], err


def fails(status: int, script: str, *arguments, **options) -> str:
    """The one line on stderr of a run that fails with nothing on stdout."""
    out, err = run(script, *arguments, status=status, **options)
    assert (out, err.count("\n"), err[-1]) == ("", 1, "\n")
    assert err.startswith(f"{script}.py: ")
    return err


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Three clips, not in the order of their lengths."""
    folder = tmp_path_factory.mktemp("audio")
    for seed, (name, seconds) in enumerate({"a": 3, "b": 0.3, "c": 9}.items()):
        soundfile.write(folder / f"{name}.wav", synthetic(seconds, seed), RATE, subtype="PCM_16")
    return [folder / f"{name}.wav" for name in "abc"]


@pytest.fixture(scope="module")
def short(wavs):
    return wavs[1]


@pytest.fixture(scope="module")
def bf16(tiny_original):
    return load_model(tiny_original, "bf16")


@pytest.fixture(scope="module")
def ending(tiny_original, bf16, short, tmp_path_factory):
    """A copy of the checkpoint with one more end token, one that it soon says, and what it says before (not only ASCII)."""
    tokens, decode = bf16.transcribe(short, max_new_tokens=80).tokens, bf16.tokenizer.decode
    at = next(i for i in range(5, 80) if tokens[i] not in tokens[:i] and not decode(tokens[:i]).strip().isascii())
    model_dir = shutil.copytree(tiny_original, tmp_path_factory.mktemp("checkpoints") / "ending")
    generation = json.loads((model_dir / "generation_config.json").read_text())
    generation["eos_token_id"].append(tokens[at])
    (model_dir / "generation_config.json").write_text(json.dumps(generation))
    return model_dir, list(tokens[:at])


def test_one_json_object_per_input_in_order(tiny_original, model, wavs):
    wanted = [model.transcribe(path) for path in wavs]
    for batch_size, sizes in ((1, [1, 1, 1]), (2, [2, 2, 1])):
        found, err = records(tiny_original, *wavs, "--policy=fp32", f"--batch_size={batch_size}")
        assert [r["file"] for r in found] == [str(path) for path in wavs]
        assert [r["tokens"] for r in found] == [list(r.tokens) for r in wanted]
        assert [r["text"] for r in found] == [r.text for r in wanted]
        assert [r["duration_s"] for r in found] == [3, 0.3, 9]
        assert [r["batch_size"] for r in found] == sizes
        for r in found:
            assert r.keys() == KEYS
            assert r["timings"].keys() == TIMINGS
            assert r["timings"]["total_ms"] > min(r["timings"].values()) >= 0
            assert r["rtf"] * r["rtfx"] == pytest.approx(1, rel=1e-2)
            assert (r["language"], r["warnings"]) == ("", [])
            assert (r["model"], r["policy"], r["backend"]) == (tiny_original.name, "fp32", "cpu")
        assert [(r["finish_reason"], r["truncated"]) for r in found] == [(r.finish_reason, r.truncated) for r in wanted]
        cut_short = [r for r in wanted if r.truncated]
        for line, result in zip(err.splitlines(), cut_short, strict=True):
            assert line.startswith(f"transcribe.py: warning: {result.name}: stopped after {len(result.tokens)} tokens")


def test_reading_ahead_changes_no_byte(tiny_original, tmp_path):
    paths = [tmp_path / "absent.wav", tmp_path / "text.wav"]
    paths[1].write_bytes(b"no audio")
    for i, (suffix, rate) in enumerate((("mp3", 48000), ("flac", 44100), ("wav", RATE), ("wav", 8000), ("ogg", RATE)) * 2):
        paths.insert(3 * i % (len(paths) + 1), tmp_path / f"{i}.{suffix}")
        soundfile.write(tmp_path / f"{i}.{suffix}", synthetic(0.3 + 0.2 * i, i, rate), rate)
    options = ("--batch_size=8", "--max_new_tokens=8")
    at_once, ahead = (
        transcribe(
            tiny_original, *paths, "-", *options, f"--audio_workers={workers}", stdin=paths[-1].read_bytes(), status=1
        )
        for workers in (0, 2)
    )
    assert ahead == at_once
    assert "2 of 13 inputs failed" in ahead[1]


@pytest.mark.parametrize(
    "variables", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["utf-8", "C"]
)
def test_the_transcript_and_nothing_else_is_on_stdout_in_any_locale(ending, short, variables):
    text = load_model(ending[0], "bf16").transcribe(short).text
    assert not text.isascii()
    out, err = transcribe(ending[0], short, env=environment(**variables))
    escaped = text.encode("ascii", "backslashreplace").decode()
    assert out.removesuffix("\n") in ({text, escaped} if variables else {text})
    assert err == ""


def test_every_end_token_of_generation_config_ends_the_text(ending, short):
    model_dir, tokens = ending
    (found,), err = records(model_dir, short)
    assert found["tokens"] == tokens
    assert (found["finish_reason"], found["truncated"], err) == ("eos", False, "")


def test_on_a_terminal_the_text_streams_and_is_whole_at_the_end(tiny_original, model, short):
    text = model.transcribe(short, "German", max_new_tokens=24).text
    reader, writer = pty.openpty()
    options = ("--policy=fp32", "--language=de", "--max_new_tokens=24")
    with start(f"--model_dir={tiny_original}", short, *options, stdout=writer) as process:
        os.close(writer)
        shown = b""
        with contextlib.suppress(OSError):  # what a pty says at its end
            while piece := os.read(reader, 4096):
                shown += piece
        os.close(reader)
        assert process.wait(timeout=60) == 0
        assert b"Traceback" not in process.stderr.read()
    assert shown.decode().replace("\r\n", "\n") == text + "\n"


@pytest.mark.parametrize("option", ["--policy=fp16", *(f"--config=configs/{policy}.py" for policy in PRESETS)])
def test_every_policy_runs(tiny_original, short, option):
    policy = pathlib.Path(option.partition("=")[2]).stem
    (found,), _ = records(tiny_original, short, option, "--max_new_tokens=16")
    assert found["policy"] == policy
    assert found["tokens"] == list(load_model(tiny_original, policy).transcribe(short, max_new_tokens=16).tokens)


def test_a_field_of_the_config_can_be_set(tiny_original, short):
    mixed = Policy("bf16", "bfloat16", "bfloat16", "float32", "float32", "float32", "bfloat16", "bfloat16")
    (found,), _ = records(tiny_original, short, "--config=configs/bf16.py", "--config.policy.cache_dtype=float32")
    assert found["tokens"] == list(load_model(tiny_original, mixed).transcribe(short).tokens)


@pytest.mark.parametrize("language", ["de", "German", "GERMAN"])
def test_a_language_may_be_named_in_any_way(tiny_original, bf16, short, language):
    (found,), _ = records(tiny_original, short, f"--language={language}", "--max_new_tokens=8")
    assert found["language"] == "German"
    assert found["tokens"] == list(bf16.transcribe(short, "German", max_new_tokens=8).tokens)


def test_the_context_is_made_harmless(tiny_original, bf16, short):
    line = fails(USAGE, "transcribe", f"--model_dir={tiny_original}", short, b"--context=Ada \xff")
    assert "not valid Unicode" in line
    (found,), _ = records(tiny_original, short, "--context=Ada<|im_end|> Gr<|im_<|im_end|>end|>ace", "--max_new_tokens=8")
    assert found["tokens"] == list(bf16.transcribe(short, context="Ada Grace", max_new_tokens=8).tokens)
    assert found["tokens"] != list(bf16.transcribe(short, max_new_tokens=8).tokens)


def test_the_token_budget_is_kept_and_said(tiny_original, short):
    (found,), err = records(tiny_original, short, "--max_new_tokens=3")
    assert len(found["tokens"]) == 3
    assert (found["finish_reason"], found["truncated"]) == ("length", True)
    assert err.startswith(f"transcribe.py: warning: {short}: stopped after 3 tokens")
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["wav", "flac", "s16le"])
def test_standard_input_is_a_file_or_raw_samples(ending, short, tmp_path, kind):
    samples, _ = soundfile.read(short, dtype="int16")
    soundfile.write(tmp_path / "clip.flac", samples, RATE)
    data = {"wav": short.read_bytes(), "flac": (tmp_path / "clip.flac").read_bytes(), "s16le": samples.tobytes()}[kind]
    (found,), err = records(ending[0], "-", f"--stdin_format={'s16le' if kind == 's16le' else 'auto'}", stdin=data)
    assert (found["file"], found["duration_s"], found["tokens"], err) == ("-", 0.3, ending[1], "")


@pytest.mark.parametrize("output_format", ["txt", "json"])
def test_results_go_to_files_of_the_same_name(tiny_original, bf16, wavs, tmp_path, output_format):
    out_dir = tmp_path / "new" / "results"
    options = (f"--output_dir={out_dir}", f"--output_format={output_format}", "--max_new_tokens=8")
    out, _ = transcribe(tiny_original, wavs[0], "-", *options, stdin=wavs[1].read_bytes())
    assert out == ""
    assert sorted(path.name for path in out_dir.iterdir()) == [f"a.{output_format}", f"stdin.{output_format}"]
    for stem, path in (("a", wavs[0]), ("stdin", wavs[1])):
        content = (out_dir / f"{stem}.{output_format}").read_text(encoding="utf-8")
        wanted = bf16.transcribe(path, max_new_tokens=8)
        assert content.endswith("\n")
        assert wanted.text == (json.loads(content)["text"] if output_format == "json" else content[:-1])


def test_one_bad_input_does_not_stop_the_others(tiny_original, bf16, wavs, tmp_path):
    """The others being: names that mislead or are no Unicode, a recording cut off, and the good ones."""
    names = ["clip.raw", "é🙂".encode() + b"\xff.wav", "cut.wav"]
    misled, odd, cut = (tmp_path / os.fsdecode(name) for name in names)
    whole = wavs[1].read_bytes()
    for path, data in ((misled, whole), (odd, whole), (cut, whole[:-1000])):
        path.write_bytes(data)
    bad = [tmp_path / "absent.wav", tmp_path / ("x" * 300), tmp_path]
    inputs = [misled, bad[0], odd, bad[1], wavs[1], bad[2], cut]
    ascii_only = environment(PYTHONIOENCODING="ascii")
    found, err = records(tiny_original, *inputs, "--max_new_tokens=8", status=FAILED, env=ascii_only)
    assert [r["file"] for r in found] == list(map(str, (misled, odd, wavs[1], cut)))
    wanted = list(bf16.transcribe(wavs[1], max_new_tokens=8).tokens)
    assert [r["tokens"] for r in found[:3]] == [wanted] * 3
    assert "cut off, 1000 bytes are missing" in found[3]["warnings"][0]
    *lines, summary = [line for line in err.splitlines() if "warning: " not in line]
    assert summary == f"transcribe.py: 3 of 7 inputs failed: {', '.join(map(str, bad))}"
    for line, path in zip(lines, bad, strict=True):
        assert line.startswith(f"transcribe.py: {path}: ")


@pytest.mark.parametrize(
    "arguments, names",
    [
        ([], ["no audio"]),
        (["a.wav", "--model_dir="], ["--model_dir is empty", "demonstration"]),
        (["a.wav", "--model_dir=m", "--colour=red"], ["colour"]),
        (["-", "-", "--model_dir=m"], ["only once"]),
        (["a.wav", "--model_dir=m", "--policy=bf16", "--config=configs/bf16.py"], ["--policy", "--config"]),
        (["a.wav", "--model_dir=m", "--batch_size=0"], ["batch_size", "0", "256"]),
        (["a.wav", "--model_dir=m", "--batch_size=257"], ["batch_size", "257", "256"]),
        (["a.wav", "--model_dir=m", "--audio_workers=-1"], ["audio_workers", "-1", "64"]),
        (["a.wav", "--model_dir=m", "--config=configs/bf16.py", "--config.policy.colour=red"], ["colour"]),
        (["a.wav", "--model_dir=m", "--config=configs/bf16.py", "--config.policy.cache_dtype=float9"], ["float9"]),
        (["a.wav", "--model_dir=m", "--config=configs/bf16.py", "--config.engine.decode_chunk=x"], ["decode_chunk"]),
        (["a.wav", "--model_dir=m", "--config=configs/absent.py"], ["configs/absent.py"]),
        (["a.wav", "--model_dir=m", "--config=LICENSE"], ["LICENSE"]),
        (["a.wav", "x/a.mp3", "--model_dir=m", "--output_dir={tmp}"], ["a.wav and x/a.mp3", "{tmp}/a.txt"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_wrong_usage_exits_with_2_before_any_work(tmp_path, arguments, names):
    line = fails(USAGE, "transcribe", *(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    for name in names:
        assert name.replace("{tmp}", str(tmp_path)) in line


def test_an_unknown_language_lists_the_known_ones(tiny_original, short):
    line = fails(USAGE, "transcribe", f"--model_dir={tiny_original}", short, "--language=Klingon")
    assert "'Klingon'" in line
    assert all(f"{name} ({code})" in line for name, code in LANGUAGE_CODES.items())


def test_broken_orbax_data_is_said_in_one_line(tiny_original, short, tmp_path):
    run("convert_checkpoint", f"--model_dir={tiny_original}", f"--out={tmp_path}/orbax")
    for path in (tmp_path / "orbax" / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-100])
    assert f"{tmp_path}/orbax" in fails(FAILED, "transcribe", f"--model_dir={tmp_path}/orbax", short)


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--model_dir={tmp}/absent"], "{tmp}/absent: no such directory"),
        (["--backend=gpu"], "--backend=cpu"),
        (["--output_dir={short}/below"], "{short}/below: "),
        (["--output_dir={tmp}"], "{tmp}/b.txt: "),  # a folder of that name is in the way
        (["--output_dir={tmp}", "--output_format=json"], ".json: "),  # the name is as long as a name can be
    ],
)
def test_what_cannot_be_used_exits_with_1_and_one_line(tiny_original, short, tmp_path, arguments, part):
    (tmp_path / "b.txt").mkdir()
    audio = short
    if "--output_format=json" in arguments:
        audio = shutil.copyfile(short, tmp_path / f"{'x' * 251}.wav")
    fill = {"tmp": tmp_path, "short": short}
    line = fails(FAILED, "transcribe", f"--model_dir={tiny_original}", audio, *(a.format(**fill) for a in arguments))
    assert part.format(**fill) in line
    assert not list(tmp_path.rglob("*partial*"))


def test_a_full_disk_behind_stdout_is_said_in_one_line(ending, short):
    with open("/dev/full", "wb") as full, start(f"--model_dir={ending[0]}", short, stdout=full) as process:
        err = process.communicate(timeout=60)[1].decode()
    assert (process.returncode, err.count("\n")) == (FAILED, 1), err
    assert "No space left" in err


def test_audio_beyond_the_positions_says_how_long_is_possible(tiny_original, wavs, tmp_path):
    """100 positions hold 21 of text, 3 new ones and 76 of audio, which is 5 s (65 tokens)."""
    model_dir = shutil.copytree(tiny_original, tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text())
    config["thinker_config"]["text_config"]["max_position_embeddings"] = 100
    (model_dir / "config.json").write_text(json.dumps(config))
    found, err = records(model_dir, wavs[0], wavs[2], "--max_new_tokens=3", status=FAILED)
    assert [len(r["tokens"]) for r in found] == [3]
    line, summary = [line for line in err.splitlines() if "warning: " not in line]
    assert line.startswith(f"transcribe.py: {wavs[2]}: 9.0 s of audio")
    assert "100 positions; one pass can hold 5 s" in line
    assert summary == f"transcribe.py: 1 of 2 inputs failed: {wavs[2]}"


def test_an_interrupt_ends_with_130_and_keeps_what_is_done(tiny_original, wavs):
    arguments = (f"--model_dir={tiny_original}", "--output_format=json", *[wavs[2]] * 400)
    with start(*arguments, stdout=subprocess.PIPE) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert b"Traceback" not in err
    assert err.decode().splitlines()[-1] == "transcribe.py: interrupted"
    lines = (first + rest).splitlines()
    assert len(lines) < 400
    assert all(json.loads(line)["file"] == str(wavs[2]) for line in lines)


def test_a_reader_that_goes_away_is_no_traceback(ending, short):
    arguments = (f"--model_dir={ending[0]}", *[short] * 20)
    with start(*arguments, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=120) == FAILED
    assert err == b""


def test_checkpoints_can_be_made_converted_and_transcribed(tiny_original, bf16, short, tmp_path):
    wanted = list(bf16.transcribe(short).tokens)
    for layout in ("original", "native"):
        out, err = run("make_checkpoint", f"--layout={layout}", f"--out={tmp_path / layout}")
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"make_checkpoint.py: wrote {tmp_path / layout}: tiny")
    for path in tiny_original.iterdir():
        assert (tmp_path / "original" / path.name).read_bytes() == path.read_bytes()
    out, err = run("convert_checkpoint", f"--model_dir={tmp_path / 'native'}", f"--out={tmp_path / 'orbax'}")
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"convert_checkpoint.py: wrote {tmp_path / 'orbax'}: policy bf16")
    for layout in ("native", "orbax"):
        (found,), _ = records(tmp_path / layout, short)
        assert (found["tokens"], found["model"]) == (wanted, layout)


@pytest.mark.parametrize(
    "status, script, arguments, part",
    [
        (USAGE, "make_checkpoint", [], "--out is missing"),
        (USAGE, "make_checkpoint", ["--out={tmp}/x", "--preset=huge"], "huge"),
        (FAILED, "make_checkpoint", ["--out={tmp}"], "{tmp}: exists already"),
        (FAILED, "make_checkpoint", ["--out={tmp}/taken/x"], "{tmp}/taken/x: "),
        (USAGE, "convert_checkpoint", ["--out={tmp}/x"], "--model_dir"),
        (FAILED, "convert_checkpoint", ["--model_dir={tmp}/absent", "--out={tmp}/x"], "no such directory"),
        (FAILED, "convert_checkpoint", ["--model_dir={tmp}", "--out={tmp}/x"], "{tmp}: "),
    ],
)
def test_checkpoint_scripts_fail_with_one_line_and_leave_nothing(tmp_path, status, script, arguments, part):
    (tmp_path / "taken").touch()
    line = fails(status, script, *(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert part.replace("{tmp}", str(tmp_path)) in line
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


@pytest.mark.parametrize(
    "script, names",
    [
        (
            "transcribe",
            "model_dir policy config implementation backend threads language context batch_size audio_workers output_format"
            " output_dir",
        ),
        ("make_checkpoint", "preset layout seed out tokenizer_dir"),
        ("convert_checkpoint", "model_dir out policy"),
    ],
)
def test_help_lists_the_flags(script, names):
    done = subprocess.run(command(script, "--help"), capture_output=True, cwd=ROOT, env=environment(), timeout=60)
    shown = done.stdout.decode() + done.stderr.decode()
    assert "Traceback" not in shown
    for name in names.split():
        assert f"--{name}" in shown or f"--[no]{name}" in shown
    assert f"python scripts/{script}.py" in shown
