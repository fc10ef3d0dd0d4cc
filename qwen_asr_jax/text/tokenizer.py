"""The checkpoint's byte-level BPE tokenizer, from either file layout, through the `tokenizers` library.

Normalisation (NFC) and the pre-tokeniser pattern are Qwen2's. Special ids are looked up by their text in the files; none is
a constant here.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from qwen_asr_jax.config import read_json
from qwen_asr_jax.errors import CheckpointError, UsageError

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits text before BPE; each match is a piece of its own, digits come one by one."""

_SPECIAL = re.compile(r"<\|[^|]+\|>")


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that the prompt and the decoding loop need, by their text in the vocabulary."""

    end_of_text: int
    im_end: int
    audio_start: int
    audio_end: int
    audio_pad: int
    timestamp: int | None


class Tokenizer:
    """Encodes prompts and decodes generated ids."""

    def __init__(self, backend: tokenizers.Tokenizer, where: str):
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added_text = sorted((t.content for t in added.values()), key=len, reverse=True)

        def need(text: str) -> int:
            found = backend.token_to_id(text)
            if found is None:
                raise CheckpointError(f"{where}: token {text} is missing; these are not a Qwen3-ASR tokenizer's files")
            return found

        self.special = SpecialIds(
            end_of_text=need("<|endoftext|>"),
            im_end=need("<|im_end|>"),
            audio_start=need("<|audio_start|>"),
            audio_end=need("<|audio_end|>"),
            audio_pad=need("<|audio_pad|>"),
            timestamp=backend.token_to_id("<timestamp>"),
        )

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the strings of added tokens inside it become those tokens.

        Raises:
          UsageError: the text is not valid Unicode (lone surrogates, as from undecodable command lines).
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"text is not valid Unicode: {text[:40]!a}") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`: special tokens dropped, incomplete UTF-8 as U+FFFD, ids without a token ignored."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def sanitize(self, text: str) -> str:
        """`text` without anything that would be read as an added or special token, however nested."""
        while True:
            clean = _SPECIAL.sub("", text)
            for token in self._added_text:
                clean = clean.replace(token, "")
            if clean == text:
                return clean
            text = clean

    def save(self, path: pathlib.Path) -> None:
        """Writes everything into one `tokenizer.json`."""
        self._backend.save(str(path))


def load_tokenizer(model_dir: pathlib.Path) -> Tokenizer:
    """Reads `tokenizer.json`, or `vocab.json` + `merges.txt` + `tokenizer_config.json`.

    Raises:
      CheckpointError: files are missing, unreadable, or contradict each other.
    """
    single = model_dir / "tokenizer.json"
    if single.exists():
        try:
            backend = tokenizers.Tokenizer.from_file(str(single))
        except Exception as e:  # the library raises bare Exception, which does not say which file or why
            read_json(single)
            raise CheckpointError(f"{single}: not a tokenizer file ({e})") from None
        return Tokenizer(backend, str(single))
    return Tokenizer(_from_vocab(model_dir), str(model_dir / "tokenizer_config.json"))


def byte_level_bpe(bpe: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer around `bpe` with Qwen2's normaliser, pre-tokeniser and byte-level decoder."""
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _from_vocab(model_dir: pathlib.Path) -> tokenizers.Tokenizer:
    vocab, merges = model_dir / "vocab.json", model_dir / "merges.txt"
    missing = [p.name for p in (vocab, merges, model_dir / "tokenizer_config.json") if not p.exists()]
    if missing:
        raise CheckpointError(
            f"{model_dir}: no tokenizer: {', '.join(missing)} missing (and no tokenizer.json); copy the tokenizer files"
            " of the original model beside the weights"
        )
    settings = read_json(model_dir / "tokenizer_config.json")
    try:
        backend = byte_level_bpe(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as e:  # the library raises bare Exception, which does not say which file or why
        if not isinstance(read_json(vocab), dict):
            raise CheckpointError(f"{vocab}: not a JSON object; download the file again") from None
        if not os.access(merges, os.R_OK):
            raise CheckpointError(f"{merges}: cannot be read") from None
        raise CheckpointError(f"{merges}: does not fit {vocab.name} ({e}); both must come from one model") from None
    vocab_size = backend.get_vocab_size()
    where = model_dir / "tokenizer_config.json"
    try:
        added = sorted(
            ((int(i), _added_token(entry)) for i, entry in settings["added_tokens_decoder"].items()), key=lambda e: e[0]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"{where}: field added_tokens_decoder is missing or malformed; copy the file from the original model"
        ) from None
    for i, (text, special, options) in added:
        token = AddedToken(text, special=special, **options)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
        if backend.token_to_id(text) != i:
            raise CheckpointError(
                f"{model_dir}: vocab.json has {vocab_size} entries, but tokenizer_config.json wants {text} at {i} (it would"
                f" be {backend.token_to_id(text)}); both must come from one model"
            )
    return backend


def _added_token(entry: dict[str, Any]) -> tuple[str, bool, dict[str, bool]]:
    """Text, `special` flag and matching options of one entry of `added_tokens_decoder`."""
    options = {name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    if not isinstance(entry["content"], str):
        raise TypeError
    return entry["content"], bool(entry.get("special", False)), options
