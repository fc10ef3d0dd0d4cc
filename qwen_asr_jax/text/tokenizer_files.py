"""Writes the tokenizer files of a checkpoint, around a real vocabulary or a small one made here.

The added tokens and their order are the published tokenizer's; their ids follow the base vocabulary, whatever its size.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable

from tokenizers import models, pre_tokenizers, trainers

from qwen_asr_jax.config import read_json
from qwen_asr_jax.errors import CheckpointError
from qwen_asr_jax.text.languages import LANGUAGE_CODES
from qwen_asr_jax.text.tokenizer import Tokenizer, byte_level_bpe, load_tokenizer

_VISION = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
_SPECIAL, _PLAIN = True, False
ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    *((f"<|{name}|>", _SPECIAL) for name in ("endoftext", "im_start", "im_end", *_VISION)),
    *((f"<|{name}|>", _SPECIAL) for name in ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")),
    *((text, _PLAIN) for text in ("<tool_call>", "</tool_call>")),
    *((f"<|{name}|>", _PLAIN) for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")),
    *((text, _PLAIN) for text in ("<tool_response>", "</tool_response>", "<think>", "</think>")),
    *((f"<|{name}|>", _SPECIAL) for name in ("audio_start", "audio_end")),
    *((f"<{name}>", _SPECIAL) for name in ("tts_pad", "tts_text_bos", "tts_text_eod", "tts_text_bos_single")),
    ("<non_speech>", _PLAIN),
    ("<|audio_pad|>", _SPECIAL),
    *((f"<blank{i}>", _SPECIAL) for i in range(1, 28)),
    ("<asr_text>", _PLAIN),
)
"""Text and `special` flag of every added token, in id order; an aligner has `<timestamp>` behind them."""

_SMALL_VOCAB = 384
_SAMPLE = (
    "system\nuser\nassistant\nlanguage None "
    + " ".join(f"language {name}" for name in LANGUAGE_CODES)
    + " zero one two three four five six seven eight nine ten the quick brown fox jumps over the lazy dog, and then it is"
    " all there was to say about that. What have you heard? Nothing but the wind in the trees and the water on the stones."
)


def write_tokenizer(
    out_dir: pathlib.Path, *, tokenizer_dir: pathlib.Path | None, with_timestamp: bool, single_file: bool
) -> Tokenizer:
    """Writes tokenizer files and returns the tokenizer that they make.

    Args:
      tokenizer_dir: where to copy `vocab.json` and `merges.txt` from; None makes a small vocabulary.
      with_timestamp: add `<timestamp>` (aligner).
      single_file: also write `tokenizer.json`, as the native layout has it.

    Raises:
      CheckpointError: `tokenizer_dir` lacks a file.
    """
    if tokenizer_dir is None:
        train_vocabulary(out_dir, [_SAMPLE], _SMALL_VOCAB)
    else:
        for name in ("vocab.json", "merges.txt"):
            if not (tokenizer_dir / name).exists():
                raise CheckpointError(f"{tokenizer_dir / name}: no such file; --tokenizer_dir needs it")
            shutil.copyfile(tokenizer_dir / name, out_dir / name)
    base = len(read_json(out_dir / "vocab.json"))
    added = ADDED_TOKENS + ((("<timestamp>", _PLAIN),) if with_timestamp else ())
    settings = {
        "added_tokens_decoder": {
            str(base + i): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": special,
            }
            for i, (text, special) in enumerate(added)
        },
        "additional_special_tokens": [text for text, special in added[1:] if special],
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (out_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(out_dir)
    if single_file:
        tokenizer.save(out_dir / "tokenizer.json")
    return tokenizer


def train_vocabulary(out_dir: pathlib.Path, texts: Iterable[str], size: int) -> None:
    """Writes `vocab.json` and `merges.txt` of a byte-level BPE trained on `texts`; from the same texts the same files.

    Args:
      size: entries, the 256 bytes included.
    """
    backend = byte_level_bpe(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.model.save(str(out_dir))
