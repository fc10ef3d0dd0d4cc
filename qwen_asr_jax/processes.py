"""Child processes that end with this one: what they said, how long they took, and what they used."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

_running: set[int] = set()

_GRACE_S = 3.0
"""Time between asking a process to end and ending it: enough to end its own children and remove what it was writing."""

_NO_REASON = "For simplicity, JAX has removed its internal frames"  # a note that JAX adds behind its errors


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
      status: its exit status; negative for the number of the signal that ended it.
      stdout, stderr: all that it said.
      wall_s: seconds from start to end.
      cpu_s: seconds of CPU time, its own and that of children it waited for.
      peak_rss_bytes: most resident memory.
      timed_out: it was ended because it took too long.
    """

    status: int
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    timed_out: bool

    def reason(self) -> str:
        """Why it failed, in one line: the last thing it said on stderr, or how it ended."""
        if self.timed_out:
            return f"ended after {self.wall_s:.0f} s, the time limit"
        if self.status < 0:
            return f"ended by {_signal_name(-self.status)}" + (" (out of memory?)" if self.status == -signal.SIGKILL else "")
        lines = [line.strip() for line in self.stderr.splitlines()]
        said = [line for line in lines if line.strip("-") and not line.startswith(_NO_REASON)]
        return said[-1] if said else f"exit status {self.status} without a word"


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float | None = None) -> Finished:
    """Runs the command to its end in a process group of its own; standard input is empty.

    Raises:
      OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        with _signals_held():
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env and dict(env), process_group=0
            )
            _running.add(child.pid)
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _end(child.pid)

        timer = threading.Timer(timeout_s or 0.0, expire)
        if timeout_s:
            timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            timer.cancel()
            _running.discard(child.pid)
        wall_s = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    unit = 1024 if os.uname().sysname == "Linux" else 1  # getrusage counts in KiB there, in bytes on macOS
    return Finished(
        status=child.returncode,
        stdout=texts[0],
        stderr=texts[1],
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=usage.ru_maxrss * unit,
        timed_out=expired.is_set(),
    )


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals with handlers of Python's wait until the block is left: one that came between the start of a child and its
    being known would leave it behind. They are not blocked, as the child would inherit that.
    """
    held = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(n))]
    if threading.current_thread() is not threading.main_thread():
        held = []  # handlers run in the main thread only, and only there can they be changed
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in held}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def end_all() -> None:
    """Ends what is running now, with its children; for a process that ends at once."""
    for pid in list(_running):
        _end(pid)


def _end(pid: int) -> None:
    """Asks the process's group to end, so that it can end its own children, which are in other groups; then ends it."""
    _send(pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and not _has_ended(pid):
        time.sleep(0.01)
    _send(pid, signal.SIGKILL)


def _has_ended(pid: int) -> bool:
    """Whether the child has ended; it is left for the one who waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"
