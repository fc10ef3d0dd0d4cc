"""Child processes: what they said, how they ended, and that none outlives its time."""

from __future__ import annotations

import sys
import threading

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


def test_ending_all_ends_children_of_children():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    found = []
    waiting = threading.Thread(target=lambda: found.append(python(code)))
    waiting.start()
    while not processes._running:
        pass
    processes.end_all()
    waiting.join(timeout=60)
    assert found[0].status == -9
    assert not processes._running


def test_a_program_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        processes.run(["/nonexistent/program"])
