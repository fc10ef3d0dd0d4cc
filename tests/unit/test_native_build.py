"""The package's build of the native libraries, with and without a working compiler, and the loader's reasons."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from qwen_asr_jax.kernels import cpu, gpu

ROOT = pathlib.Path(__file__).parents[2]
SETS = ("avx2", "avx512", "avx512bf16")

HERE = sys.platform == "linux" and shutil.which("c++") and shutil.which("nm")
needs_compiler = pytest.mark.skipif(not HERE, reason="no Linux, no C++ compiler or no nm")


def _tree(path: pathlib.Path) -> pathlib.Path:
    """A copy of what a build reads; returns where the library will be."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("the build command is setuptools'")
    shutil.copy(ROOT / "setup.py", path)
    kernels = path / "qwen_asr_jax" / "kernels"
    for platform in ("cpu", "gpu"):
        shutil.copytree(ROOT / "qwen_asr_jax" / "kernels" / platform / "src", kernels / platform / "src")
    return kernels / "cpu" / cpu.LIBRARY.name


def _of_gpu(library: pathlib.Path) -> pathlib.Path:
    """The library with the host half of the CUDA kernels, built beside that of the CPU's."""
    return library.parents[1] / "gpu" / gpu.LIBRARY.name


def _build(library: pathlib.Path, **env: str) -> str:
    """Runs the build command, which always succeeds; returns what it said."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-temp=objects"]
    clean = {k: v for k, v in os.environ.items() if k not in {"CXX", "CXXFLAGS", "LDFLAGS"}}
    where = library.parents[3]
    return subprocess.run(command, cwd=where, env=clean | env, capture_output=True, text=True, check=True).stderr


def _symbols(*command: str) -> list[tuple[str, str]]:
    out = subprocess.run(["nm", *command], capture_output=True, text=True, check=True).stdout
    return [tuple(line.split()[-2:]) for line in out.splitlines()]


def _sets(library: pathlib.Path) -> list[str]:
    names = ctypes.CDLL(str(library)).qwen_asr_isa_names
    names.restype = ctypes.c_char_p
    return names().decode().split()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A library built by the compiler that is here."""
    library = _tree(tmp_path_factory.mktemp("built"))
    said = _build(library)
    assert library.exists(), said
    assert "built without" not in said
    return library


@pytest.mark.parametrize(
    "compiler, reason",
    [("false", "false failed: exit status 1"), ("no-such-compiler -O1", "CXX names 'no-such-compiler', which is")],
)
def test_a_failing_compiler_leaves_a_reason(tmp_path, compiler, reason):
    library = _tree(tmp_path)
    library.write_bytes(b"of an older build")
    said = _build(library, CXX=compiler)
    assert not library.exists()
    assert reason in said
    with pytest.raises(cpu._Unusable, match=f"not built: {reason}"):
        cpu._load(library)
    with pytest.raises(gpu.Unusable, match=f"not built: {reason if sys.platform == 'linux' else 'there is no CUDA'}"):
        gpu.load_library(_of_gpu(library))


@needs_compiler
def test_only_our_functions_are_exported(built):
    exported = {name for _, name in _symbols("-D", "--defined-only", str(built))}
    assert exported == {*cpu.HANDLERS, "qwen_asr_abi", "qwen_asr_isa", "qwen_asr_isa_names"}
    exported = {name for _, name in _symbols("-D", "--defined-only", str(_of_gpu(built)))}
    functions = {f"qwen_asr_cuda_{name}" for name in ("abi", "driver", "why_not", "scratch_bytes", "load")}
    assert exported == {*gpu.HANDLERS, *functions}


@needs_compiler
def test_the_gpu_library_needs_nothing_of_cuda(built, monkeypatch):
    gpu.load_library(_of_gpu(built))
    wanted = {name for _, name in _symbols("-D", "--undefined-only", str(_of_gpu(built)))}
    assert not {name for name in wanted if name.startswith("cu")}
    monkeypatch.setattr(gpu, "ABI", 999)
    with pytest.raises(gpu.Unusable, match="of version 1, this package wants 999"):
        gpu.load_library(_of_gpu(built))


@needs_compiler
def test_no_instruction_set_leaks_into_shared_code(built):
    """A function that several objects hold is linked once: one compiled for AVX-512 must not be everybody's."""
    objects = [p for name in SETS if (p := built.parents[3] / "objects" / built.stem / f"isa_{name}.o").exists()]
    assert objects or "neon" in _sets(built)
    for path in objects:
        own = path.stem.removeprefix("isa_")
        space = f"8qwen_asr{len(own)}{own}"
        shared = {name for kind, name in _symbols("--defined-only", str(path)) if kind in "WVuwv" and space not in name}
        assert not {name for name in shared if not name.startswith("DW.ref.")}, path.name


@needs_compiler
def test_a_set_that_the_compiler_lacks_is_left_out(tmp_path, built):
    library = _tree(tmp_path)
    old = tmp_path / "old-compiler"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *-mavx512bf16*|*isa_neon*) echo "error: no such option" >&2; exit 1;; esac\nexec c++ "$@"\n'
    )
    old.chmod(0o755)
    said = _build(library, CXX=str(old), CXXFLAGS="-O0")
    assert [name for name in _sets(built) if name not in {"avx512bf16", "neon"}] == _sets(library)
    assert "error: no such option" in said
    assert "built without" in said


@needs_compiler
def test_the_loader_refuses_what_is_not_its_own(built, tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN_ASR_CPU_ISA", "sse9")
    with pytest.raises(cpu._Unusable, match=f"QWEN_ASR_CPU_ISA is 'sse9', but .* has: {', '.join(_sets(built))}"):
        cpu._load(built)
    monkeypatch.setattr(cpu, "ABI", 999)
    with pytest.raises(cpu._Unusable, match="of version 1, this package wants 999"):
        cpu._load(built)
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(cpu._Unusable, match=r"broken\.so cannot be loaded"):
        cpu._load(broken)
    with pytest.raises(cpu._Unusable, match="only its sources are here"):
        cpu._load(tmp_path / "absent.so")


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
def test_a_set_can_be_named():
    assert cpu.instruction_set() in {*SETS, "neon", "scalar"}
    code = (
        "from qwen_asr_jax.kernels import cpu; print(cpu.unavailable(), cpu.instruction_set(), cpu.target('qwen_asr_head'))"
    )
    env = os.environ | {"QWEN_ASR_CPU_ISA": "scalar"}
    out = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["None", "scalar", f"qwen_asr_head_v{cpu.ABI}"]
