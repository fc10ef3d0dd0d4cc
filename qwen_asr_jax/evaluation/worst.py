"""The clips with the most errors, reference above transcript, so that one sees where they part."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from qwen_asr_jax.evaluation.score import Score, Step
from qwen_asr_jax.evaluation.tables import run_labels

WIDTH = 110
"""Columns of a line, from which on words go to the next one."""


def worst_clips(scores: Sequence[Score], count: int) -> str:
    """For each run the `count` clips with the most errors, those of equal number by rate; "" if there are none with any."""
    labels = run_labels(score.result for score in scores)
    parts = []
    for key, label in labels.items():
        own = [score for score in scores if score.result.run.key == key and score.errors]
        own.sort(key=lambda score: (-score.errors, score.units))
        if own:
            parts.append(f"Most errors, {', '.join(text for text in label.values() if text)}:")
        parts += [_describe(score) for score in own[:count]]
    return "\n\n".join(parts)


def _describe(score: Score) -> str:
    result = score.result
    unit = "characters" if score.by_characters else "words"
    heard = f", heard as {result.language}" if result.language and result.language != result.reference_language else ""
    cut = ", cut at the token budget" if result.finish_reason == "length" else ""
    head = (
        f"{result.id}: {score.errors} errors in {score.units} {unit}"
        f" ({score.substitutions} S, {score.deletions} D, {score.insertions} I){heard}{cut}"
    )
    return "\n".join([head, *aligned(score.steps)])


def aligned(steps: Sequence[Step], width: int = WIDTH) -> list[str]:
    """Three lines per stretch of words: reference, transcript, and below each word that differs S, D or I."""
    lines: list[str] = []
    rows = ["", "", ""]
    for wanted, said in steps:
        kind = "" if wanted == said else "I" if not wanted else "D" if not said else "S"
        cells = (wanted or "*", said or "*", kind)
        columns = max(map(_columns, cells))
        if rows[0] and _columns(rows[0]) + columns > width:
            lines += _block(rows)
            rows = ["", "", ""]
        rows = [row + cell + " " * (columns - _columns(cell) + 1) for row, cell in zip(rows, cells, strict=True)]
    return lines + _block(rows) if rows[0] else lines


def _block(rows: Sequence[str]) -> list[str]:
    names = ("  reference   ", "  transcript  ", "              ")
    return [(name + row).rstrip() for name, row in zip(names, rows, strict=True) if row.strip()]


def _columns(text: str) -> int:
    """Columns that a terminal gives to the text: two for a Chinese character, none for a combining mark."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
