"""Where a result comes from: machine, versions, commit, and a fingerprint of the model that no other model shares."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from qwen_asr_jax import runtime
from qwen_asr_jax.errors import OutputError
from qwen_asr_jax.files import sha256_of, write_text

_PACKAGE = pathlib.Path(__file__).parents[1]
_CODE = ("qwen_asr_jax", "scripts", "configs", "pyproject.toml")
"""What decides results; a changed document does not make one irreproducible."""

_CONFIGS = ("config.json", "generation_config.json")


def environment(backend: str) -> dict[str, Any]:
    """The `env` of a record, dated now; see `Record`. What cannot be found out is None."""
    return {"date": now(), **_fixed_environment(backend)}


def now() -> str:
    """Date and time in ISO format, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@functools.cache
def _fixed_environment(backend: str) -> dict[str, Any]:
    """What does not change while the process runs: asked once, since commits and edits during a run do not change it."""
    commit = _output("git", "-C", str(_PACKAGE), "rev-parse", "--short=12", "HEAD") if _is_checkout() else None
    gpu = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") if backend == "gpu" else None
    name, _, driver = gpu.splitlines()[0].partition(", ") if gpu else ("", "", "")
    return {
        "commit": commit,
        "dirty": bool(_output("git", "-C", str(_PACKAGE.parent), "status", "--porcelain", "--", *_CODE)) if commit else None,
        "package": _version("qwen_asr_jax"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_bytes": _ram_bytes(),
        "gpu": name or None,
        "driver": driver or None,
        "python": platform.python_version(),
        **{library: _version(library) for library in ("jax", "jaxlib", "flax")},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _is_checkout() -> bool:
    """Whether the package's files are tracked, and not just installed somewhere inside another project's checkout."""
    return _output("git", "-C", str(_PACKAGE), "ls-files", "__init__.py") is not None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What the command prints; None if it fails, is not there, or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def device_name(backend: str) -> str:
    """The name of the device that JAX computes on."""
    if backend == "cpu":
        return cpu_name()
    import jax

    return jax.devices()[0].device_kind


def fingerprint(model_dir: pathlib.Path) -> str:
    """sha256 over `config.json` and all weight files, by content alone: a renamed copy is the same model.

    Gigabytes take seconds, so the result is kept in the user's cache directory under the files' paths, sizes and times.
    """
    files = _model_files(model_dir)
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    try:
        kept: pathlib.Path | None = runtime.user_cache_dir() / "fingerprints" / key
    except RuntimeError:
        kept = None
    if kept is not None and kept.exists():
        return kept.read_text(encoding="ascii")
    with concurrent.futures.ThreadPoolExecutor(runtime.default_threads()) as pool:
        digests = list(pool.map(sha256_of, files))
    result = hashlib.sha256("".join(digests).encode()).hexdigest()
    with contextlib.suppress(OSError, OutputError):  # without a cache it is computed every time
        if kept is not None:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text(kept, result)
    return result


def _model_files(model_dir: pathlib.Path) -> list[pathlib.Path]:
    """Configs and weights in the order of their names; weights are safetensors files, or an orbax directory's subfolders."""
    weights = sorted(model_dir.glob("*.safetensors")) or sorted(path for path in model_dir.glob("*/**/*") if path.is_file())
    return [path for name in _CONFIGS if (path := model_dir / name).exists()] + weights
