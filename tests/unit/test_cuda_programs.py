"""Finding NVRTC, compiling for the GPUs that count, keeping programs on disk, and the loader's reasons."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import types

import pytest

from qwen_asr_jax.errors import BackendError
from qwen_asr_jax.kernels import gpu
from qwen_asr_jax.kernels.gpu import nvrtc, programs
from qwen_asr_jax.kernels.gpu.programs import Program

BF16, I8 = programs.TYPES.index("bfloat16"), programs.TYPES.index("int8")
SMALL = Program("decoder", (BF16, BF16, 1, 1024, 3072, 16, 8, 128))
LARGE = Program("decoder", (I8, BF16, 8, 2048, 6144, 16, 8, 128))
HEAD = Program("head", (BF16, 1, 1024, 151936))


@pytest.fixture(scope="module")
def compiler():
    try:
        return nvrtc.find()
    except nvrtc.Missing as e:
        pytest.skip(str(e))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(programs.runtime, "user_cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "cuda"


class FakeCompiler:
    """Counts what it compiles."""

    version = (13, 0)

    def __init__(self):
        self.compiled = []

    def compile(self, name, source, headers, flags, target):
        self.compiled.append((name, target, *flags))
        return f"{name} for {target}".encode()


@pytest.mark.parametrize("architecture", [80, 90, 120])
@pytest.mark.parametrize("program", [SMALL, LARGE, HEAD], ids=["small", "large", "head"])
def test_programs_compile(compiler, cache, architecture, program):
    assert compiler.target(architecture) == f"sm_{architecture}"
    image = programs.compiled(compiler, program, f"sm_{architecture}")
    assert image[:4] == b"\x7fELF"
    names = {"decoder": ["project", "attend", "output", "gate", "down"], "head": ["logits", "choose"]}[program.kind]
    assert all(f"qwen_{name}".encode() in image for name in names)


def test_ptx_serves_newer_gpus(compiler, cache):
    newest = max(compiler.architectures)
    assert compiler.target(newest + 5) == f"compute_{newest}"
    text = programs.compiled(compiler, SMALL, "compute_90").decode()
    assert text.endswith("\0")
    assert ".target sm_90" in text
    # 16 bytes of weights at a time, past the first cache; kernels that wait for each other.
    assert "ld.global.nc.L1::no_allocate.v4.u32" in text
    assert text.count("griddepcontrol.wait;") == text.count("griddepcontrol.launch_dependents;") == 5
    assert "griddepcontrol" not in programs.compiled(compiler, SMALL, "compute_80").decode()
    assert ".local" not in text


def test_what_the_compiler_refuses_is_one_line(compiler):
    with pytest.raises(nvrtc.Refused, match=r"^broken\.cu\(1\): error"):
        compiler.compile("broken.cu", "not a program", {}, [], "sm_90")
    with pytest.raises(nvrtc.Refused, match=r"has nothing for compute capability 2\.0"):
        compiler.target(20)


def test_programs_are_kept(cache):
    compiler = FakeCompiler()
    first = programs.compiled(compiler, SMALL, "sm_90")
    assert programs.compiled(compiler, SMALL, "sm_90") == first
    assert len(compiler.compiled) == 1
    assert "-DQWEN_WIDTH=1024" in compiler.compiled[0]
    assert cache.stat().st_mode & 0o077 == 0
    for change in (
        lambda: programs.compiled(compiler, HEAD, "sm_90"),
        lambda: programs.compiled(compiler, SMALL, "sm_80"),
        lambda: programs.compiled(compiler, LARGE, "sm_90"),
        lambda: setattr(compiler, "version", (13, 1)),
    ):
        change()
    programs.compiled(compiler, SMALL, "sm_90")
    assert len(compiler.compiled) == 5
    assert len(list(cache.iterdir())) == 5


def test_another_source_is_another_program(cache, tmp_path, monkeypatch):
    sources = tmp_path / "src"
    sources.mkdir()
    for path in programs.SOURCES.iterdir():
        (sources / path.name).write_bytes(path.read_bytes())
    compiler = FakeCompiler()
    programs.compiled(compiler, SMALL, "sm_90")
    monkeypatch.setattr(programs, "SOURCES", sources)
    programs.compiled(compiler, SMALL, "sm_90")
    assert len(compiler.compiled) == 1
    (sources / "types.cuh").write_text((sources / "types.cuh").read_text() + "\n")
    programs.compiled(compiler, SMALL, "sm_90")
    assert len(compiler.compiled) == 2


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:40] + b"?" + data[41:], lambda data: b""])
def test_a_spoilt_program_is_compiled_again(cache, spoil):
    compiler = FakeCompiler()
    first = programs.compiled(compiler, SMALL, "sm_90")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    assert programs.compiled(compiler, SMALL, "sm_90") == first
    assert len(compiler.compiled) == 2
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_does_not_matter(cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    compiler = FakeCompiler()
    assert programs.compiled(compiler, SMALL, "sm_90") == b"decoder.cu for sm_90"

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(programs.runtime, "user_cache_dir", homeless)
    assert programs.compiled(compiler, SMALL, "sm_90") == b"decoder.cu for sm_90"


def gpus(monkeypatch, platform="cuda 13000", capability="9.0"):
    """JAX as it is on a machine with one GPU."""
    client = types.SimpleNamespace(platform_version=f"PJRT C API\n{platform}")
    device = types.SimpleNamespace(
        client=client, compute_capability=capability, device_kind="NVIDIA Something", local_hardware_id=0
    )
    monkeypatch.setattr(gpu.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu.jax, "local_devices", lambda: [device])
    monkeypatch.setattr(gpu, "unavailable", gpu.unavailable.__wrapped__)


def test_a_host_without_gpu_is_told_so():
    assert gpu.unavailable() == "they are for NVIDIA GPUs"


def test_another_makers_gpu_is_told_so(monkeypatch):
    gpus(monkeypatch, platform="rocm 60300")
    assert gpu.unavailable() == "they are for NVIDIA GPUs"


def test_an_old_gpu_is_told_so(monkeypatch):
    gpus(monkeypatch, capability="7.5")
    assert gpu.unavailable() == "they need compute capability 8.0 or later, NVIDIA Something is older"


def test_a_missing_library_is_told_so(monkeypatch, tmp_path):
    gpus(monkeypatch)
    monkeypatch.setattr(gpu, "LIBRARY", tmp_path / "lib.so")
    assert gpu.unavailable() == "they were not built: the package was not installed, only its sources are here"
    (tmp_path / "lib.missing").write_text("no compiler\n")
    assert gpu.unavailable() == "they were not built: no compiler"
    (tmp_path / "lib.so").write_bytes(b"not a library")
    assert gpu.unavailable().startswith("lib.so cannot be loaded")


class FakeLibrary:
    """The host half; `driver` and `load` are its functions' reasons."""

    def __init__(self, driver=None, load=None):
        self.qwen_asr_cuda_driver = lambda: driver
        self.qwen_asr_cuda_load = lambda *_: load


