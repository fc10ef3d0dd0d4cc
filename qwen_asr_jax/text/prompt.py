r"""The chat-shaped prompt around the audio, as ids.

    <|im_start|>system\n{context}<|im_end|>\n
    <|im_start|>user\n<|audio_start|>{<|audio_pad|> x A}<|audio_end|><|im_end|>\n
    <|im_start|>assistant\n{language X<asr_text>, when forced}

The system turn is always there, empty or not. The text on either side of the audio is encoded whole, because BPE may merge
across the seams inside it (a context that starts with a newline, for one).
"""

from __future__ import annotations

import dataclasses

from qwen_asr_jax.text.parse import ASR_TAG
from qwen_asr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Ids of one prompt and where its audio goes.

    Attributes:
      ids: all ids, `<|audio_pad|>` at every audio position.
      audio_start: index of the first audio position.
      num_audio_tokens: how many there are, consecutive.
    """

    ids: tuple[int, ...]
    audio_start: int
    num_audio_tokens: int


def build_prompt(tokenizer: Tokenizer, num_audio_tokens: int, context: str = "", language: str | None = None) -> Prompt:
    """The prompt for one clip.

    Args:
      num_audio_tokens: audio tokens that the encoder makes of the clip.
      context: free text that biases recognition (names, terms); special tokens in it are removed.
      language: the model's name of a language to force (`resolve_language` gives it); None to let the model detect it.
    """
    before = f"<|im_start|>system\n{tokenizer.sanitize(context)}<|im_end|>\n<|im_start|>user\n<|audio_start|>"
    suffix = f"language {language}{ASR_TAG}" if language else ""
    after = f"<|audio_end|><|im_end|>\n<|im_start|>assistant\n{suffix}"
    head = tokenizer.encode(before)
    ids = [*head, *([tokenizer.special.audio_pad] * num_audio_tokens), *tokenizer.encode(after)]
    return Prompt(ids=tuple(ids), audio_start=len(head), num_audio_tokens=num_audio_tokens)
