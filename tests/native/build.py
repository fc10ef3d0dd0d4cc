"""Builds and runs the kernels' own tests: plain C++ without XLA, with the flags of the package's build.

python tests/native/build.py [--cxx="clang++"] [--sanitize=address,undefined] [--emulator="qemu-aarch64"] [-- --quick ...]

With --gpu the tests of the CUDA kernels, which an emulator in tests/native/gpu runs on the CPU.

Exit status 77 where a tool is missing, which the line that it prints names.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import types

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SKIPPED = 77
GPU = HERE / "gpu"
EMULATOR = ("emulator", "fiber", "emulated_programs")
FAKE_DRIVER = "libqwen_fake_cuda.so.1"
"""Not under the name of the real one: NVRTC looks for that, too, in the same process."""
GPU_CASES = ("emulated_decoder_cases", "emulated_head_cases", "launch_cases")
KEPT = ROOT / ".cache" / "native"
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
"""GCC 12 sees the last two in its own intrinsics."""

Job = tuple[pathlib.Path, str, list[str]]
"""What to compile, the object's name, and flags of its own."""


def load(path: pathlib.Path) -> types.ModuleType:
    """A file as a module. The package's setup.py does not run by this; it imports setuptools."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_setup() -> types.ModuleType:
    """The package's setup.py."""
    return load(ROOT / "setup.py")


def folder_of(cxx: list[str], flags: list[str], *read: pathlib.Path) -> pathlib.Path:
    """Where to keep what the files in these directories, and the build, are compiled to."""
    digest = hashlib.sha256(repr((cxx, flags)).encode())
    for path in [*(p for directory in read for p in sorted(directory.iterdir())), ROOT / "setup.py"]:
        if path.is_file():
            digest.update(path.read_bytes())
    return KEPT / digest.hexdigest()[:16]


def link(setup: types.ModuleType, cxx: list[str], flags: list[str], objects: list[str], program: pathlib.Path) -> None:
    """Links objects into a program, which appears when it is complete."""
    aside = program.with_suffix(f".{os.getpid()}")
    setup.run(*cxx, *flags, *objects, "-pthread", "-o", str(aside))
    aside.replace(program)


def build(cxx: list[str], flags: list[str]) -> pathlib.Path:
    """The test program, compiled if it was not yet, from these sources with these flags."""
    setup = load_setup()
    kernels = ROOT / setup.SOURCES
    sources = [p for p in sorted(kernels.glob("*.cc")) if not p.stem.startswith("handlers")] + sorted(HERE.glob("*.cc"))
    folder = folder_of(cxx, flags, kernels, HERE)
    program = folder / "native_tests"
    if not program.exists():
        objects = setup.compile_all(cxx, sources, folder, [*WARNINGS, f"-I{kernels}", *flags])
        link(setup, cxx, flags, objects, program)
    return program


def gpu_flags(setup: types.ModuleType) -> list[str]:
    """Those with which everything of the emulated CUDA kernels is compiled."""
    includes = [f"-I{path}" for path in (ROOT / setup.GPU_SOURCES, ROOT / setup.SOURCES, HERE, GPU)]
    return ["-O2", "-std=c++17", *WARNINGS, "-Wno-unknown-pragmas", "-fno-strict-aliasing", "-DQWEN_EMULATED", *includes]


def compile_jobs(setup: types.ModuleType, command: list[str], folder: pathlib.Path, jobs: list[Job]) -> list[str]:
    """Object files of sources, each with a name and flags of its own behind those of all."""
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: pathlib.Path, stem: str, more: list[str]) -> str:
        out = str(folder / f"{stem}.o")
        setup.run(*command, *more, "-c", str(source), "-o", out)
        return out

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compiled(*job), jobs))


def instances(shapes: types.ModuleType, decoders: list[tuple[int, ...]], heads: list[tuple[int, ...]]) -> list[Job]:
    """The CUDA programs as C++, one for each shape."""
    jobs = []
    for name, names, all_values in [("decoder", shapes.DECODER, decoders), ("head", shapes.HEAD, heads)]:
        for values in all_values:
            jobs.append((GPU / "instance.cc", "_".join(map(str, (name, *values))), shapes.flags(names, values)))
    return jobs


