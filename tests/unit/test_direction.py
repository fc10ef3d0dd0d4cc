"""Dependencies point one way, and the runtime imports neither torch nor transformers."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "qwen_asr_jax"

LAYERS = [
    {"errors"},
    {"typing", "config", "policy", "files", "json_lines", "processes", "runtime", "demo"},
    {"audio", "text"},
    {"ops", "kernels"},
    {"nn"},
    {"models"},
    {"checkpoint"},
    {"engine"},
    {"cli", "pipelines"},
    {"bench", "evaluation"},
]
"""From the bottom up; a module may import its own layer and those below."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _layer(room: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if room in layer)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    relative = path.relative_to(PACKAGE)
    if relative.parts == ("__init__.py",):
        return
    room = relative.parts[0].removesuffix(".py")
    for name in _imports(path):
        parts = name.split(".")
        assert parts[0] not in {"torch", "transformers", "training", "tests"}, name
        if parts[0] == "qwen_asr_jax" and len(parts) > 1:
            assert _layer(parts[1]) <= _layer(room), f"{relative} imports {name}"


@pytest.mark.parametrize("room", ["audio", "text"])
def test_numpy_rooms_do_not_import_jax(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert not {n for n in _imports(path) if n.split(".")[0] in {"jax", "flax", "jaxlib"}}, path


def test_importing_the_package_does_not_start_jax():
    code = "import sys, qwen_asr_jax, qwen_asr_jax.audio.read, qwen_asr_jax.text.prompt; print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_files_stay_small():
    long = {p.name: n for p in MODULES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long
