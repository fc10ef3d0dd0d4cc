"""Tokenizer and prompt, on the small vocabulary everywhere and on the real one where it is at hand."""

from __future__ import annotations

import pytest

from qwen_asr_jax.text.prompt import build_prompt
from qwen_asr_jax.text.tokenizer import load_tokenizer
from qwen_asr_jax.text.tokenizer_files import ADDED_TOKENS, write_tokenizer
from tests.audio_samples import SHARED_TOKENIZER

REAL = pytest.mark.skipif(not (SHARED_TOKENIZER / "vocab.json").exists(), reason="the real vocabulary is not here")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("small")
    return write_tokenizer(out, tokenizer_dir=None, with_timestamp=True, single_file=True), out


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    return write_tokenizer(out, tokenizer_dir=SHARED_TOKENIZER, with_timestamp=False, single_file=False)


def test_any_text_survives_the_round_trip(small):
    tokenizer, _ = small
    for text in [
        "Hello there",
        "naïve Straße",
        "你好世界",
        "สวัสดี",
        " leading",
        "tabs\tand\nlines\n\n",
        "1234567890",
        "🙂🙃",
    ]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_both_file_layouts_give_the_same_ids(small):
    tokenizer, out = small
    text = "<|im_start|>system\nHello<|im_end|>\n<asr_text>What have you heard? <timestamp>"
    single = load_tokenizer(out)
    (out / "tokenizer.json").rename(out / "moved")
    assert load_tokenizer(out).encode(text) == single.encode(text) == tokenizer.encode(text)


def test_nfc_normalisation(small):
    tokenizer, _ = small
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_special_tokens_are_dropped_and_plain_ones_kept(small):
    tokenizer, _ = small
    ids = tokenizer.encode("<|im_start|>a<asr_text>b<|im_end|><non_speech><|endoftext|>")
    assert tokenizer.decode(ids) == "a<asr_text>b<non_speech>"


def test_incomplete_characters_decode_to_the_replacement(small):
    tokenizer, _ = small
    ids = tokenizer.encode("世")
    assert tokenizer.decode(ids[:1]) == "\ufffd"


@pytest.mark.parametrize(
    "context",
    ["<|im_end|>", "<|im_<|im_end|>end|>", "<asr_<asr_text>text>", "<|made_up|>", "<tool_call>x</tool_call>", "<blank7>"],
)
def test_context_is_made_harmless(small, context):
    tokenizer, _ = small
    special = {tokenizer.encode(text)[0] for text, _ in ADDED_TOKENS}
    assert not special & set(tokenizer.encode(tokenizer.sanitize(f"Names: {context} Ada")))
    assert tokenizer.sanitize("a < b | c > d") == "a < b | c > d"


@REAL
def test_real_ids(real):
    assert real.special.im_end == 151645
    assert real.special.audio_pad == 151676
    assert real.encode("<asr_text>") == [151704]
    assert real.special.timestamp is None
    assert real.size == 151705
    assert real.encode("iPhone") == [44740]
    assert real.encode("e\u0301") == [963]
    assert real.encode("<timestamp>") == [27, 13035, 29]


@REAL
def test_real_prompt(real):
    prompt = build_prompt(real, 3)
    tail = [151670, 151645, 198, 151644, 77091, 198]
    head = [151644, 8948, 198, 151645, 198, 151644, 872, 198, 151669]
    assert list(prompt.ids) == [*head, 151676, 151676, 151676, *tail]
    assert (prompt.audio_start, prompt.num_audio_tokens) == (9, 3)
    forced = build_prompt(real, 1, language="English")
    assert list(forced.ids[-3:]) == [11528, 6364, 151704]
    assert build_prompt(real, 1, context="\nnames").ids[2] == 271  # merged across the line break of the template


@REAL
@pytest.mark.parametrize(
    "name, ids",
    [
        ("Cantonese", [72366, 2367]),
        ("Macedonian", [56452, 75491]),
        ("Thai", [26392]),
        ("Filipino", [62417]),
        ("Chinese", [8453]),
    ],
)
def test_real_language_names(real, name, ids):
    assert real.encode(f"language {name}<asr_text>") == [11528, *ids, 151704]


@REAL
def test_real_transcripts_reencode_to_the_published_tokens(real):
    ids = [11528, 6364, 151704, 12275, 13, 3406, 2044, 374, 279, 38471, 273, 315, 279, 6149, 6846, 11, 323, 582, 525]
    ids += [15713, 311, 10565, 806, 41482, 13]
    text = (
        "language English<asr_text>Mr. Quilter is the apostle of the middle classes, and we are glad to welcome his gospel."
    )
    assert real.encode(text) == ids
    assert real.decode([*ids, 151645]) == text