def build_gpu(cxx: list[str], flags: list[str]) -> pathlib.Path:
    """The test program of the CUDA kernels."""
    setup, shapes = load_setup(), load(GPU / "shapes.py")
    kernels = ROOT / setup.GPU_SOURCES
    folder = folder_of(cxx, flags, kernels, ROOT / setup.SOURCES, HERE, GPU)
    program = folder / "gpu_tests"
    if not program.exists():
        own = [GPU / f"{name}.cc" for name in (*EMULATOR, *GPU_CASES, "main")]
        sources = [*own, *(HERE / f"{name}.cc" for name in ("reference", "testing", "values")), kernels / "launch.cc"]
        wanted = (shapes.SANITIZED_DECODERS, shapes.SANITIZED_HEADS) if flags else (shapes.DECODERS, shapes.HEADS)
        jobs = [*((source, source.stem, []) for source in sources), *instances(shapes, *wanted)]
        objects = compile_jobs(setup, [*cxx, *gpu_flags(setup), *flags], folder, jobs)
        link(setup, cxx, flags, objects, program)
    return program


def build_gpu_libraries(cxx: list[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """A driver that emulates, and the package's library as JAX's CPU backend can call it, with that driver behind."""
    setup, shapes = load_setup(), load(GPU / "shapes.py")
    kernels = ROOT / setup.GPU_SOURCES
    folder = folder_of(cxx, ["libraries"], kernels, ROOT / setup.SOURCES, HERE, GPU)
    driver, library = folder / FAKE_DRIVER, folder / "libqwen_asr_gpu.so"
    if not driver.exists() or not library.exists():
        command = [*cxx, *gpu_flags(setup), "-fPIC", "-fvisibility=hidden", "-isystem", setup.headers()]
        own = [GPU / f"{name}.cc" for name in (*EMULATOR, "fake_driver")]
        jobs = [(p, p.stem, []) for p in [*own, HERE / "testing.cc", kernels / "launch.cc"]]
        jobs += instances(shapes, shapes.LIBRARY_DECODERS, shapes.LIBRARY_HEADS)
        objects = compile_jobs(setup, command, folder / "driver", jobs)
        link(setup, cxx, ["-shared", f"-Wl,-soname,{FAKE_DRIVER}"], objects, driver)
        host = [p for p in sorted(kernels.glob("*.cc")) if p.stem != "bindings"] + [GPU / "cpu_bindings.cc"]
        named = f'-DQWEN_CUDA_DRIVER="{FAKE_DRIVER}"'
        objects = compile_jobs(setup, [*command, named], folder / "library", [(p, p.stem, []) for p in host])
        link(setup, cxx, ["-shared"], [*objects, "-ldl"], library)
    return driver, library


def skip(why: str) -> int:
    """Says why nothing was tested."""
    print(f"skipped: {why}")
    return SKIPPED


def main() -> int:
    """Builds, runs, and passes on the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the CUDA kernels, emulated")
    parser.add_argument("--cxx", default="", help="the compiler; $CXX or the first of the usual names when not given")
    parser.add_argument("--sanitize", default="", help="sanitizers, as -fsanitize takes them; compiles with -O1 -g")
    parser.add_argument("--emulator", default="", help="what runs the program; it is linked statically then")
    parser.add_argument("arguments", nargs="*", help="for the program, after --")
    args = parser.parse_args()
    flags = []
    if args.sanitize:
        flags = ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={args.sanitize}", "-fno-sanitize-recover=all"]
    if args.emulator:
        flags.append("-static")
    try:
        setup = load_setup()
        cxx = shlex.split(args.cxx) or setup.compiler()
    except ImportError as e:
        return skip(str(e))
    except setup.Failed as e:
        return skip(str(e))
    for tool in [cxx[0], *shlex.split(args.emulator)[:1]]:
        if shutil.which(tool) is None:
            return skip(f"there is no {tool} here")
    program = build_gpu(cxx, flags) if args.gpu else build(cxx, flags)
    return subprocess.run([*shlex.split(args.emulator), str(program), *args.arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
