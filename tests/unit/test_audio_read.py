"""Every kind of audio input becomes the same 16 kHz mono waveform, and what cannot is refused with one line."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
import soundfile

from qwen_asr_jax.audio.frames import MIN_SAMPLES
from qwen_asr_jax.audio.read import raw_s16le, read_audio
from qwen_asr_jax.errors import AudioError
from tests.audio_samples import RATE, synthetic

FORMATS = {  # container, subtype, extension: largest error of one sample, mean error
    ("WAV", "PCM_U8", "wav"): (1 / 128, 1 / 128),
    ("WAV", "PCM_16", "wav"): (1 / 32768, 1 / 32768),
    ("WAV", "PCM_24", "wav"): (2.0**-23, 2.0**-23),
    ("WAV", "PCM_32", "wav"): (2.0**-24, 2.0**-24),
    ("WAV", "FLOAT", "wav"): (0, 0),
    ("WAV", "DOUBLE", "wav"): (0, 0),
    ("WAVEX", "PCM_16", "wav"): (1 / 32768, 1 / 32768),
    ("FLAC", "PCM_16", "flac"): (1 / 32768, 1 / 32768),
    ("FLAC", "PCM_24", "flac"): (2.0**-23, 2.0**-23),
    ("OGG", "VORBIS", "ogg"): (0.3, 0.01),
    ("MP3", "MPEG_LAYER_III", "mp3"): (0.15, 0.01),
}


@pytest.fixture(scope="module")
def clip():
    return synthetic(1.5, seed=3)


def encoded(samples: np.ndarray, rate: int = RATE, container: str = "WAV", subtype: str = "PCM_16") -> bytes:
    with io.BytesIO() as f:
        soundfile.write(f, samples, rate, format=container, subtype=subtype)
        return f.getvalue()


def sine(hertz: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def check(waveform, num_samples: int) -> None:
    """What holds for every waveform."""
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.ndim == 1
    assert waveform.samples.flags.c_contiguous
    assert len(waveform.samples) == max(num_samples, MIN_SAMPLES)
    assert np.abs(waveform.samples).max() <= 1


def assert_refused(source, *parts: str, **options) -> None:
    """`source` raises one line that contains all `parts`."""
    with pytest.raises(AudioError) as e:
        read_audio(source, **options)
    message = str(e.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("container, subtype, extension", FORMATS)
def test_every_format_decodes_to_the_same_waveform(tmp_path, clip, container, subtype, extension):
    largest, mean = FORMATS[container, subtype, extension]
    path = tmp_path / f"clip.{extension}"
    path.write_bytes(encoded(clip, container=container, subtype=subtype))
    waveform = read_audio(path)
    check(waveform, len(clip))
    error = np.abs(waveform.samples - clip)
    assert error.max() <= largest
    assert error.mean() <= mean
    assert waveform.duration_s == 1.5
    assert waveform.warnings == ()


@pytest.mark.parametrize("suffix", ["", ".txt", ".mp3", ".raw", ".RAW"])
def test_content_decides_and_not_the_file_name(tmp_path, clip, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(encoded(clip, subtype="FLOAT"))
    np.testing.assert_array_equal(read_audio(path).samples, clip)


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "file object", "array", "float64", "array and rate"])
def test_every_kind_of_input_gives_the_same_samples(tmp_path, clip, kind):
    data = encoded(clip, subtype="FLOAT")
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    source, name = {
        "str": (str(path), str(path)),
        "path": (path, str(path)),
        "bytes": (data, f"<{len(data)} bytes>"),
        "file object": (io.BytesIO(data), "<BytesIO>"),
        "array": (clip, "<array>"),
        "float64": (clip.astype(np.float64), "<array>"),
        "array and rate": ((clip, RATE), "<array>"),
    }[kind]
    waveform = read_audio(source)
    check(waveform, len(clip))
    np.testing.assert_array_equal(waveform.samples, clip)
    assert waveform.name == name
    assert waveform.duration_s == 1.5


def test_an_open_file_is_called_by_its_path_unless_a_name_is_given(tmp_path, clip):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(clip))
    with path.open("rb") as f:
        assert read_audio(f).name == str(path)
        f.seek(0)
        assert read_audio(f, name="talk").name == "talk"


@pytest.mark.parametrize("dtype", ["int8", "int16", ">i2", "int32", "int64"])
def test_signed_integers_are_scaled_by_their_full_range(dtype):
    info = np.iinfo(dtype)
    array = np.full(MIN_SAMPLES, 0, dtype)
    array[:4] = [info.min, info.max, info.min // 2, 0]
    samples = read_audio(array).samples
    np.testing.assert_allclose(samples[:4], [-1, info.max / -info.min, -0.5, 0], rtol=1e-7)


def test_int16_is_divided_by_32768_whatever_its_peak():
    array = np.full(MIN_SAMPLES, 100, np.int16)
    np.testing.assert_array_equal(read_audio(array).samples, np.float32(100 / 32768))


def test_uint8_is_silent_at_128():
    array = np.full(MIN_SAMPLES, 128, np.uint8)
    array[:3] = [0, 255, 192]
    np.testing.assert_array_equal(read_audio(array).samples[:4], np.float32([-1, 127 / 128, 0.5, 0]))


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("axis", ["last", "first"])
def test_channels_are_averaged_on_either_axis(clip, channels, axis):
    gains = np.linspace(0.5, 1, channels, dtype=np.float32)
    array = np.outer(clip, gains) if axis == "last" else np.outer(gains, clip)
    waveform = read_audio(array)
    check(waveform, len(clip))
    np.testing.assert_allclose(waveform.samples, clip * gains.mean(), atol=1e-7)
    assert waveform.duration_s == 1.5


def test_more_than_eight_rows_are_samples():
    assert read_audio(np.zeros((9, 10), np.float32)).duration_s == 9 / RATE
    assert read_audio(np.zeros((8, 10), np.float32)).duration_s == 10 / RATE
    assert read_audio(np.zeros((2, 2), np.float32)).duration_s == 2 / RATE


@pytest.mark.parametrize("channels", [2, 8])
def test_files_with_many_channels_are_averaged(clip, channels):
    waveform = read_audio(encoded(np.stack([clip] + [np.zeros_like(clip)] * (channels - 1), 1), subtype="FLOAT"))
    np.testing.assert_allclose(waveform.samples, clip / channels, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 192_000])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_resampled_sine_stays_that_sine(rate, as_file):
    array = sine(440, 1, rate)
    waveform = read_audio(encoded(array, rate, subtype="FLOAT") if as_file else (array, rate))
    check(waveform, RATE)
    assert waveform.duration_s == 1
    inner = slice(1000, -1000)  # the filter sees silence beyond the ends
    np.testing.assert_allclose(waveform.samples[inner], sine(440, 1, RATE)[inner], atol=1e-3)


def test_frequencies_above_the_new_nyquist_vanish():
    samples = read_audio((sine(12_000, 1, 48_000), 48_000)).samples
    assert np.abs(samples[1000:-1000]).max() < 1e-3


def test_peaks_above_one_are_scaled_down_and_quiet_stays_quiet(clip):
    loud = clip * np.float32(8 / np.abs(clip).max())
    samples = read_audio(loud).samples
    np.testing.assert_allclose(samples, loud / 8, atol=1e-6)
    assert np.abs(samples).max() == 1
    quiet = clip * np.float32(1e-4)
    np.testing.assert_array_equal(read_audio(quiet).samples, quiet)
    np.testing.assert_allclose(read_audio(encoded(loud, subtype="FLOAT")).samples, loud / 8, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_full_scale_clipped_audio_stays_within_range(rate):
    square = np.sign(sine(300, 1, rate))
    waveform = read_audio((square, rate))
    check(waveform, RATE)
    assert np.abs(waveform.samples).max() > 0.9


def test_digital_silence_is_audio(tmp_path):
    path = tmp_path / "silence.wav"
    path.write_bytes(encoded(np.zeros(2 * RATE, np.float32)))
    for source in (path, np.zeros(2 * RATE, np.int16)):
        waveform = read_audio(source)
        check(waveform, 2 * RATE)
        assert not waveform.samples.any()
        assert waveform.duration_s == 2


@pytest.mark.parametrize("as_file", [True, False])
def test_one_sample_is_padded_to_half_a_second(as_file):
    array = np.array([0.25], np.float32)
    waveform = read_audio(encoded(array, subtype="FLOAT") if as_file else array)
    assert waveform.duration_s == 1 / RATE
    assert waveform.samples.shape == (8000,)
    assert waveform.samples[0] == np.float32(0.25)
    assert not waveform.samples[1:].any()


def test_one_sample_at_a_high_rate_is_still_padded():
    waveform = read_audio((np.array([0.25], np.float32), 192_000))
    assert waveform.duration_s == 1 / 192_000
    assert waveform.samples.shape == (8000,)


@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_that_is_cut_off_is_read_with_a_warning(tmp_path, clip, as_path, subtype):
    whole = encoded(clip, subtype=subtype)
    data = whole[: len(whole) // 2]
    path = tmp_path / "cut.wav"
    path.write_bytes(data)
    waveform = read_audio(path if as_path else data)
    (warning,) = waveform.warnings
    assert warning.startswith(f"{waveform.name}: cut off, {len(whole) - len(data)} bytes are missing")
    assert "\n" not in warning
    kept = round(waveform.duration_s * RATE)
    assert len(clip) // 2 - 40 < kept <= len(clip) // 2
    np.testing.assert_allclose(waveform.samples[:kept], clip[:kept], atol=1 / 32768)


def streamed(samples: np.ndarray, data_length: int, riff_length: int | None = None) -> bytes:
    """A WAV as a recorder pipes it: the lengths in its header are what it guessed when it began."""
    data = (samples * 32767).astype("<i2").tobytes()
    riff_length = min(0xFFFFFFFF, data_length + 36) if riff_length is None else riff_length
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", riff_length, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return header + struct.pack("<4sI", b"data", data_length) + data


@pytest.mark.parametrize(
    "lengths",
    [(0xFFFFFFFF,), (0x7FFFFFFF,), (0x7FFFF000,), (0x80000000,), (0, 8), (0, 36), (0, 0)],
    ids=["ffmpeg", "largest int", "sox", "arecord", "0 in 8", "0 in 36", "0 in 0"],
)
@pytest.mark.parametrize("as_path", [True, False])
def test_a_streamed_wav_gives_no_warning(tmp_path, clip, lengths, as_path):
    path = tmp_path / "stream.wav"
    path.write_bytes(streamed(clip, *lengths))
    waveform = read_audio(path if as_path else path.read_bytes())
    assert waveform.warnings == ()
    check(waveform, len(clip))
    np.testing.assert_allclose(waveform.samples, clip, atol=1e-4)


def test_raw_pcm_is_16_bit_little_endian(clip):
    data = (clip * 32767).astype("<i2").tobytes()
    waveform = raw_s16le(data, "-")
    check(waveform, len(clip))
    np.testing.assert_array_equal(waveform.samples, np.frombuffer(data, "<i2").astype(np.float32) / 32768)
    assert (waveform.name, waveform.duration_s, waveform.warnings) == ("-", 1.5, ())


def test_half_a_sample_of_raw_pcm_is_dropped_with_a_warning():
    waveform = raw_s16le(b"\0\x40" * 12_000 + b"\1", "mic")
    (warning,) = waveform.warnings
    assert warning.startswith("mic: cut off")
    assert waveform.duration_s == 12_000 / RATE
    np.testing.assert_array_equal(waveform.samples, np.float32(0.5))


@pytest.mark.parametrize("data", [b"", b"\0"])
def test_raw_pcm_without_samples_is_refused(data):
    with pytest.raises(AudioError, match=r"^mic: has no samples"):
        raw_s16le(data, "mic")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"This is a shopping list: bread, butter, cheese.\n" * 40, "ffmpeg -i"),
        (bytes(range(256)) * 8, "ffmpeg -i"),
        (b"RIFF", "ffmpeg -i"),
        (b"fLaC" + b"\0" * 60, "ffmpeg -i"),
        (encoded(np.zeros(0, np.float32)), "no samples"),
    ],
    ids=["empty", "text", "binary", "stub of a header", "broken header", "header without samples"],
)
@pytest.mark.parametrize("suffix", [".wav", ".raw"])
def test_files_that_hold_no_audio_are_refused(tmp_path, content, reason, suffix):
    path = tmp_path / f"thing{suffix}"
    path.write_bytes(content)
    assert_refused(path, f"{path}: ", reason)
    assert_refused(content, f"<{len(content)} bytes>: ", reason)
    assert_refused(io.BytesIO(content), "talk: ", reason, name="talk")


def test_paths_that_are_no_files_are_refused(tmp_path):
    assert_refused(tmp_path / "absent.wav", f"{tmp_path}/absent.wav: no such file")
    assert_refused(tmp_path, f"{tmp_path}: is a folder")
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file" / "x.wav", "Not a directory")
    assert_refused(str(tmp_path / ("x" * 300)), "too long")
    assert_refused("a\0b.wav", "a")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_samples_that_are_not_finite_are_refused(tmp_path, bad, channels, rate):
    array = np.zeros((RATE, channels), np.float32)
    array[5000] = bad
    array[6000] = bad * np.linspace(1, -1, channels, dtype=np.float32)
    path = tmp_path / "bad.wav"
    path.write_bytes(encoded(array, rate, subtype="FLOAT"))
    assert_refused(path, f"{path}: ", "NaN or infinite", "replace")
    assert_refused((array, rate), "<array>: ", "NaN or infinite")


@pytest.mark.parametrize(
    "source, reason",
    [
        (np.zeros((2, 2, 2), np.float32), "(2, 2, 2)"),
        (np.zeros((), np.float32), "()"),
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.zeros(10, np.complex64), "complex64"),
        (np.zeros(10, bool), "bool"),
        (np.zeros(10, np.uint16), "uint16"),
        (np.array(["x"]), "<U1"),
        (np.array([1e300] * 10), "infinite"),
        ((np.zeros(10, np.float32), 0), "sample rate"),
        ((np.zeros(10, np.float32), -RATE), "sample rate"),
        ((np.zeros(10, np.float32), 16_000.5), "sample rate"),
        ((np.zeros(10, np.float32), "16k"), "sample rate"),
        ((np.zeros(10, np.float32), None), "sample rate"),
        ((RATE, np.zeros(10, np.float32)), "(array, sample_rate)"),
        ((np.zeros(10, np.float32),), "(array, sample_rate)"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(source, reason):
    assert_refused(source, "<array>: ", reason)


@pytest.mark.parametrize("source", [None, 3, 0.5, [0.0, 0.1], object()])
def test_objects_that_are_no_input_are_refused(source):
    assert_refused(source, type(source).__name__)


def test_file_objects_in_text_mode_are_refused(tmp_path, clip):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(clip))
    assert_refused(io.StringIO("RIFF"), "binary mode")
    with path.open(encoding="utf-8") as f:
        assert_refused(f, f"{path}: ", "binary mode")


def test_reading_prints_and_warns_nothing(tmp_path, clip, capfd):
    path = tmp_path / "cut.wav"
    path.write_bytes(encoded(clip)[:-1000])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_audio(path).warnings
    assert capfd.readouterr() == ("", "")


def test_a_flac_file_cut_off_in_the_middle_is_read_with_a_warning(tmp_path):
    whole = synthetic(4.0)
    soundfile.write(tmp_path / "whole.flac", whole, RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:-20_000])
    waveform = read_audio(tmp_path / "cut.flac")
    assert 1.0 < waveform.duration_s < 4.0
    assert "cut off" in waveform.warnings[0]
    np.testing.assert_allclose(waveform.samples, whole[: len(waveform.samples)], atol=1e-4)


def test_a_flac_stream_that_does_not_know_its_length_is_read_to_its_end(tmp_path):
    whole = synthetic(2.5)
    soundfile.write(tmp_path / "stream.flac", whole, RATE)
    content = bytearray((tmp_path / "stream.flac").read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    (tmp_path / "stream.flac").write_bytes(content)
    for source in (tmp_path / "stream.flac", bytes(content)):
        waveform = read_audio(source)
        np.testing.assert_allclose(waveform.samples, whole, atol=1e-4)
        assert waveform.warnings == ()
