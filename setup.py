"""Builds the native kernels with the package: any C++17 compiler will do, and without one the installation goes on.

Two libraries: the CPU kernels, and the host half of the CUDA kernels, whose device half is compiled where it runs. Why a
library is missing, if it is, is written beside it, where `unavailable()` in `qwen_asr_jax.kernels.cpu` and `.gpu` reads it:
pip shows what a build prints only when asked to.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAME = "qwen_asr_jax.kernels.cpu.libqwen_asr_cpu"
SOURCES = pathlib.Path("qwen_asr_jax/kernels/cpu/src")
COMMON = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-pthread"]
AVX512 = ["-mprefer-vector-width=512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
INSTRUCTION_SETS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": AVX512,
        "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    },
    "aarch64": {"neon": []},
}
"""Flags of each set's file, `isa_<set>.cc`, in the order of linking: a function that two objects share comes from the first,
the one that runs on more processors. Which set is used is decided where the library runs."""

GPU_NAME = "qwen_asr_jax.kernels.gpu.libqwen_asr_gpu"
GPU_SOURCES = pathlib.Path("qwen_asr_jax/kernels/gpu/src")
GPU_FLAGS = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread"]


class Failed(Exception):
    """Why there is no library, in one line."""


def run(*command: str, **kwargs: str) -> None:
    """Runs a compiler; its first error becomes the reason, all of its words go to stderr."""
    done = subprocess.run(command, text=True, capture_output=True, check=False, **kwargs)
    sys.stderr.write(done.stderr)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        error = next((line for line in said if "error" in line), said[-1] if said else f"exit status {done.returncode}")
        raise Failed(f"{command[0]} failed: {error.strip()}")


def compiler() -> list[str]:
    """The C++ compiler: $CXX, or the first of the usual names."""
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise Failed(f"CXX names {named[0]!r}, which is not there")
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise Failed("no C++ compiler was found when the package was installed (c++, g++ or clang++)")


def processor(cxx: list[str]) -> str:
    """The family that the compiler compiles for, which need not be this machine's."""
    done = subprocess.run([*cxx, "-dumpmachine"], text=True, capture_output=True, check=False)
    name = done.stdout.strip().split("-")[0].lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def headers() -> str:
    """The directory of XLA's headers, which jaxlib brings."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise Failed("jaxlib, whose headers are needed, was not there when the package was installed")
    return str(pathlib.Path(spec.origin).parent / "include")


def compile_all(cxx: list[str], sources: list[pathlib.Path], objects: pathlib.Path, flags: list[str]) -> list[str]:
    """Object files in the order of linking. A set that the compiler cannot do is left out, with a line that says so."""
    sets = INSTRUCTION_SETS.get(processor(cxx), {})
    objects.mkdir(parents=True, exist_ok=True)

    def compiled(source: pathlib.Path, *more: str) -> str:
        out = str(objects / f"{source.stem}.o")
        run(*cxx, *COMMON, *more, *flags, "-c", str(source), "-o", out)
        return out

    dispatch = next(source for source in sources if source.stem == "dispatch")
    baseline = [s for s in sources if not s.stem.startswith("isa_") and s != dispatch]
    baseline += [s for s in sources if s.stem == "isa_scalar"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        of_sets = {
            name: pool.submit(compiled, dispatch.with_name(f"isa_{name}.cc"), *flags_of_set)
            for name, flags_of_set in sets.items()
        }
        linked, have = [each.result() for each in [pool.submit(compiled, source) for source in baseline]], []
        for name, each in of_sets.items():
            try:
                linked.append(each.result())
                have.append(f"-DQWEN_HAVE_{name.upper()}")
            except Failed as e:
                print(f"the CPU kernels are built without {name}: {e}", file=sys.stderr)
    return [compiled(dispatch, *have), *linked]


def link(cxx: list[str], linked: list[str], objects: pathlib.Path, library: pathlib.Path, flags: list[str]) -> None:
    """Links a library that shows `qwen_asr_*` only."""
    library.parent.mkdir(parents=True, exist_ok=True)
    exported = objects / "exported"
    if sys.platform == "darwin":
        exported.write_text("_qwen_asr_*\n")
        only = f"-Wl,-exported_symbols_list,{exported}"
    else:
        exported.write_text("{ global: qwen_asr_*; local: *; };\n")
        only = f"-Wl,--version-script={exported}"
    # Aside first: a process that runs on the old library keeps its file.
    aside = library.with_suffix(".new")
    flags = [*flags, *shlex.split(os.environ.get("LDFLAGS", ""))]
    run(*cxx, "-shared", *linked, "-pthread", only, *flags, "-o", str(aside))
    aside.replace(library)


def build(objects: pathlib.Path, library: pathlib.Path) -> None:
    """Compiles every source of the CPU kernels, each instruction set with its own flags, and links."""
    cxx = compiler()
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    linked = compile_all(cxx, sorted(SOURCES.glob("*.cc")), objects, [*extra, "-isystem", headers()])
    link(cxx, linked, objects, library, extra)


def build_gpu(objects: pathlib.Path, library: pathlib.Path) -> None:
    """Compiles the host half of the CUDA kernels and links it; nothing of CUDA is needed for that."""
    if sys.platform != "linux":
        raise Failed(f"there is no CUDA on {sys.platform}")
    cxx = compiler()
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    sources = sorted(GPU_SOURCES.glob("*.cc"))
    if not sources:
        raise Failed(f"{GPU_SOURCES} has no sources")
    objects.mkdir(parents=True, exist_ok=True)

    def compiled(source: pathlib.Path) -> str:
        out = str(objects / f"{source.stem}.o")
        run(*cxx, *GPU_FLAGS, *extra, "-isystem", headers(), "-c", str(source), "-o", out)
        return out

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        linked = list(pool.map(compiled, sources))
    link(cxx, linked, objects, library, [*extra, "-ldl"])


LIBRARIES = {NAME: build, GPU_NAME: build_gpu}


class BuildKernels(build_ext):
    """Builds the libraries into their places, or leaves there the reason why not."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain name: nothing of Python's is in the library."""
        return str(pathlib.Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        """Never fails."""
        for name, compile_and_link in LIBRARIES.items():
            library = pathlib.Path(self.get_ext_fullpath(name))
            reason = library.with_suffix(".missing")
            library.unlink(missing_ok=True)
            reason.unlink(missing_ok=True)
            try:
                compile_and_link(pathlib.Path(self.build_temp) / library.stem, library)
                print(f"built {library}", file=sys.stderr)
            except (Failed, OSError) as e:
                print(f"no {library.name}, plain XLA will be used: {e}", file=sys.stderr)
                library.parent.mkdir(parents=True, exist_ok=True)
                reason.write_text(f"{e}\n", encoding="utf-8")


class Wheel(bdist_wheel):
    """One wheel per platform serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """The platform's tag only."""
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":  # the tests import this file for its flags
    setup(
        ext_modules=[Extension(name, [], language="c++", optional=True) for name in LIBRARIES],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    )
