"""The bundled demonstration model and clips: what runs where no model was named.

A small model of the real architecture, trained on synthetic speech; `assets/demo_model/README.md` says what it knows.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

_ASSETS = pathlib.Path(__file__).parent / "assets"

MODEL_DIR = _ASSETS / "demo_model"
"""An ordinary checkpoint in the original layout."""

NOTICE = (
    "no --model_dir: this is the bundled demonstration model, which knows some 500 words of English and German, learnt from a"
    " speech synthesiser, and writes some of these for anything else it hears, recordings of people included; for all of"
    f" speech: {os.path.join(os.path.dirname(sys.executable), 'hf')} download Qwen/Qwen3-ASR-0.6B --local-dir"
    " Qwen3-ASR-0.6B, then --model_dir=Qwen3-ASR-0.6B"
)
"""What scripts say when they use it unasked."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """A bundled clip: a FLAC file, and what is said in it (nothing in `silence`)."""

    path: pathlib.Path
    text: str


def clips() -> dict[str, Clip]:
    """The bundled clips by name: `short`, `english`, `german`, `long`, `silence`."""
    paths = sorted((_ASSETS / "clips").glob("*.flac"))
    return {path.stem: Clip(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip()) for path in paths}
