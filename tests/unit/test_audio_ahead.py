"""Reading ahead in threads: order, errors, who reads what and when, how much is held, and that the threads end."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from qwen_asr_jax.audio import ahead
from qwen_asr_jax.audio.ahead import AnyThread, ReadAhead, default_workers
from qwen_asr_jax.audio.read import Waveform, read_audio
from qwen_asr_jax.errors import AudioError
from tests.audio_samples import RATE, synthetic

ROOT = pathlib.Path(__file__).parents[2]
WAIT_S = 60  # for what must come; a test that waits that long has failed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Six files of several formats, rates and lengths."""
    folder = tmp_path_factory.mktemp("audio")
    paths = []
    for i, (suffix, rate) in enumerate(
        (("wav", RATE), ("flac", 44100), ("mp3", 48000), ("wav", 8000), ("ogg", RATE), ("flac", RATE))
    ):
        samples = synthetic(0.6 + 0.2 * i, i, rate)
        path = folder / f"{i}.{suffix}"
        soundfile.write(path, np.stack([samples, -samples / 2], axis=1) if i % 2 else samples, rate)
        paths.append(path)
    return paths


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "audio-reader"]


def clip(name: str, seconds: float = 1.0) -> Waveform:
    return Waveform(name, np.zeros(round(seconds * RATE), np.float32), seconds)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_kind_of_source_in_order(files, workers):
    array = synthetic(0.7, 9)
    made = clip("made")
    sources = [
        *files,
        str(files[2]),
        files[1].read_bytes(),
        io.BytesIO(files[0].read_bytes()),
        (array, 24000),
        array,
        made,
        lambda: clip("called"),
        AnyThread(lambda: clip("any thread")),
        *files,
    ]
    with ReadAhead(sources, workers, clips=4) as reads:
        found = list(reads)
    assert len(found) == len(sources)
    assert all(read.load_ms >= 0 for read in found)
    assert found[11].found is made
    assert [read.found.name for read in found[12:14]] == ["called", "any thread"]
    for i, source in [*enumerate(sources[:8]), (9, sources[9]), (10, array), *enumerate(files, 14)]:
        wanted = read_audio(source)
        assert (found[i].found.name, found[i].found.duration_s) == (wanted.name, wanted.duration_s)
        np.testing.assert_array_equal(found[i].found.samples, wanted.samples)


def test_errors_are_those_of_reading_at_once_and_in_their_place(files, tmp_path):
    """Many at a time: libsndfile keeps the reason why a file cannot be opened in one place for all threads."""
    for name, content in {"text.wav": b"no audio at all", "broken.flac": b"fLaC" + bytes(500), "empty.wav": b""}.items():
        (tmp_path / name).write_bytes(content)
    bad = [tmp_path / "text.wav", tmp_path / "broken.flac", tmp_path / "empty.wav", tmp_path / "absent.wav", tmp_path]
    wanted = []
    for path in bad:
        with pytest.raises(AudioError) as e:
            read_audio(path)
        wanted.append(str(e.value))
    sources = [path for each in bad for path in (each, *files[:2])] * 10
    with ReadAhead(sources, workers=4, clips=32) as reads:
        found = [read.found for read in reads]
    assert [str(each) for each in found if isinstance(each, AudioError)] == wanted * 10
    assert [each.name for each in found if isinstance(each, Waveform)] == [str(path) for path in files[:2]] * 50


def test_any_other_exception_is_raised_in_its_place():
    def broken():
        raise ZeroDivisionError("a bug")

    sources = [AnyThread(lambda: clip("first")), AnyThread(broken), AnyThread(lambda: clip("last"))]
    with ReadAhead(sources, workers=2, clips=3) as reads:
        assert next(reads).found.name == "first"
        with pytest.raises(ZeroDivisionError, match="a bug"):
            next(reads)
        assert next(reads).found.name == "last"


