"""Batches of fixed shapes.

A batch depends on its step, the number of steps and the seed alone (which makes corpus and vocabulary, too): a resumed
training goes on exactly.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from qwen_asr_jax.audio import frames
from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.ops.mel import padded_samples, reflect_pad
from qwen_asr_jax.text.parse import ASR_TAG
from qwen_asr_jax.text.prompt import build_prompt
from qwen_asr_jax.text.tokenizer import Tokenizer
from training import augment
from training.augment import Conditions
from training.clips import NO_SPEECH, Clip, ClipSource

SHAPES = {2: 48, 4: 32, 8: 16, 16: 8, 30: 4}
"""Clips per batch by their longest, in seconds: about as much work each."""

_STAGES = (
    (0.06, {2: 0.8, 4: 0.2}),
    (0.15, {2: 0.4, 4: 0.4, 8: 0.2}),
    (0.30, {2: 0.2, 4: 0.3, 8: 0.3, 16: 0.2}),
    (1.00, {2: 0.12, 4: 0.2, 8: 0.23, 16: 0.2, 30: 0.25}),
)
"""The curriculum: up to this share of the steps, batches of these lengths with these probabilities. Trained on long clips from
the start, a model of this size learns nothing for hours."""

_CLEAN_SHARE = 0.08
"""Up to this share of the steps, clips are almost undisturbed."""

_NO_SPEECH_SHARE = 0.05
_CONTEXT_SHARE = 0.08
_TARGET_TOKENS_PER_S = 4
_TARGET_EXTRA = 10
"""Room for answers. The few clips of fast compounds that need more are drawn again."""

LETTERS = " -abcdefghijklmnopqrstuvwxyzßäöü"
"""What transcripts are spelled with, but for capitals and full stops."""

_LETTERS_PER_S = 30
"""Room for letters; the fastest long compounds have more for a second or two."""

IGNORED = -1
"""Target where there is none."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Arrays of one training step; B clips of at most `seconds`.

    Attributes:
      samples: `[B, padded samples]` float32, from `reflect_pad`.
      num_frames: `[B]` int32, mel frames.
      num_audio_tokens: `[B]` int32.
      ids: `[B, T]` int32, prompt and all of the answer but its last token.
      audio_index: `[B, T]` int32, which audio feature replaces the token; negative for text.
      answer_start: `[B]` int32, the position whose next token is the answer's first.
      targets: `[B, U]` int32, the answer, `IGNORED` behind its end.
      transcript: `[B, U]` int32, the answer without language and end, for an auxiliary loss; `IGNORED` behind its end.
      letters: `[B, C]` int32, the transcript's letters, places in `LETTERS`, for another; `IGNORED` behind their end.
    """

    samples: np.ndarray
    num_frames: np.ndarray
    num_audio_tokens: np.ndarray
    ids: np.ndarray
    audio_index: np.ndarray
    answer_start: np.ndarray
    targets: np.ndarray
    transcript: np.ndarray
    letters: np.ndarray


def seconds_of_step(seed: int, step: int, total_steps: int) -> int:
    """The length class of a step's batch, a key of `SHAPES`."""
    share = step / total_steps
    weights = next(weights for end, weights in _STAGES if share < end or end == 1.0)
    rng = np.random.default_rng([seed, step, 1])
    return int(rng.choice(list(weights), p=list(weights.values())))


def draw_batch(
    source: ClipSource, tokenizer: Tokenizer, config: ModelConfig, seed: int, step: int, total_steps: int
) -> Batch:
    """The batch of one step."""
    seconds = seconds_of_step(seed, step, total_steps)
    rng = np.random.default_rng([seed, step, 2])
    conditions = augment.TRAINING_FIRST if step < _CLEAN_SHARE * total_steps else augment.TRAINING
    clips = [_draw_clip(source, tokenizer, seconds, conditions, rng) for _ in range(SHAPES[seconds])]
    contexts = [_context(source, rng) if rng.random() < _CONTEXT_SHARE else "" for _ in clips]
    return make_batch(clips, contexts, tokenizer, config, seconds)


def max_targets(seconds: int) -> int:
    """Tokens of the longest answer in a batch of this length class."""
    return seconds * _TARGET_TOKENS_PER_S + _TARGET_EXTRA


