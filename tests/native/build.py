"""Builds and runs the kernels' own tests: plain C++ without XLA, with the flags of the package's build.

python tests/native/build.py [--cxx="clang++"] [--sanitize=address,undefined] [--emulator="qemu-aarch64"] [-- --quick ...]

Exit status 77 where a tool is missing, which the line that it prints names.
"""

from __future__ import annotations

import argparse
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
KEPT = ROOT / ".cache" / "native"
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
"""GCC 12 sees the last two in its own intrinsics."""


def load_setup() -> types.ModuleType:
    """The package's setup.py, without running it. It imports setuptools."""
    spec = importlib.util.spec_from_file_location("package_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(cxx: list[str], flags: list[str]) -> pathlib.Path:
    """The test program, compiled if it was not yet, from these sources with these flags."""
    setup = load_setup()
    kernels = ROOT / setup.SOURCES
    sources = [p for p in sorted(kernels.glob("*.cc")) if not p.stem.startswith("handlers")] + sorted(HERE.glob("*.cc"))
    digest = hashlib.sha256(repr((cxx, flags)).encode())
    for path in [*sorted(kernels.iterdir()), *sorted(HERE.iterdir()), ROOT / "setup.py"]:
        if path.is_file():
            digest.update(path.read_bytes())
    folder = KEPT / digest.hexdigest()[:16]
    program = folder / "native_tests"
    if not program.exists():
        objects = setup.compile_all(cxx, sources, folder, [*WARNINGS, f"-I{kernels}", *flags])
        aside = program.with_suffix(f".{os.getpid()}")
        setup.run(*cxx, *flags, *objects, "-pthread", "-o", str(aside))
        aside.replace(program)
    return program


def skip(why: str) -> int:
    """Says why nothing was tested."""
    print(f"skipped: {why}")
    return SKIPPED


def main() -> int:
    """Builds, runs, and passes on the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    program = build(cxx, flags)
    return subprocess.run([*shlex.split(args.emulator), str(program), *args.arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
