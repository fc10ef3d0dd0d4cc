"""Error rates: counted by hand, resampled, split into groups and shown."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.evaluation.normalize import Normalizer
from qwen_asr_jax.evaluation.score import Scorer
from qwen_asr_jax.evaluation.statistics import bootstrap_interval, error_rate
from qwen_asr_jax.evaluation.tables import report
from qwen_asr_jax.evaluation.worst import aligned, worst_clips
from tests.evaluation_results import result


def score(*results, normalizer="none"):
    return Scorer(normalizer).score(results)


def rows(text: str, title: str) -> list[dict[str, str]]:
    """The table under a title, by its headers."""
    table = text[text.index(title) :].split("\n\n")[1].splitlines()
    headers, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return [dict(zip(headers, line, strict=True)) for line in body]


def test_the_rate_is_of_all_words_and_not_the_mean_of_clips():
    assert error_rate(np.array([1, 0]), np.array([1, 9])) == 0.1
    assert error_rate(np.array([30]), np.array([10])) == 3.0
    assert math.isnan(error_rate(np.array([], int), np.array([], int)))


def test_bootstrap():
    assert bootstrap_interval(np.array([1]), np.array([2])) is None
    assert bootstrap_interval(np.array([1, 2, 3]), np.array([10, 20, 30])) == (pytest.approx(0.1), pytest.approx(0.1))
    errors, units = np.array([0, 4]), np.array([4, 4])
    # Two clips, one of them all wrong: a quarter of the samples has only that one, a quarter only the other.
    assert bootstrap_interval(errors, units) == (0.0, 1.0)
    assert bootstrap_interval(errors, units, level=0.4) == (0.5, 0.5)
    random = np.random.default_rng(1)
    errors, units = random.binomial(10, 0.2, 400), np.full(400, 10)
    lower, upper = bootstrap_interval(errors, units)
    assert (lower, upper) == bootstrap_interval(errors, units)
    assert lower < error_rate(errors, units) < upper
    # Of 4000 independent words the binomial's own interval is +-1.96 sqrt(p (1 - p) / n).
    assert upper - lower == pytest.approx(2 * 1.96 * math.sqrt(0.2 * 0.8 / 4000), rel=0.15)
    assert bootstrap_interval(errors, units, seed=1) != (lower, upper)


@pytest.mark.parametrize(
    "reference, hypothesis, counts, steps",
    [
        ("a b c", "a b c", (0, 0, 0), "a=a b=b c=c"),
        ("a b c", "a x c", (1, 0, 0), "a=a b=x c=c"),
        ("a b c", "a c", (0, 1, 0), "a=a b= c=c"),
        ("a b c", "a b x y c", (0, 0, 2), "a=a b=b =x =y c=c"),
        ("a b c", "", (0, 3, 0), "a= b= c="),
        ("a\u3000b \n c", " a  b\tc ", (0, 0, 0), "a=a b=b c=c"),
        ("A b.", "a b", (2, 0, 0), "A=a b.=b"),
    ],
)
def test_errors_by_kind(reference, hypothesis, counts, steps):
    (scored,) = score(result(hypothesis, reference)).scored
    assert (scored.substitutions, scored.deletions, scored.insertions) == counts
    assert scored.errors == sum(counts)
    assert (scored.units, scored.by_characters) == (len(reference.split()), False)
    assert " ".join("=".join(step) for step in scored.steps) == steps


def test_normalizers():
    assert Normalizer("whisper").split("Mr. Colour, it's seven eight!", "English") == ["mister", "color", "it", "is", "78"]
    for name, language in (("whisper", "German"), ("whisper", ""), ("basic", "English")):
        assert Normalizer(name).split("Mr. Öl, it's [laughs] 2", language) == ["mr", "öl", "it", "s", "2"]
    for name in ("whisper", "basic"):
        assert Normalizer(name).split("你好, AB!", "Chinese") == ["你", "好", "a", "b"]
    assert Normalizer("none").split("你好, AB", "Japanese") == ["你", "好", ",", "A", "B"]
    assert Normalizer("none").split("Mr. Öl", "English") == ["Mr.", "Öl"]
    assert "whisper-normalizer 0." in Normalizer("whisper").caption
    assert Normalizer("none").caption.startswith("Texts are compared as written")


def test_the_language_that_was_forced_stands_in_for_one_that_is_not_said():
    forced = {"backend": "cpu", "implementation": "xla", "language": "Chinese"}
    (scored,) = score(result("你好", "你 好", reference_language="", settings=forced)).scored
    assert (scored.by_characters, scored.errors) == (True, 0)


@pytest.mark.parametrize("module, name", [("jiwer", "none"), ("whisper_normalizer.basic", "whisper")])
def test_a_missing_library_is_one_line_with_the_command(monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r'pip install -e ".\[eval\]"') as caught:
        Scorer(name)
    assert "\n" not in str(caught.value)
    if module != "jiwer":
        Scorer("none")


def test_rates_by_group():
    text = report(
        score(
            result("one two three", fields={"set": 10}, language="English"),
            result("one x", "one two", fields={"set": 9}),
            result("you", "you", reference_language="English", fields={}),
        ),
        ["set"],
    )
    found = rows(text, "Word error rate")
    assert [row["group"] for row in found] == [
        "total",
        "language: English",
        "language: German",
        "set: 9",
        "set: 10",
        "set: not said",
    ]
    total, english, german, nine, *_ = found
    assert (total["clips"], total["words"], total["S"], total["D"], total["I"]) == ("3", "6", "1", "0", "0")
    assert (total["WER %"], total["95 %"], total["language right %"]) == ("16.67", "0.00-50.00", "33.3")
    assert (total["model"], total["policy"], total["RTFx"]) == ("m", "bf16", "4.0")
    assert (english["WER %"], english["95 %"], english["language right %"], english["RTFx"]) == ("0.00", "-", "0.0", "-")
    assert (german["WER %"], german["language right %"]) == ("20.00", "50.0")
    assert (nine["clips"], nine["WER %"]) == ("1", "50.00")
    assert "Character" not in text
    assert "nothing is said" not in text


def test_the_order_of_the_file_moves_nothing():
    everything = [result(" ".join("x" * i), "x x x", id=str(i)) for i in range(9)]
    assert report(score(*everything), []) == report(score(*reversed(everything)), [])


def test_runs_have_rows_and_what_tells_them_apart():
    settings = {"backend": "cpu", "implementation": "cpu avx2", "language": "German", "engine": {"decode_chunk": 4}}
    everything = [result("one two three"), result("one", policy="int8"), result("two", fingerprint="0" * 64)]
    text = report(score(*everything, result("three", settings=settings)), [])
    found = [row for row in rows(text, "Word error rate") if row["group"] == "total"]
    assert [(row["model"], row["policy"], row["kernels"], row["forced"], row["settings"]) for row in found] == [
        ("m (ffffffff)", "bf16", "xla", "", ""),
        ("m (ffffffff)", "int8", "xla", "", ""),
        ("m (00000000)", "bf16", "xla", "", ""),
        ("m (ffffffff)", "bf16", "cpu avx2", "German", "decode_chunk=4"),
    ]
    assert "backend" not in found[0]
    assert [row["language right %"] for row in found] == ["100.0", "100.0", "100.0", "-"]
    assert "not to be compared" not in text
    assert "not to be compared" in report(score(*everything, result("x", "y")), [])
    other = [dataclasses.replace(each, policy="int8", id=f"other {each.id}") for each in everything[:1]]
    assert "not to be compared" in report(score(everything[0], *other), [])


def test_code_that_changed_in_the_middle_is_said():
    everything = [result("one two three", commit="a"), result("x", "y", id="y", commit="b+")]
    assert "m, bf16: transcribed by several commits: a, b+." in report(score(*everything), [])
    assert "several" not in report(score(*everything[:1]), [])


def test_equal_clips_have_no_interval():
    alike = [result("one two three", id="a"), result("one two three", id="b")]
    assert rows(report(score(*alike), []), "Word error rate")[0]["95 %"] == "-"
    assert rows(report(score(*alike, result("one", id="c")), []), "Word error rate")[0]["95 %"] != "-"


def test_groups_of_several_fields():
    fields = [{"set": "clean", "voice": "m3"}, {"set": "noisy", "voice": "m3"}, {"set": "noisy"}]
    everything = [result("one two three", id=str(i), fields=each) for i, each in enumerate(fields)]
    names = [row["group"] for row in rows(report(score(*everything), ["set+voice"]), "Word error rate")]
    assert names[2:] == ["set+voice: clean m3", "set+voice: noisy m3", "set+voice: noisy not said"]


def test_characters_have_a_table_of_their_own():
    text = report(
        score(result("one two three"), result("你号", "你好", reference_language="Chinese", language="Chinese")), []
    )
    words, characters = rows(text, "Word error rate"), rows(text, "Character error rate")
    assert [row["group"] for row in words] == ["total", "language: German"]
    assert (words[0]["clips"], words[0]["words"], words[0]["RTFx"]) == ("1", "3", "4.0")
    assert (characters[0]["clips"], characters[0]["characters"], characters[0]["S"]) == ("1", "2", "1")
    assert characters[0]["CER %"] == "50.00"
    assert "RTFx" not in characters[0]


def test_silence_is_not_part_of_the_rate():
    silent = [result("", "", id="s1"), result(" \n", " ", id="s2"), result("thank you", "", id="s3", reference_language="")]
    text = report(score(result("one two three"), *silent), [])
    assert rows(text, "Word error rate")[0]["clips"] == "1"
    total = rows(text, "Clips in which nothing is said")[0]
    assert (total["clips"], total["empty text %"], total["words written"]) == ("3", "66.7", "2")
    assert "Word error rate" not in report(score(*silent), [])


def test_what_is_not_counted_is_said():
    everything = [
        result("one two three"),
        result(None, "four", id="broken"),
        result("um", "[noise]", id="noise"),
        result("x", "y", id="cut", finish_reason="length"),
    ]
    text = report(score(*everything, normalizer="basic"), [], outdated=2)
    assert "m, bf16: 1 clip failed and not counted: broken." in text
    assert "m, bf16: 1 clip left out, whose reference normalises to nothing: noise." in text
    assert "m, bf16: 1 clip cut at the token budget" in text
    assert "2 older transcripts left out" in text
    assert "normalised by whisper-normalizer" in text
    assert rows(text, "Word error rate")[0]["clips"] == "2"
    failed = [result(None, "four", id=f"clip {i}") for i in range(7)]
    assert "7 clips failed and not counted: clip 0, clip 1, clip 2, clip 3, clip 4 and 2 more." in report(score(*failed), [])


def test_a_field_is_one_cell():
    text = report(score(result("one two three", fields={"v|x": "a|b\nc"})), ["v|x"])
    assert "v\\|x: a\\|b c" in text


def test_alignment_shows_where_texts_part():
    steps = [("the", "the"), ("fox", "socks"), ("", "uh"), ("你好", ""), ("end", "end")]
    assert aligned(steps) == [
        "  reference   the fox   *  你好 end",
        "  transcript  the socks uh *    end",
        "                  S     I  D",
    ]
    assert aligned([("ab", "ab")] * 5, width=6) == ["  reference   ab ab", "  transcript  ab ab"] * 2 + [
        "  reference   ab",
        "  transcript  ab",
    ]
    assert aligned([]) == []


def test_the_worst_come_first():
    scores = score(
        result("one two three"),
        result("a b c d", "a x y d", id="two of four"),
        result("c", "a b", id="two of two", finish_reason="length", language="Dutch"),
        result("x", "y", id="one"),
        result("", "a b c", id="other run", policy="int8"),
    ).scored
    text = worst_clips(scores, 2)
    first, second = text.index("two of two: 2 errors in 2 words (1 S, 1 D, 0 I)"), text.index("two of four: 2 errors")
    assert first < second
    assert ", heard as Dutch, cut at the token budget" in text
    assert "one: 1" not in text
    assert text.count("Most errors, ") == 2
    assert "other run: 3 errors in 3 words (0 S, 3 D, 0 I)" in text
    assert worst_clips(score(result("one two three")).scored, 3) == ""
