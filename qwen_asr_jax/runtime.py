"""What must be settled before JAX starts its backends: platform, threads, memory, and where compiled programs are kept.

Environment variables act when a backend is created, which is once per process. So scripts call `configure` first, and a
later call that asks for something else fails instead of being ignored. Whatever the user has set in the environment stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Literal

from qwen_asr_jax.errors import BackendError, UsageError

Backend = Literal["auto", "cpu", "gpu"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "gpu")

_MAX_THREADS_PER_CPU = 8  # more only waste memory, and far more abort the process inside XLA

_CACHE_EVERYTHING = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"

FRACTION_VARIABLE = "XLA_CLIENT_MEM_FRACTION"
"""Read by jaxlib when a GPU is opened: the part of its whole memory that the process may take."""

_FRACTION_VARIABLES = (FRACTION_VARIABLE, "XLA_PYTHON_CLIENT_MEM_FRACTION")  # the second: as it was called once


def configure(backend: str = "auto", threads: int = 0, memory_fraction: float = 0.0) -> None:
    """Prepares JAX; to be called before any array is made.

    Args:
      backend: `cpu`, `gpu` (fails where there is none) or `auto` (a GPU if JAX sees one).
      threads: size of XLA's CPU thread pool; 0 for the physical cores that this process may use.
      memory_fraction: most of a GPU's memory that the process may take, up to 1; 0 for XLA's own choice, three quarters.

    Raises:
      UsageError: the backend's name is unknown, or a number makes no sense: out of range, against the environment, or a
        fraction of a CPU's memory.
      BackendError: a GPU is asked for where there is none, or JAX has already started differently.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    most = _MAX_THREADS_PER_CPU * (os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise UsageError(f"threads must be 0 (automatic) to {most} on this machine, got {threads}")
    if not 0 <= memory_fraction <= 1:
        raise UsageError(f"memory_fraction must be 0 (automatic) to 1, got {memory_fraction:g}")
    started = _started()
    _limit_memory(memory_fraction, backend, started)
    if not started:
        if threads:
            os.environ["NPROC"] = str(threads)
        elif "NPROC" not in os.environ and "PJRT_NPROC" not in os.environ:
            os.environ["NPROC"] = str(default_threads())
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    elif threads and os.environ.get("NPROC") != str(threads):
        raise BackendError(f"threads={threads} comes too late: JAX is running already; load the model first, or set NPROC")

    import jax

    if backend == "cpu" and not started:
        jax.config.update("jax_platforms", "cpu")
    _use_compilation_cache()
    try:
        platform = jax.default_backend()
    except RuntimeError as e:
        raise BackendError(f"JAX cannot start ({str(e).splitlines()[0]}); try --backend=cpu") from None
    if backend != "auto" and platform != backend:
        if backend == "cpu":
            raise BackendError(f"backend=cpu comes too late: JAX is running on {platform} already; set JAX_PLATFORMS=cpu")
        raise BackendError(
            'JAX sees no GPU: check nvidia-smi, install the extra (pip install -e ".[cuda12]" or cuda13), or use --backend=cpu'
        )
    if memory_fraction and platform == "cpu":
        raise _not_for_cpus(memory_fraction)


def _limit_memory(fraction: float, backend: str, started: bool) -> None:
    """Puts the fraction, unless it is 0, into the environment, where jaxlib reads it when it opens a GPU.

    Raises:
      UsageError: the environment says something else or nothing that jaxlib takes, or the backend is a CPU.
      BackendError: JAX is running already, without this fraction.
    """
    found = {name: os.environ[name] for name in _FRACTION_VARIABLES if os.environ.get(name)}
    if len(found) > 1 and backend != "cpu" and not started:
        # jaxlib raises in its plugin, which JAX survives: it would compute on the CPU, behind a traceback.
        raise UsageError(
            f"{' and '.join(found)} are both set, which jaxlib refuses; unset the second, which is the old name"
        )
    if not fraction:
        return
    if backend == "cpu" or (started and platform() == "cpu"):
        raise _not_for_cpus(fraction)
    same = [_same(value, fraction) for value in found.values()]
    if started and not any(same):
        raise BackendError(
            f"memory_fraction={fraction:g} comes too late: JAX is running already; load the model first, or set"
            f" {FRACTION_VARIABLE}"
        )
    if not all(same):
        said = " and ".join(f"{name}={value}" for name, value in found.items())
        raise UsageError(
            f"memory_fraction={fraction:g} contradicts {said} in the environment: unset that, or leave this out"
        )
    if os.environ.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() == "platform":
        raise UsageError(
            f"memory_fraction={fraction:g} means nothing to XLA_PYTHON_CLIENT_ALLOCATOR=platform, which knows no limit: unset"
            " that, or leave this out"
        )
    if not found:
        os.environ[FRACTION_VARIABLE] = str(float(fraction))


def _same(value: str, fraction: float) -> bool:
    """Whether the value of a variable is that number."""
    try:
        return float(value) == fraction
    except ValueError:
        return False


def _not_for_cpus(fraction: float) -> UsageError:
    return UsageError(f"memory_fraction={fraction:g} is for GPUs: nothing caps what JAX takes on a CPU; leave it out")


def _started() -> bool:
    """Whether JAX has created a backend, after which the environment no longer counts."""
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge  # no public way to ask without starting one

    return bool(xla_bridge.backends_are_initialized())


def device_memory(figure: str = "bytes_in_use") -> int | None:
    """What the device's allocator says: `bytes_in_use`, `peak_bytes_in_use` or `bytes_limit`; None without one (CPU)."""
    import jax

    stats = jax.local_devices()[0].memory_stats()
    return stats.get(figure) if stats else None


_lowering_for: str | None = None


def platform() -> str:
    """What programs are traced for, `cpu` or `gpu`: the backend that JAX runs on, or what `lowering_for` says. Starts JAX."""
    import jax

    return _lowering_for or jax.default_backend()


@contextlib.contextmanager
def lowering_for(name: str) -> Iterator[None]:
    """Inside, programs are traced as that platform would run them, whatever JAX runs on here.

    For looking at a GPU's programs on a machine without one (`jax.export`). Traces do not remember what they were made for,
    so all are forgotten at both ends.
    """
    import jax

    global _lowering_for
    before, _lowering_for = _lowering_for, name
    jax.clear_caches()
    try:
        yield
    finally:
        _lowering_for = before
        jax.clear_caches()


def default_threads() -> int:
    """Physical cores that this process may run on, and no more than its container's CPU quota.

    Two threads on one core only fight over its vector units and caches.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        topology = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(topology.read_text().strip())
        except OSError:
            siblings.add(str(cpu))
    threads = len(siblings)
    try:
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            threads = min(threads, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, threads)


def cache_dir() -> pathlib.Path:
    """Where compiled programs are kept: `JAX_COMPILATION_CACHE_DIR`, or a folder in `user_cache_dir`."""
    if CACHE_VARIABLE in os.environ:
        return pathlib.Path(os.environ[CACHE_VARIABLE])
    return user_cache_dir() / "xla"


def user_cache_dir() -> pathlib.Path:
    """This package's folder in the user's own cache directory. It need not exist.

    Raises:
      RuntimeError: the user has no home directory.
    """
    if sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Caches"
    else:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return base / "qwen_asr_jax"


def _use_compilation_cache() -> None:
    """Turns on JAX's persistent cache for every program, however small. It is trusted code: owned by the user alone."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        try:
            path = cache_dir()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError):
            return  # no home, or a read-only one: every start compiles anew, which is slow but right
        if not os.access(path, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(path))
    for name, value in _CACHE_EVERYTHING.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def keeps_programs() -> bool:
    """Whether compiled programs go to a persistent cache that can be written; known once `configure` has run."""
    import jax

    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if folder is None or not getattr(jax.config, "jax_enable_compilation_cache", True):
        return False
    try:
        pathlib.Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def trim_heap() -> None:
    """Gives freed memory back to the system, where the C library can be asked to (glibc); takes about a millisecond."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)
