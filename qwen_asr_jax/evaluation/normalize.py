"""Texts as lists of words, or of characters, so that only what is said is compared and not how it is written.

whisper-normalizer is in the `eval` extra, imported where a normaliser is made, and not needed to compare texts as written.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from qwen_asr_jax.errors import UsageError

NORMALIZERS = ("whisper", "basic", "none")

WITHOUT_SPACES = frozenset({"Chinese", "Cantonese", "Japanese", "Thai"})
"""Languages written without spaces between words: their error rate is one of characters."""

HOW_TO_GET = 'pip install -e ".[eval]"'


def scored_by_characters(language: str) -> bool:
    """Whether references in the language are compared character by character."""
    return language in WITHOUT_SPACES


class Normalizer:
    """Splits texts into what is compared.

    Attributes:
      caption: what is done to texts, with versions; for the tables.

    Raises:
      UsageError: `whisper-normalizer` is needed and not installed.
    """

    def __init__(self, name: str):
        self._name = name
        self._kinds: dict[str, Callable[[str], str]] = {}
        self.caption = "Texts are compared as written, split at white space"
        if name == "none":
            return
        try:
            from whisper_normalizer.basic import BasicTextNormalizer
            from whisper_normalizer.english import EnglishTextNormalizer
        except ImportError as e:
            raise UsageError(
                f"whisper-normalizer cannot be imported ({e}): {HOW_TO_GET}; --normalizer=none compares texts as written"
            ) from None
        basic = BasicTextNormalizer()
        self._kinds = {
            "English": EnglishTextNormalizer() if name == "whisper" else basic,
            "characters": BasicTextNormalizer(split_letters=True),
            "words": basic,
        }
        version = importlib.metadata.version("whisper-normalizer")
        kinds = "EnglishTextNormalizer for English, BasicTextNormalizer else" if name == "whisper" else "BasicTextNormalizer"
        self.caption = f"Texts are normalised by whisper-normalizer {version} ({kinds})"

    def split(self, text: str, language: str) -> list[str]:
        """The words of a text, or its characters if the language is written without spaces.

        Args:
          text: a reference or a transcript.
          language: name of the reference's language; "" if that is not known.
        """
        by_characters = scored_by_characters(language)
        if self._name == "none":
            return [c for c in text if not c.isspace()] if by_characters else text.split()
        kind = "characters" if by_characters else "English" if language == "English" else "words"
        return self._kinds[kind](text).split()