def _answer(tokenizer: Tokenizer, clip: Clip) -> list[int]:
    text = f"language {clip.language}{ASR_TAG}{clip.text}"
    return [*tokenizer.encode(text), tokenizer.special.im_end]


def _spelled(clip: Clip) -> list[int]:
    return [LETTERS.index(c) for c in clip.text.lower() if c in LETTERS]


def _draw_clip(
    source: ClipSource, tokenizer: Tokenizer, seconds: int, conditions: Conditions, rng: np.random.Generator
) -> Clip:
    if rng.random() < _NO_SPEECH_SHARE:
        return source.no_speech(seconds, rng)
    shortest = {2: 1.4, 4: 2.2, 8: 4.5, 16: 9.0, 30: 18.0}[seconds]
    while True:
        clip = source.speech(rng.uniform(shortest, seconds), conditions, rng)
        if len(_answer(tokenizer, clip)) <= max_targets(seconds) and len(_spelled(clip)) <= seconds * _LETTERS_PER_S:
            return clip


def _context(source: ClipSource, rng: np.random.Generator) -> str:
    """Some words that have nothing to do with the clip."""
    utterances = source.corpus.utterances
    return utterances[rng.integers(len(utterances))].sentence.text.split(".")[0]


def make_batch(clips: list[Clip], contexts: list[str], tokenizer: Tokenizer, config: ModelConfig, seconds: int) -> Batch:
    """The clips as arrays, with the prompt and the answer that the model is to give; a context that has no room is left out.

    Raises:
      ValueError: an answer is longer than the class of length has room for.
    """
    audio = config.audio
    total_frames = -(-seconds * 100 // audio.chunk_frames) * audio.chunk_frames
    targets = max_targets(seconds)
    length = len(build_prompt(tokenizer, frames.num_audio_tokens(total_frames, audio)).ids) + targets
    rows = len(clips)
    batch = Batch(
        samples=np.zeros((rows, padded_samples(total_frames)), np.float32),
        num_frames=np.zeros(rows, np.int32),
        num_audio_tokens=np.zeros(rows, np.int32),
        ids=np.zeros((rows, length), np.int32),
        audio_index=np.full((rows, length), -1, np.int32),
        answer_start=np.zeros(rows, np.int32),
        targets=np.full((rows, targets), IGNORED, np.int32),
        transcript=np.full((rows, targets), IGNORED, np.int32),
        letters=np.full((rows, seconds * _LETTERS_PER_S), IGNORED, np.int32),
    )
    for row, (clip, context) in enumerate(zip(clips, contexts, strict=True)):
        samples = np.pad(clip.samples, (0, max(0, frames.MIN_SAMPLES - len(clip.samples))))
        batch.samples[row] = reflect_pad([samples], total_frames, 1)[0]
        batch.num_frames[row] = frames.num_frames(len(samples))
        batch.num_audio_tokens[row] = frames.num_audio_tokens(int(batch.num_frames[row]), audio)
        answer, letters = _answer(tokenizer, clip), _spelled(clip)
        transcript = tokenizer.encode(clip.text) if clip.language != NO_SPEECH else []
        if len(answer) > targets or len(letters) > batch.letters.shape[1]:
            raise ValueError(f"an answer of {len(answer)} tokens in {seconds} s: {clip.text}")
        prompt = build_prompt(tokenizer, int(batch.num_audio_tokens[row]), context)
        if len(prompt.ids) + len(answer) - 1 > length:
            prompt = build_prompt(tokenizer, int(batch.num_audio_tokens[row]))
        ids = [*prompt.ids, *answer[:-1]]
        batch.ids[row, : len(ids)] = ids
        audio_at = slice(prompt.audio_start, prompt.audio_start + prompt.num_audio_tokens)
        batch.audio_index[row, audio_at] = np.arange(prompt.num_audio_tokens)
        batch.answer_start[row] = len(prompt.ids) - 1
        batch.targets[row, : len(answer)] = answer
        batch.transcript[row, : len(transcript)] = transcript
        batch.letters[row, : len(letters)] = letters
    return batch
