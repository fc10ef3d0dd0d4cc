"""Draws what is said: words in random order or a sentence template, written as the model writes it."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from training.lexicon import GROUP_WEIGHTS, LANGUAGES, Lexicon

MAX_WORDS = 14
"""Words of the longest random sequence."""

_TEMPLATE_SHARE = 0.25
_PAUSE_SHARE = 0.15
_GROUPS = tuple(GROUP_WEIGHTS)
_PROBABILITIES = np.array([GROUP_WEIGHTS[group] for group in _GROUPS])


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
      language: as the model names it.
      text: the transcript: a capital, a full stop, no other punctuation.
      spoken: what the synthesiser is given: the same with commas, at which it pauses.
    """

    language: str
    text: str
    spoken: str


def draw_sentence(rng: np.random.Generator) -> Sentence:
    """A sentence of 1 to `MAX_WORDS` words, or a template's; half of them in each language."""
    lexicon = LANGUAGES[rng.integers(len(LANGUAGES))]
    if rng.random() < _TEMPLATE_SHARE:
        words = _fill(lexicon, str(rng.choice(np.array(lexicon.templates))), rng)
        pauses = 0.0
    else:
        # Short ones more often: they are what the curriculum starts with, and what longer clips are joined from.
        longest = (3, 8, MAX_WORDS)[rng.choice(3, p=[0.4, 0.35, 0.25])]
        words = _random_words(lexicon, int(rng.integers(1, longest + 1)), rng)
        pauses = float(rng.choice([0.0, _PAUSE_SHARE, 2 * _PAUSE_SHARE]))
    commas = rng.random(len(words)) < pauses
    spoken = " ".join(word + ("," if comma else "") for word, comma in zip(words[:-1], commas, strict=False))
    return Sentence(lexicon.name, _written(words), f"{spoken} {words[-1]}.".strip())


def _random_words(lexicon: Lexicon, count: int, rng: np.random.Generator) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        group = _GROUPS[rng.choice(len(_GROUPS), p=_PROBABILITIES)]
        word = str(rng.choice(np.array(lexicon.groups[group])))
        # `twenty one` sounds like `twenty-one`: no ten is followed by a smaller number.
        if words and _is_ten(words[-1], lexicon) and group in ("digit", "number"):
            continue
        words += word.split()
    return words[:count]


def _is_ten(word: str, lexicon: Lexicon) -> bool:
    return lexicon.name == "English" and (word.endswith("ty") or word == "hundred")


def _fill(lexicon: Lexicon, template: str, rng: np.random.Generator) -> list[str]:
    filled = re.sub(r"\{(\w+)\}", lambda m: str(rng.choice(np.array(lexicon.groups[m[1]]))), template)
    return filled.split()


def _written(words: list[str]) -> str:
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."
