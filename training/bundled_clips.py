"""Makes the clips that are bundled with the package, in held-out voices, with their transcripts beside them.

python -m training.bundled_clips --output=qwen_asr_jax/assets/clips
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from qwen_asr_jax import cli
from qwen_asr_jax.audio.frames import SAMPLE_RATE
from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.files import new_directory
from training import augment
from training.clips import NO_SPEECH, Clip, write_clip
from training.synthesis import Voice, require_espeak, speak

flags.DEFINE_string("output", "clips", "Directory to make.")
FLAGS = flags.FLAGS

_PAUSE_S = 0.6
_LEVEL_DB = -20.0
"""Peak. FLAC files of loud speech are larger."""

CLIPS: dict[str, tuple[Voice, str, tuple[str, ...]]] = {
    "short": (Voice("en-us", "Andrea", 145, 50, 0), "English", ("Alpha bravo seven.",)),
    "english": (
        Voice("en-gb", "m3", 145, 50, 0),
        "English",
        (
            "Turn on the green light.",
            "Call oscar tango four nine.",
            "Today is Friday March twenty-one.",
            "Set the timer at forty-five minutes.",
        ),
    ),
    "german": (
        Voice("de", "f2", 148, 50, 0),
        "German",
        ("Öffne das Fenster und die Tür.", "Der Zug fährt um siebzehn Uhr.", "Grün weiß fünf."),
    ),
    "long": (
        Voice("en-us", "linda", 142, 50, 0),
        "English",
        (
            "Open the yellow door.",
            "Send the message on Wednesday.",
            "Seven three eight zero one.",
            "The ticket is thirty-two and the coffee is five.",
            "Play the music again please.",
            "Find the blue book in the white house.",
            "Zulu kilo whiskey November six.",
            "Go left and then right at the station.",
            "Show the weather on Sunday.",
        ),
    ),
}
"""Voice, language and sentences of each clip; the silence is made beside them."""


def make_clips(directory: pathlib.Path) -> None:
    """Writes `NAME.flac` and `NAME.txt` for every clip, and `silence`, whose transcript is empty."""
    with new_directory(directory) as partial:
        for name, (voice, language, sentences) in CLIPS.items():
            pieces = [speak(sentence, voice) for sentence in sentences]
            pause = int(_PAUSE_S * SAMPLE_RATE)
            length = sum(len(piece) + pause for piece in pieces) + pause
            samples = augment.at_level(augment.joined(pieces, [pause] * len(pieces), length), _LEVEL_DB)
            _write(partial, name, Clip(samples, language, " ".join(sentences), ()))
        hiss = augment.noise(4 * SAMPLE_RATE, np.random.default_rng(0), ("pink",), augment.TEST_NOISE)
        _write(partial, "silence", Clip(augment.at_level(hiss, -66.0), NO_SPEECH, "", ()))


def _write(directory: pathlib.Path, name: str, clip: Clip) -> None:
    write_clip(directory / f"{name}.flac", clip)
    (directory / f"{name}.txt").write_text(clip.text + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Makes the clips."""
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}")
    require_espeak()
    make_clips(pathlib.Path(FLAGS.output))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
