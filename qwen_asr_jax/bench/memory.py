"""Memory of this process: resident, on the device, and what compiled programs need besides their arguments."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import resource
import sys
from collections.abc import Iterator

import jax

from qwen_asr_jax import runtime
from qwen_asr_jax.errors import QwenASRError
from qwen_asr_jax.pipelines.offline import is_out_of_memory


def rss_bytes() -> int | None:
    """Resident memory now; None where the system does not say (it is read from /proc)."""
    return _status("VmRSS")


_peak = 0


def peak_rss_bytes() -> int:
    """Most resident memory so far, without what `forget_peak` was told to forget."""
    global _peak
    now = _status("VmHWM")  # unlike ru_maxrss, not inherited from the process that started this one
    now = now or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    _peak = max(_peak, now)
    return _peak


def forget_peak() -> None:
    """Leaves what was needed since the last `peak_rss_bytes` out of later ones: buffers of the bench itself, given back now.

    Possible on Linux only; elsewhere later peaks are too high.
    """
    gc.collect()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int | None:
    try:
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


device_bytes = runtime.device_memory


VERBS = ("log_mel", "encode", "embed", "prefill", "decode")
"""The engine's programs; others in the process are the bench's own."""


def temp_bytes() -> dict[str, int]:
    """Scratch memory of the engine's compiled programs in this process, the largest per verb; without those that need none."""
    found: dict[str, int] = {}
    for program in jax.local_devices()[0].client.live_executables():
        name = program.hlo_modules()[0].name.removeprefix("jit_")
        if name not in VERBS:
            continue
        size = program.get_compiled_memory_stats().temp_size_in_bytes
        if size:
            found[name] = max(size, found.get(name, 0))
    return found


@contextlib.contextmanager
def out_of_memory(what: str) -> Iterator[None]:
    """Turns running out of memory inside the block into one line.

    Raises:
      QwenASRError: there is no memory left.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise QwenASRError(f"no memory for {what}; use a smaller batch, model or policy") from None
