"""The languages of the transcription models, and what a user may call them."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_asr_jax.errors import UsageError

LANGUAGE_CODES: dict[str, str] = {
    "Chinese": "zh",
    "English": "en",
    "Cantonese": "yue",
    "Arabic": "ar",
    "German": "de",
    "French": "fr",
    "Spanish": "es",
    "Portuguese": "pt",
    "Indonesian": "id",
    "Italian": "it",
    "Korean": "ko",
    "Russian": "ru",
    "Thai": "th",
    "Vietnamese": "vi",
    "Japanese": "ja",
    "Turkish": "tr",
    "Hindi": "hi",
    "Malay": "ms",
    "Dutch": "nl",
    "Swedish": "sv",
    "Danish": "da",
    "Finnish": "fi",
    "Polish": "pl",
    "Czech": "cs",
    "Filipino": "fil",
    "Persian": "fa",
    "Greek": "el",
    "Romanian": "ro",
    "Hungarian": "hu",
    "Macedonian": "mk",
}
"""Name to code, in the order of the published `support_languages` list; the codes are those transformers accepts."""


def canonical(name: str) -> str:
    """The spelling the model writes: stripped, first letter upper, the rest lower."""
    name = name.strip()
    return name[:1].upper() + name[1:].lower()


def resolve_language(language: str | None, supported: Sequence[str] = ()) -> str | None:
    """The model's name for a language given by name or code, in either case; None stays None (detect).

    Args:
      language: `"English"`, `"english"`, `"en"`, `"EN"` and the like; None or blank to let the model detect it.
      supported: the checkpoint's own list; empty means all that this module knows.

    Raises:
      UsageError: the language is unknown or not in the checkpoint's list, which is shown.
    """
    if language is None or not language.strip():
        return None
    names = [canonical(name) for name in supported] or list(LANGUAGE_CODES)
    by_code = {code: name for name, code in LANGUAGE_CODES.items()}
    name = by_code.get(language.strip().lower(), canonical(language))
    if name in names:
        return name
    listed = ", ".join(f"{n} ({LANGUAGE_CODES[n]})" if n in LANGUAGE_CODES else n for n in names)
    raise UsageError(f"unknown language {language!r}; this model knows: {listed}")
