"""Any audio input to a 16 kHz mono float32 waveform in [-1, 1].

Decoding is libsndfile's (through soundfile), resampling libsoxr's. The range and channel rules are the official package's:
peaks above 1 are scaled down, quiet audio is left quiet, channels are averaged. One deviation: integer arrays are scaled by
their full range (int16 by 1/32768), where the official package scales them by their own peak and so loses the level.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import struct
from typing import BinaryIO, TypeAlias

import numpy as np
import soundfile
import soxr

from qwen_asr_jax.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from qwen_asr_jax.errors import AudioError

AudioInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | tuple[np.ndarray, int]
"""A path, an encoded file as bytes or binary file object, a 16 kHz array, or `(array, sample_rate)`."""

_MAX_CHANNELS_FIRST = 8
_READABLE = "WAV, FLAC, OGG and MP3 are read; convert others with: ffmpeg -i INPUT -ar 16000 -ac 1 output.wav"


@dataclasses.dataclass(frozen=True)
class Waveform:
    """One clip ready for the front end.

    Attributes:
      name: what to call it in messages and results (a path, or a description).
      samples: float32 `[num_samples]`, 16 kHz mono within [-1, 1], at least `MIN_SAMPLES` long.
      duration_s: seconds of audio given, before padding to the minimum length.
      warnings: one line each, about input that is odd but usable.
    """

    name: str
    samples: np.ndarray
    duration_s: float
    warnings: tuple[str, ...] = ()


def describe(source: AudioInput) -> str:
    """A short name for an input: the path, or what kind of object it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, tuple):
        return "<array>"
    if isinstance(source, np.ndarray):
        return "<array>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def read_audio(source: AudioInput, name: str | None = None) -> Waveform:
    """Decodes, mixes to mono, resamples to 16 kHz and checks one input.

    Args:
      source: see `AudioInput`. Arrays are `[num_samples]` or two-dimensional with channels on either axis (the first, if
        it has at most 8 entries and fewer than the second); floats are taken as they are, integers by their full range.
      name: what to call the input in messages; by default its path or kind.

    Raises:
      AudioError: the file is missing, a folder, empty, not audio, or has no samples; samples are NaN or infinite; the
        array or its sample rate make no sense.
    """
    name = name or describe(source)
    warnings: list[str] = []
    if isinstance(source, np.ndarray):
        array, rate = _from_array(source, name), SAMPLE_RATE
    elif isinstance(source, tuple):
        if len(source) != 2 or not isinstance(source[0], np.ndarray):
            raise AudioError(f"{name}: a tuple must be (array, sample_rate)")
        array, rate = _from_array(source[0], name), source[1]
    else:
        array, rate = _decode(source, name, warnings)
    if not isinstance(rate, int | np.integer) or rate <= 0:
        raise AudioError(f"{name}: sample rate must be a positive integer, got {rate!r}")
    return _finish(array, int(rate), name, warnings)


def raw_s16le(data: bytes, name: str) -> Waveform:
    """Headerless 16-bit little-endian 16 kHz mono PCM, as a recorder pipes it.

    Raises:
      AudioError: there is no sample, or half a sample is left over at the end.
    """
    if len(data) % 2:
        raise AudioError(f"{name}: {len(data)} bytes are no whole number of 16-bit samples; is it really s16le?")
    return _finish(_from_array(np.frombuffer(data, dtype="<i2"), name), SAMPLE_RATE, name, [])


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    """Float32 `[num_samples, channels]` or `[num_samples]` from an array of any real dtype."""
    if array.ndim == 2 and array.shape[0] <= _MAX_CHANNELS_FIRST and array.shape[1] > array.shape[0]:
        array = array.T
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: an audio array has one axis (samples) or two (samples, channels), got {array.shape}")
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "i":
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype == np.uint8:  # the one unsigned PCM format in use: 8-bit WAV, silence at 128
        return (array.astype(np.float32) - 128) / 128
    raise AudioError(f"{name}: arrays of {array.dtype} are not audio; give floats in [-1, 1] or integer PCM")