def test_a_missing_driver_or_compiler_is_told_so(monkeypatch):
    gpus(monkeypatch)
    monkeypatch.setattr(gpu, "load_library", lambda _: FakeLibrary(driver=b"libcuda.so.1 cannot be loaded"))
    assert gpu.unavailable() == "libcuda.so.1 cannot be loaded"
    monkeypatch.setattr(gpu, "load_library", lambda _: FakeLibrary())

    def missing(preferred):
        assert preferred == 13
        raise nvrtc.Missing("NVRTC is missing")

    monkeypatch.setattr(nvrtc, "find", missing)
    assert gpu.unavailable() == "NVRTC is missing"


def test_handlers_are_registered_for_cuda(monkeypatch):
    gpus(monkeypatch)
    seen = []
    monkeypatch.setattr(gpu, "load_library", lambda _: FakeLibrary())
    monkeypatch.setattr(nvrtc, "find", lambda _: None)
    monkeypatch.setattr(gpu, "register", lambda library, platform: seen.append(platform))
    assert gpu.unavailable() is None
    assert seen == ["CUDA"]


def test_loading_fails_in_one_line(monkeypatch, cache):
    gpus(monkeypatch)
    monkeypatch.setattr(gpu, "load_library", lambda _: FakeLibrary(load=b"preparing failed (CUDA_ERROR_X)"))
    fake = FakeCompiler()
    fake.target = lambda architecture: f"sm_{architecture}"
    monkeypatch.setattr(nvrtc, "find", lambda preferred: fake)
    with pytest.raises(BackendError, match=r"^the CUDA kernels cannot be used \(preparing.*; use --implementation=xla$"):
        programs.load.__wrapped__(SMALL)

    def refuse(architecture):
        raise nvrtc.Refused("too old")

    fake.target = refuse
    with pytest.raises(BackendError, match=r"cannot be used \(too old\)"):
        programs.load.__wrapped__(SMALL)


def test_a_compiler_is_found_by_its_place(monkeypatch, tmp_path):
    """In wheels' folders before the system's, the preferred version first."""
    tried = []
    for place in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: spec)

    def refuse(path):
        tried.append(path)
        raise OSError

    monkeypatch.setattr(nvrtc.ctypes, "CDLL", refuse)
    for preferred in (12, 13):
        tried.clear()
        with pytest.raises(nvrtc.Missing, match="install nvidia-cuda-nvrtc"):
            nvrtc.find.__wrapped__(preferred)
        first = {12: "cuda_nvrtc/lib/libnvrtc.so.12", 13: "cu13/lib/libnvrtc.so.13"}[preferred]
        assert tried[:2] == [str(tmp_path / first), f"libnvrtc.so.{preferred}"]
        assert f"libnvrtc.so.{25 - preferred}" in tried


def test_the_built_library_without_a_driver():
    """It loads anywhere, and says what is missing instead of crashing."""
    try:
        gpu.load_library(gpu.LIBRARY)
    except gpu.Unusable as e:
        pytest.skip(str(e))
    ask = "print(gpu.said(gpu.load_library(gpu.LIBRARY).qwen_asr_cuda_driver()))"
    code = f"from qwen_asr_jax.kernels import gpu; {ask}"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert said.startswith("libcuda.so.1 cannot be loaded (libcuda.so.1: cannot open")