def test_threads_read_at_the_same_time_and_while_the_caller_is_busy():
    together, later = threading.Barrier(2, timeout=WAIT_S), threading.Event()

    def meet():
        together.wait()
        return clip("met")

    def said():
        later.set()
        return clip("read ahead")

    with ReadAhead([AnyThread(meet), AnyThread(meet), AnyThread(said)], workers=2, clips=2) as reads:
        assert next(reads).found.name == "met"
        assert later.wait(WAIT_S)  # nobody has asked for it
        assert [read.found.name for read in reads] == ["met", "read ahead"]


def test_functions_and_file_objects_are_read_by_the_caller_when_their_turn_comes(files):
    pulled, here = [], []

    class Opened(io.BytesIO):
        def read(self, *arguments):
            here.append(threading.current_thread())
            return super().read(*arguments)

    def called():
        here.append(threading.current_thread())
        return clip("called")

    def sources():
        for i, source in enumerate([files[0], called, Opened(files[0].read_bytes()), files[1], files[2]]):
            pulled.append(i)
            yield source

    with ReadAhead(sources(), workers=2, clips=4) as reads:
        next(reads)
        assert (pulled, here) == ([0, 1], [])
        next(reads)
        assert (pulled, len(here)) == ([0, 1], 1)
        next(reads)
        assert pulled == [0, 1, 2]
        next(reads)
        assert pulled == [0, 1, 2, 3, 4]
    assert set(here) == {threading.current_thread()}


@pytest.mark.parametrize("workers, most", [(0, 1), (2, 6)])
def test_no_more_clips_are_pulled_ahead_than_allowed(files, workers, most):
    pulled = 0

    def sources():
        nonlocal pulled
        for _ in range(40):
            pulled += 1
            yield files[0]

    with ReadAhead(sources(), workers, clips=5) as reads:
        for taken, _ in enumerate(reads, 1):
            assert pulled <= taken - 1 + most


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_seconds_are_held_than_allowed(workers):
    """Room for 25 s of clips of 10 s: two are held when another is begun, one by each thread, and one is being taken."""
    lock, too_many, begun, taken = threading.Lock(), threading.Event(), 0, 0

    def read():
        nonlocal begun
        with lock:
            begun += 1
            if begun - taken > 2 + workers + 1:
                too_many.set()
        return clip("10 s", 10)

    with ReadAhead([AnyThread(read)] * 30, workers, clips=30, seconds=25) as reads:
        for _ in reads:
            if not taken:
                assert not too_many.wait(0.1)  # nobody takes any
            with lock:
                taken += 1
    assert not too_many.is_set()
    assert (begun, taken) == (30, 30)


def test_threads_end_with_the_last_input_with_the_block_and_with_an_exception(files):
    reads = ReadAhead(files, workers=2, clips=2)
    assert len(list(reads)) == len(files)  # the fixture looks for threads that stay
    assert next(reads, None) is None
    with contextlib.suppress(KeyError), ReadAhead(files * 10, workers=2, clips=20) as reads:
        next(reads)
        raise KeyError
    assert list(reads) == []


def test_an_iterator_that_is_left_open_does_not_hold_up_the_end(tmp_path):
    """Neither by threads that wait for work, nor by one that waits for a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    soundfile.write(tmp_path / "a.wav", synthetic(0.5), RATE)
    code = (
        "import sys; from qwen_asr_jax.audio import ahead; ahead._JOIN_S = 0.1\n"
        f"reads = ahead.ReadAhead([{str(tmp_path / 'a.wav')!r}, {str(tmp_path / 'pipe')!r}], 3, clips=8)\n"
        "print(next(reads).found.duration_s, 'jax' in sys.modules); raise SystemExit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (3, "0.5 False\n", "")


@pytest.mark.parametrize("cores, wanted", [(1, 1), (2, 1), (8, 7), (96, 16)])
def test_one_thread_per_core_but_one(monkeypatch, cores, wanted):
    monkeypatch.setattr(ahead, "default_threads", lambda: cores)
    assert default_workers(8) == wanted
    assert default_workers(1) == 0
