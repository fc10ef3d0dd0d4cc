"""The kernels' own tests, compiled as the package's build compiles them; see `make sanitize` and `make neon` for others."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [(), ("--gpu", "--", "--quick")], ids=["cpu", "gpu"])
def test_kernels_agree_with_double_precision(arguments):
    build = pathlib.Path(__file__).with_name("build.py")
    done = subprocess.run([sys.executable, build, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_files_stay_small():
    here = pathlib.Path(__file__).parent
    device = here.parents[1] / "qwen_asr_jax" / "kernels" / "gpu" / "src"
    files = [p for folder in (here, here / "gpu", device) for p in folder.iterdir() if p.is_file()]
    assert not {p.name: n for p in files if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
