"""Any audio input to a 16 kHz mono float32 waveform in [-1, 1].

Decoding is libsndfile's (through soundfile), resampling libsoxr's. The range and channel rules are the official package's:
peaks above 1 are scaled down, quiet audio is left quiet, channels are averaged. One deviation: integer arrays are scaled by
their full range (int16 by 1/32768), where the official package scales them by their own peak and so loses the level.
"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import struct
from typing import BinaryIO, TypeAlias

import numpy as np
import soundfile
import soxr

from qwen_asr_jax.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from qwen_asr_jax.errors import AudioError

AudioInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | tuple[np.ndarray, int]
"""A path, an encoded file as bytes or binary file object, a 16 kHz array, or `(array, sample_rate)`. Whatever NumPy can turn
into an array (JAX arrays, torch tensors on the CPU) counts as one."""

_MAX_CHANNELS_FIRST = 8
_BLOCK_FRAMES = 1 << 14
_FIRST_BLOCK_SAMPLES = 1 << 22
"""Of all channels, 16 MB: most files come whole in one block, without a copy, and a header that lies costs no more."""
_MAX_RATE = 10_000_000  # Hz; beyond any recording, and a resampler would never end
_UNKNOWN_LENGTH = 0x7FFFF000
"""WAV data lengths from here on are what programs write that stream into a pipe: they promise nothing."""
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
    if isinstance(source, bytes | bytearray | memoryview):
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
    rate: object = SAMPLE_RATE
    if isinstance(source, tuple):
        if len(source) != 2:
            raise AudioError(f"{name}: a tuple must be (array, sample_rate)")
        array, rate = _from_array(_as_array(source[0], name), name), source[1]
    elif isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read"):
        array, rate = _decode(source, name, warnings)
    else:
        array = _from_array(_as_array(source, name), name)
    if not isinstance(rate, int | float | np.integer | np.floating) or not 0 < rate <= _MAX_RATE or rate != int(rate):
        raise AudioError(f"{name}: sample rate must be a whole number of hertz from 1 to {_MAX_RATE}, got {rate!r}")
    return _finish(array, int(rate), name, warnings)


def raw_s16le(data: bytes, name: str) -> Waveform:
    """Headerless 16-bit little-endian 16 kHz mono PCM, as a recorder pipes it.

    Raises:
      AudioError: there is no sample.
    """
    warnings = []
    if len(data) % 2:
        warnings.append(f"{name}: cut off in the middle of a sample; its one byte is dropped")
        data = data[:-1]
    return _finish(_from_array(np.frombuffer(data, dtype="<i2"), name), SAMPLE_RATE, name, warnings)


def _as_array(source: object, name: str) -> np.ndarray:
    if not hasattr(source, "__array__"):
        raise AudioError(
            f"{name}: {type(source).__name__} is no audio; give a path, bytes, a file object, an array or (array, sample_rate)"
        )
    return np.asarray(source)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    """Float32 `[num_samples, channels]` or `[num_samples]` from an array of any real dtype."""
    if array.ndim == 2 and array.shape[0] <= _MAX_CHANNELS_FIRST and array.shape[1] > array.shape[0]:
        array = array.T
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: an audio array has one axis (samples) or two (samples, channels), got {array.shape}")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
            return array.astype(np.float32)
    if array.dtype.kind == "i":
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype == np.uint8:  # the one unsigned PCM format in use: 8-bit WAV, silence at 128
        return (array.astype(np.float32) - 128) / 128
    raise AudioError(f"{name}: arrays of {array.dtype} are not audio; give floats in [-1, 1] or integer PCM")


def _decode(source: object, name: str, warnings: list[str]) -> tuple[np.ndarray, int]:
    """Float32 `[num_samples, channels]` and sample rate of an encoded file."""
    try:
        data = _open(source, name)
    except FileNotFoundError:
        raise AudioError(f"{name}: no such file") from None
    except (OSError, ValueError) as e:
        raise AudioError(f"{name}: cannot be read ({getattr(e, 'strerror', None) or e})") from None
    with data:
        size = data.seek(0, os.SEEK_END)
        data.seek(0)
        if size == 0:
            raise AudioError(f"{name}: is empty (0 bytes)")
        at, promised = _wav_data_length(data)
        if at and promised == 0 and size > at:  # a recorder that was stopped before it could fill the length in
            data = _with_length(data, at, size - at)
        try:
            # By number where there is one: soundfile takes a name that ends in .raw for headerless audio.
            number = data.fileno() if isinstance(data, io.BufferedReader) else None
            if number is not None:
                os.lseek(number, 0, os.SEEK_SET)
            with soundfile.SoundFile(data if number is None else number, closefd=False) as f:
                expected, rate, container = f.frames, f.samplerate, f.format
                # Not all at once: a streamed FLAC claims 2^63 frames, and a cut-off one fails at its end.
                blocks: list[np.ndarray] = []
                most = max(_BLOCK_FRAMES, min(expected, _FIRST_BLOCK_SAMPLES // f.channels))
                while len(block := _next_block(f, most, fails=not blocks)):
                    blocks.append(block)
                    most = _BLOCK_FRAMES
        except (soundfile.LibsndfileError, RuntimeError, ValueError, MemoryError) as e:
            reason = str(getattr(e, "error_string", e)).strip().rstrip(".")
            raise AudioError(f"{name}: cannot be decoded ({reason}). {_READABLE}") from None
    if not blocks:
        raise AudioError(f"{name}: has a header but no samples")
    array = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
    missing = at + promised - size if at and 0 < promised < _UNKNOWN_LENGTH else 0
    if missing > 0:
        warnings.append(f"{name}: cut off, {missing} bytes are missing; what is there is used ({len(array) / rate:.2f} s)")
    elif container != "MP3" and len(array) < expected < 2**62:  # MP3 headers only estimate their length
        warnings.append(f"{name}: cut off, {len(array)} of {expected} samples could be read; they are used")
    return array, rate


def _next_block(f: soundfile.SoundFile, most: int, fails: bool) -> np.ndarray:
    """The next `[n, channels]`, n at most `most`, none at the end; where decoding breaks off, what came before, or an error
    (`fails`).
    """
    block = np.full((most, f.channels), np.nan, np.float32)
    try:
        read: np.ndarray = f.read(out=block)
        return read
    except soundfile.LibsndfileError:
        # soundfile reports the last, short block of a file of unknown length as an error, too, but has filled it by then.
        filled = block[~np.isnan(block).any(axis=1)]
        if fails and not len(filled):
            raise
        return filled


def _open(source: object, name: str) -> BinaryIO:
    """A seekable binary file; what cannot be sought in (a pipe) is read to its end first."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            raise AudioError(f"{name}: is a folder, not an audio file")
        f: BinaryIO = open(source, "rb")  # noqa: SIM115 - the caller closes it
        if stat.S_ISREG(os.fstat(f.fileno()).st_mode):
            return f
        with f:
            return io.BytesIO(f.read())
    data = None if isinstance(source, io.TextIOBase) else source.read()  # type: ignore[attr-defined]
    if not isinstance(data, bytes):
        raise AudioError(f"{name}: the file object must be opened in binary mode")
    return io.BytesIO(data)


