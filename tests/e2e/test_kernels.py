"""Whole transcripts under the native kernels, with every instruction set and thread count; and without the library."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import soundfile

from qwen_asr_jax.bench.record import parse
from qwen_asr_jax.checkpoint.random_checkpoint import write_random_checkpoint
from qwen_asr_jax.kernels import cpu
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.runtime import CACHE_VARIABLE
from tests.audio_samples import RATE, synthetic
from tests.kernel_cases import needs_kernels
from tests.script_output import KERNEL_NOTICE

ROOT = pathlib.Path(__file__).parents[2]
CLIPS = [(1.0, 1), (3.3, 2), (11.0, 3)]
"""Seconds and seeds: less than a chunk of the encoder's window, and more than one window."""
NEW_TOKENS = 24
CONTEXT = "names: Ada, Grace, Alan, Barbara, Edsger, Donald, Leslie, Frances"


def sets() -> list[str]:
    """The instruction sets that the library has for this processor."""
    if cpu.unavailable() is not None:
        return []
    names = ctypes.CDLL(str(cpu.LIBRARY)).qwen_asr_isa_names
    names.restype = ctypes.c_char_p
    return names().decode().split()


def transcripts(model_dir: str | os.PathLike[str], implementation: str) -> list[list[int]]:
    """Tokens of single clips, of a batch of three, and of a prompt in several blocks. Also run by the subprocesses below."""
    model = load_model(model_dir, policy="fp32", implementation=implementation)
    assert model.engine.policy.implementation == implementation
    clips = [synthetic(*each) for each in CLIPS]
    results = [model.transcribe(clip, max_new_tokens=NEW_TOKENS) for clip in clips]
    results += model.transcribe(clips, max_new_tokens=NEW_TOKENS)
    options = EngineOptions(prefill_block=48, decode_chunk=5)
    in_blocks = load_model(model_dir, policy="fp32", implementation=implementation, options=options)
    results.append(in_blocks.transcribe(clips[-1], context=CONTEXT, max_new_tokens=NEW_TOKENS))
    results += in_blocks.transcribe(clips[:2], language="German", max_new_tokens=NEW_TOKENS)
    return [list(result.tokens) for result in results]


@pytest.fixture(scope="module")
def of_xla(tiny_original):
    return transcripts(tiny_original, "xla")


@needs_kernels
def test_fp32_tokens_are_those_of_xla(tiny_original, of_xla):
    assert transcripts(tiny_original, "cpu") == of_xla
    assert len({tuple(tokens) for tokens in of_xla}) > 3, "the clips should differ"


@needs_kernels
@pytest.mark.parametrize("seed", [1, 2])
def test_fp32_tokens_of_other_weights(tmp_path, seed):
    write_random_checkpoint(tmp_path / "model", "tiny", seed=seed)
    xla, native = (transcripts(tmp_path / "model", name) for name in ("xla", "cpu"))
    assert native == xla


@needs_kernels
@pytest.mark.parametrize("policy", ["fp32", "bf16", "fp16", "int8"])
def test_a_screen_changes_no_token(tiny_original, policy):
    screened, whole = (
        load_model(tiny_original, policy=policy, implementation="cpu", options=EngineOptions(screen_head=screen))
        for screen in (True, False)
    )
    assert (screened.engine.screen is None, whole.engine.screen is None) == (False, True)
    clips = [synthetic(*each) for each in CLIPS]
    found, wanted = (model.transcribe(clips, max_new_tokens=NEW_TOKENS) for model in (screened, whole))
    assert [each.tokens for each in found] == [each.tokens for each in wanted]


def python(*arguments: str, cwd: pathlib.Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs Python as a user would, with the tests' own cache of compiled programs."""
    clean = {k: v for k, v in os.environ.items() if k not in {"NPROC", "PJRT_NPROC", "QWEN_ASR_CPU_ISA"}}
    clean |= {"JAX_PLATFORMS": "cpu", CACHE_VARIABLE: os.environ[CACHE_VARIABLE], "PYTHONPATH": str(cwd)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=clean | env, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


IN_A_PROCESS = """
import json, sys
from tests.e2e import test_kernels
from qwen_asr_jax.kernels import cpu
print(json.dumps([cpu.instruction_set(), test_kernels.transcripts(sys.argv[1], "cpu")]))
"""


@needs_kernels
@pytest.mark.parametrize(
    "name, threads",
    [*((name, 1 + i % 2) for i, name in enumerate(sets())), *((name, n) for name in sets()[:1] for n in (2, 3))],
)
def test_every_instruction_set_and_thread_count_says_the_same(tiny_original, of_xla, name, threads):
    done = python("-c", IN_A_PROCESS, str(tiny_original), QWEN_ASR_CPU_ISA=name, NPROC=str(threads))
    assert json.loads(done.stdout) == [name, of_xla]


@pytest.fixture(scope="module")
def without_library(tmp_path_factory):
    """A copy of the package as a build without a compiler leaves it."""
    path = tmp_path_factory.mktemp("checkout")
    built = shutil.ignore_patterns("*.so", "*.missing", "__pycache__")
    shutil.copytree(ROOT / "qwen_asr_jax", path / "qwen_asr_jax", ignore=built)
    shutil.copytree(ROOT / "scripts", path / "scripts", ignore=built)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    soundfile.write(path, synthetic(1.0), RATE)
    return path


def test_without_the_library_transcribing_says_so_once_and_works(without_library, tiny_original, clip):
    arguments = [f"--model_dir={tiny_original}", "--policy=fp32", "--max_new_tokens=4"]
    done = python("scripts/transcribe.py", str(clip), str(clip), *arguments, cwd=without_library)
    (line,) = [line for line in done.stderr.splitlines() if KERNEL_NOTICE in line]
    assert line.startswith("transcribe.py: slower than need be, without native kernels: they were not built: ")
    assert "install a C++17 compiler" in line
    said = python("scripts/transcribe.py", str(clip), str(clip), *arguments, "--implementation=xla", cwd=without_library)
    assert KERNEL_NOTICE not in said.stderr, "XLA is meant"
    assert done.stdout == said.stdout != ""


def test_without_the_library_a_record_says_so(without_library, tiny_original, clip, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = [f"--model_dir={tiny_original}", "--runs=1", "--warmup=1", f"--output_json={output}", f"--audio={clip}"]
    done = python(
        "scripts/bench.py",
        "--workload=full",
        "--decode_tokens=4",
        *arguments,
        cwd=without_library,
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert done.stderr.count(KERNEL_NOTICE) == 1
    (record,) = map(parse, output.read_text().splitlines())
    assert record.implementation == "xla"
    (note,) = [note for note in record.notes if KERNEL_NOTICE in note]
    assert note.startswith("without native kernels: they were not built: ")


def test_a_set_that_this_processor_lacks_is_said_and_xla_computes(tiny_original, clip):
    arguments = [f"--model_dir={tiny_original}", "--policy=fp32", "--max_new_tokens=4", "--verbose"]
    done = python("scripts/transcribe.py", str(clip), *arguments, QWEN_ASR_CPU_ISA="sse9")
    assert done.stderr.count(KERNEL_NOTICE) == 1
    assert "kernels xla" in done.stderr
    if cpu.LIBRARY.exists():
        assert "QWEN_ASR_CPU_ISA is 'sse9'" in done.stderr
