"""Child processes: what they said, how they ended, and that none outlives its time."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from qwen_asr_jax import processes


def python(code, **options):
    return processes.run([sys.executable, "-c", code], **options)


def test_what_a_process_says_and_uses():
    done = python("import sys; print('out'); print('err', file=sys.stderr); x = bytearray(50 << 20)")
    assert (done.status, done.stdout, done.stderr, done.timed_out) == (0, "out\n", "err\n", False)
    assert done.wall_s > 0
    assert done.cpu_s > 0
    assert done.peak_rss_bytes > 50 << 20


@pytest.mark.parametrize(
    "code, status, reason",
    [
        ("import sys; sys.exit('no luck')", 1, "no luck"),
        ("import sys; print('a\\nb\\n', file=sys.stderr); sys.exit(3)", 3, "b"),
        ("import sys; sys.exit(4)", 4, "exit status 4 without a word"),
        ("import os; os.kill(os.getpid(), 9)", -9, "ended by SIGKILL (out of memory?)"),
        ("import os; os.kill(os.getpid(), 15)", -15, "ended by SIGTERM"),
        ("import os; os.kill(os.getpid(), 40)", -40, "ended by signal 40"),
        (
            "import sys; sys.exit('RESOURCE_EXHAUSTED\\n-----\\nFor simplicity, JAX has removed its internal frames from it')",
            1,
            "RESOURCE_EXHAUSTED",
        ),
    ],
)
def test_how_a_process_fails(code, status, reason):
    done = python(code)
    assert (done.status, done.reason()) == (status, reason)


def test_environment_is_the_given_one():
    assert python("import os; print(os.environ['X'])", env={"X": "y"}).stdout == "y\n"


def test_a_process_that_takes_too_long_is_ended():
    done = python("import time; time.sleep(600)", timeout_s=0.5)
    assert done.timed_out
    assert done.reason().endswith("the time limit")


CHILD = """
import os, pathlib, signal, sys
from qwen_asr_jax import processes
def stop(*_):
    processes.end_all()
    os._exit(7)
signal.signal(signal.SIGTERM, stop)
code = "import os, pathlib, time; pathlib.Path({path!r}).write_text(str(os.getpid())); time.sleep(600)"
processes.run([sys.executable, "-c", code])
"""


def test_ending_all_ends_children_of_children(tmp_path):
    """A child that starts children of its own is given the time to end them."""
    path = tmp_path / "pid"
    found = []
    waiting = threading.Thread(target=lambda: found.append(python(CHILD.format(path=str(path)))))
    waiting.start()
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    processes.end_all()
    waiting.join(timeout=60)
    assert found[0].status == 7
    assert not processes._running
    line = pathlib.Path(f"/proc/{path.read_text()}/cmdline")
    assert not line.exists() or not line.read_bytes()  # gone, or waiting for whoever adopted it to bury it


def test_a_process_that_will_not_listen_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    assert python(code, timeout_s=1.0).status == -9


def test_a_program_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        processes.run(["/nonexistent/program"])


def test_a_signal_while_a_process_starts_takes_it_along(monkeypatch):
    """It comes when the child runs already, but nobody has noted yet that it does."""
    popen = processes.subprocess.Popen

    def start_and_signal(*args, **kwargs):
        child = popen(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return child

    monkeypatch.setattr(processes.subprocess, "Popen", start_and_signal)
    before = signal.signal(signal.SIGTERM, lambda number, frame: processes.end_all())
    try:
        done = python("import time; time.sleep(30)")
        handler = signal.getsignal(signal.SIGTERM)
    finally:
        now = signal.signal(signal.SIGTERM, before)
    assert done.status == -signal.SIGTERM
    assert handler is now
    assert done.wall_s < 20