def _wav_data_length(data: BinaryIO) -> tuple[int, int]:
    """Where a WAV file's samples start and how many bytes its header promises; (0, 0) for other formats.

    libsndfile reads a cut-off file without a word, so this is looked at here.
    """
    block = data.read(1 << 16)
    data.seek(0)
    if block[:4] != b"RIFF" or block[8:12] != b"WAVE":
        return 0, 0
    at = 12
    while at + 8 <= len(block):
        tag, length = struct.unpack_from("<4sI", block, at)
        if tag == b"data":
            return at + 8, length
        at += 8 + length + length % 2
    return 0, 0


def _with_length(data: BinaryIO, at: int, length: int) -> BinaryIO:
    content = bytearray(data.read())
    struct.pack_into("<I", content, at - 4, min(length, 0xFFFFFFFF))
    return io.BytesIO(content)


def _finish(array: np.ndarray, rate: int, name: str, warnings: list[str]) -> Waveform:
    """Mono, 16 kHz, range and minimum length, with the checks that need samples."""
    if array.size == 0:
        raise AudioError(f"{name}: has no samples")
    duration_s = len(array) / rate
    if not np.isfinite(array).all():
        raise AudioError(f"{name}: has NaN or infinite samples; repair the recording or replace them with zeros")
    mono = _mono(array) if array.ndim == 2 else array
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    peak = float(np.max(np.abs(mono), initial=0.0))
    if peak > 1.0:
        mono = mono / np.float32(peak)
    samples = np.clip(mono, -1.0, 1.0).astype(np.float32, copy=False)
    if len(samples) < MIN_SAMPLES:
        samples = np.pad(samples, (0, MIN_SAMPLES - len(samples)))
    return Waveform(name=name, samples=np.ascontiguousarray(samples), duration_s=duration_s, warnings=tuple(warnings))


def _mono(array: np.ndarray) -> np.ndarray:
    """The channels' mean, `[num_samples]`; column by column, as NumPy's own along so short an axis takes ten times as long."""
    total = array[:, 0].copy()
    for channel in range(1, array.shape[1]):
        total += array[:, channel]
    return total / np.float32(array.shape[1])


def duration_seconds(source: AudioInput) -> float | None:
    """Seconds of audio a regular file claims in its header; None when that is not known without reading it."""
    try:
        if not isinstance(source, str | os.PathLike) or not os.path.isfile(source):
            return None
        with open(source, "rb") as f, soundfile.SoundFile(f.fileno(), closefd=False) as audio:
            seconds = audio.frames / audio.samplerate
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError):
        return None
    return seconds if seconds < 1e9 else None