def _decode(source: str | os.PathLike[str] | bytes | BinaryIO, name: str, warnings: list[str]) -> tuple[np.ndarray, int]:
    data: bytes | None = None
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source)
        if path.is_dir():
            raise AudioError(f"{name}: is a folder, not an audio file")
        try:
            with path.open("rb") as f:
                head = f.read(12)
            size = path.stat().st_size
        except FileNotFoundError:
            raise AudioError(f"{name}: no such file") from None
        except OSError as e:
            raise AudioError(f"{name}: cannot be read ({e.strerror})") from None
        opened: str | io.BytesIO = str(path)
    else:
        data = source if isinstance(source, bytes) else source.read()
        if not isinstance(data, bytes):
            raise AudioError(f"{name}: the file object must be opened in binary mode")
        head, size, opened = data[:12], len(data), io.BytesIO(data)
    if size == 0:
        raise AudioError(f"{name}: is empty (0 bytes)")
    try:
        with soundfile.SoundFile(opened) as f:
            expected, rate, container = f.frames, f.samplerate, f.format
            array = f.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as e:
        reason = str(getattr(e, "error_string", e)).strip().rstrip(".")
        raise AudioError(f"{name}: cannot be decoded ({reason}). {_READABLE}") from None
    if len(array) == 0:
        raise AudioError(f"{name}: has a header but no samples")
    missing = _missing_bytes(head, data if data is not None else pathlib.Path(str(opened)), size)
    if missing:
        warnings.append(f"{name}: cut off, {missing} bytes are missing; what is there is used ({len(array) / rate:.2f} s)")
    elif container != "MP3" and len(array) < expected < 2**62:  # MP3 headers only estimate their length
        warnings.append(f"{name}: cut off, {len(array)} of {expected} samples could be read; they are used")
    return array, rate


def _missing_bytes(head: bytes, source: bytes | pathlib.Path, size: int) -> int:
    """Bytes that a WAV header promises beyond the end of the file; 0 for other formats.

    libsndfile reads what is there and says nothing. Streams written to a pipe carry 0 or 0xFFFFFFFF as their length, which
    promises nothing.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return 0
    if isinstance(source, bytes):
        block = source[: 1 << 16]
    else:
        with source.open("rb") as f:
            block = f.read(1 << 16)
    at = 12
    while at + 8 <= len(block):
        tag, length = struct.unpack_from("<4sI", block, at)
        if tag == b"data":
            promised = at + 8 + length
            return 0 if length in (0, 0xFFFFFFFF, 0x7FFFFFFF) else max(0, promised - size)
        at += 8 + length + length % 2
    return 0


def _finish(array: np.ndarray, rate: int, name: str, warnings: list[str]) -> Waveform:
    """Mono, 16 kHz, range and minimum length, with the checks that need samples."""
    if array.size == 0:
        raise AudioError(f"{name}: has no samples")
    duration_s = len(array) / rate
    mono = array.mean(axis=1, dtype=np.float32) if array.ndim == 2 else array
    if not np.isfinite(mono).all():
        raise AudioError(f"{name}: has NaN or infinite samples; repair the recording or replace them with zeros")
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    peak = float(np.max(np.abs(mono), initial=0.0))
    if peak > 1.0:
        mono = mono / np.float32(peak)
    samples = np.clip(mono, -1.0, 1.0).astype(np.float32, copy=False)
    if len(samples) < MIN_SAMPLES:
        samples = np.pad(samples, (0, MIN_SAMPLES - len(samples)))
    return Waveform(name=name, samples=np.ascontiguousarray(samples), duration_s=duration_s, warnings=tuple(warnings))


def duration_seconds(source: AudioInput) -> float | None:
    """Seconds of audio a file claims in its header; None when that is not known without decoding it."""
    if not isinstance(source, str | os.PathLike):
        return None
    try:
        return float(soundfile.info(os.fspath(source)).duration)
    except (soundfile.LibsndfileError, RuntimeError, OSError):
        return None
