"""Reads what the model wrote: `language English<asr_text>Hello.` to a language and a transcript."""

from __future__ import annotations

import re

from qwen_asr_jax.text.languages import canonical
from qwen_asr_jax.text.repetition import fix_repetitions

ASR_TAG = "<asr_text>"
"""Separates the language line from the transcript. An ordinary token to the tokenizer, so it survives decoding."""

_PREFIX = "language "
_LONGEST_TAG = 40  # characters
_OWN_TAG = re.compile(r"\s*language [^\n<]*" + re.escape(ASR_TAG), re.IGNORECASE)


def parse_output(raw: str | None, forced_language: str | None = None) -> tuple[str, str]:
    """Splits decoded output into (language, text), by the official package's rules.

    The language is `""` where the model names none (silence) or says nothing; with `forced_language` it is that one. One
    addition to the official rules: a forced model that still writes its own `language X<asr_text>` has it removed.
    """
    if raw is None or not raw.strip():
        return "", ""
    raw = fix_repetitions(raw.strip())
    if forced_language:
        return forced_language, _OWN_TAG.sub("", raw, count=1).strip() if _OWN_TAG.match(raw) else raw
    if ASR_TAG not in raw:
        return "", raw
    meta, text = raw.split(ASR_TAG, 1)
    text = text.strip()
    if "language none" in meta.lower():
        return "", text
    for line in meta.splitlines():
        line = line.strip()
        if line.lower().startswith(_PREFIX):
            return canonical(line[len(_PREFIX) :]), text
    return "", text


def transcript_so_far(raw: str, forced: bool) -> str:
    """The part of a growing output that may be shown: behind the tag, or all of it when the language was forced.

    White space at either end and an incomplete last character (U+FFFD at the end) are held back.
    """
    raw = raw.rstrip("\ufffd").strip()
    if forced:
        if _OWN_TAG.match(raw):
            return raw.split(ASR_TAG, 1)[1].lstrip()
        # It may still turn out to be a tag; a language line is short.
        may_be_tag = raw.lower().startswith(_PREFIX) and len(raw) < _LONGEST_TAG
        return "" if may_be_tag or _PREFIX.startswith(raw.lower()) else raw
    return raw.split(ASR_TAG, 1)[1].lstrip() if ASR_TAG in raw else ""
