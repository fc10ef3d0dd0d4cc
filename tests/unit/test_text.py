"""Languages, parsing, repetition fixing and streaming text."""

from __future__ import annotations

import random

import pytest

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.text.languages import LANGUAGE_CODES, resolve_language
from qwen_asr_jax.text.parse import parse_output, transcript_so_far
from qwen_asr_jax.text.repetition import fix_repetitions


@pytest.mark.parametrize("given", ["English", "english", "ENGLISH", " en ", "EN", "en"])
def test_language_by_name_or_code_in_either_case(given):
    assert resolve_language(given) == "English"


def test_all_thirty_languages_resolve():
    assert len(LANGUAGE_CODES) == 30
    for name, code in LANGUAGE_CODES.items():
        assert resolve_language(code.upper()) == resolve_language(name.lower()) == name


@pytest.mark.parametrize("given", [None, "", "  "])
def test_no_language_means_detect(given):
    assert resolve_language(given) is None


def test_unknown_language_lists_the_known():
    with pytest.raises(UsageError, match=r"'klingon'.*English \(en\).*Macedonian \(mk\)"):
        resolve_language("klingon")


def test_checkpoint_list_decides():
    assert resolve_language("elvish", ["Elvish", "English"]) == "Elvish"
    with pytest.raises(UsageError, match="Elvish, English"):
        resolve_language("de", ["Elvish", "English"])


@pytest.mark.parametrize(
    "raw, language, text",
    [
        (None, "", ""),
        ("  ", "", ""),
        ("language English<asr_text>Hello there.", "English", "Hello there."),
        ("language None<asr_text>", "", ""),
        ("LANGUAGE none<asr_text>", "", ""),
        ("Language english <asr_text> Hi ", "English", "Hi"),
        ("just text", "", "just text"),
        ("language Chinese<asr_text>a<asr_text>b", "Chinese", "a<asr_text>b"),
        ("language\nlanguage German<asr_text>x", "German", "x"),
        ("language<asr_text>x", "", "x"),
        ("foo<asr_text>bar", "", "bar"),
        ("language Klingon<asr_text>x", "Klingon", "x"),
    ],
)
def test_parse_auto(raw, language, text):
    assert parse_output(raw) == (language, text)


@pytest.mark.parametrize(
    "raw, text",
    [
        ("Hallo.", "Hallo."),
        ("", ""),
        ("language German<asr_text>Hallo.", "Hallo."),
        ("language is a<asr_text>b", "b"),
        ("Say <asr_text> twice", "Say <asr_text> twice"),
    ],
)
def test_parse_forced(raw, text):
    assert parse_output(raw, "German")[1] == text


@pytest.mark.parametrize(
    "text, fixed",
    [
        ("a" * 21, "a"),
        ("a" * 20, "a" * 20),
        ("ab" * 19, "ab" * 19),
        ("ab" * 20, "ab"),
        ("a" * 20 + "b" * 20, "a" + "b" * 20),
        ("hello " * 20, "hello "),
        (("hello " * 20).strip(), ("hello " * 20).strip()),
        ("abcdefghijklmnopqrstu" * 20, "abcdefghijklmnopqrstu" * 20),
        ("", ""),
        ("x" + "\n" * 30 + "y", "x\ny"),
    ],
)
def test_repetitions(text, fixed):
    assert fix_repetitions(text) == fixed


def _by_the_rules(s: str) -> str:
    """Stage by stage as the rules are written down: slow, and with nothing clever in it."""
    out, i = "", 0
    while i < len(s):
        j = i
        while j < len(s) and s[j] == s[i]:
            j += 1
        out += s[i] if j - i > 20 else s[i:j]
        i = j
    s, n, result = out, len(out), ""
    if n < 40:
        return s
    for i in range(n - 39):
        for k in range(1, 21):
            if i + 20 * k > n:
                break
            pattern = s[i : i + k]
            if s[i : i + 20 * k] == pattern * 20:
                end = i + 20 * k
                while s[end : end + k] == pattern:
                    end += k
                return result + pattern + _by_the_rules(s[end:])
        result += s[i]
    return result + s[n - 39 :]


def test_repetitions_match_the_rules_on_random_text():
    rng = random.Random(5)
    for _ in range(300):
        pieces = []
        for _ in range(rng.randint(1, 6)):
            unit = "".join(rng.choice("ab ç") for _ in range(rng.choice([1, 1, 2, 3, 7, 19, 20, 21])))
            pieces.append(unit * rng.choice([1, 2, 18, 19, 20, 21, 25]))
        text = "".join(pieces)
        assert fix_repetitions(text) == _by_the_rules(text)


@pytest.mark.parametrize(
    "raw, forced, shown",
    [
        ("", False, ""),
        ("language Eng", False, ""),
        ("language English<asr_text>", False, ""),
        ("language English<asr_text> He", False, "He"),
        ("language English<asr_text>Stra\ufffd", False, "Stra"),
        ("lang", True, ""),
        ("language German", True, ""),
        ("language German<asr_text>Ja", True, "Ja"),
        ("Lang lebe", True, "Lang lebe"),
        ("language is a wonderful thing, he said to me again", True, "language is a wonderful thing, he said to me again"),
    ],
)
def test_transcript_so_far(raw, forced, shown):
    assert transcript_so_far(raw, forced) == shown
