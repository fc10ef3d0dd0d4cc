"""The training objective, through the same modules that inference runs."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.models.functional import Definition, split
from qwen_asr_jax.models.qwen3_asr import Qwen3ASR
from qwen_asr_jax.nn.conv_stem import MAX_CHUNKS_AT_ONCE
from qwen_asr_jax.ops import mel
from qwen_asr_jax.typing import Array, Params
from training.batches import IGNORED, LETTERS, Batch
from training.model import POLICY, VOCABULARY_SIZE

Metrics: TypeAlias = dict[str, Array]

_CTC_WEIGHTS = {"letters": 0.5, "tokens": 0.3}
"""Weights of the auxiliary CTC losses: letters on the audio features, tokens on the hidden states at the audio's positions.

Without any, the model stays on the plateau where it knows the words and not what it hears. Letters, because there are few
and all words share them; tokens alone take many times longer. The second joins chunks: the encoder gives every chunk the same
positions, so only the decoder knows their order."""

_LETTER_STEPS = 3
"""Steps of the letters' CTC per audio token: speech has more letters than the 13 tokens of a second."""

_CTC_CLASSES = {"letters": len(LETTERS) + 1, "tokens": VOCABULARY_SIZE + 1}
"""Letters, and the vocabulary without added tokens; each behind the blank, which is class 0."""

_MASKED_BANDS = 2
_BAND_WIDTH = 14


def new_model(config: ModelConfig, seed: int) -> tuple[tuple[Definition, Definition], Params]:
    """Fresh parameters, float32: `{"audio_tower": ..., "decoder": ..., "ctc": ...}`, and the definitions of the first two."""
    model = Qwen3ASR(config, policy=POLICY, rngs=nnx.Rngs(params=seed))
    audio, audio_params = split(model.audio_tower)
    decoder, decoder_params = split(model.decoder)
    keys = dict(zip(_CTC_WEIGHTS, jax.random.split(jax.random.key(seed + 1)), strict=True))
    width = config.text.embed_dim
    classes = {"letters": _LETTER_STEPS * _CTC_CLASSES["letters"], "tokens": _CTC_CLASSES["tokens"]}
    ctc = {name: jax.random.normal(key, (width, classes[name])) / math.sqrt(width) for name, key in keys.items()}
    return (audio, decoder), {"audio_tower": audio_params, "decoder": decoder_params, "ctc": ctc}


def loss(
    params: Params, definitions: tuple[Definition, Definition], config: ModelConfig, batch: Batch, key: Array
) -> tuple[Array, Metrics]:
    """Cross-entropy of the answers plus the auxiliary losses.

    Returns:
      `(loss, metrics)`, scalars; metrics: `text` (nats per token), `letters` and `tokens` (CTC, nats per label), `accuracy`
      (share of answer tokens whose likeliest choice is right).
    """
    audio, decoder = definitions[0].bind(params["audio_tower"]), definitions[1].bind(params["decoder"])
    log_mel = mel.log_mel(batch.samples, batch.num_frames, config.audio.num_mel_bins)
    log_mel = _with_masked_bands(log_mel, batch.num_frames, key)
    features = audio.transform(_convolved(audio, log_mel, config), batch.num_audio_tokens)
    text = decoder.embed(batch.ids)
    at_audio = jnp.take_along_axis(features, jnp.maximum(batch.audio_index, 0)[..., None], axis=1)
    embeddings = jnp.where((batch.audio_index >= 0)[..., None], at_audio, text)
    hidden = _hidden(decoder, embeddings, config)

    targets = batch.targets
    positions = jnp.minimum(batch.answer_start[:, None] + jnp.arange(targets.shape[1]), hidden.shape[1] - 1)
    logits = decoder.logits(jnp.take_along_axis(hidden, positions[..., None], axis=1))
    valid = targets != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    count = jnp.sum(valid).astype(losses.dtype)
    metrics = {
        "text": jnp.sum(jnp.where(valid, losses, 0.0)) / count,
        "accuracy": jnp.sum((jnp.argmax(logits, axis=-1) == targets) & valid).astype(losses.dtype) / count,
    }
    # The audio's place in the prompt depends on the context before it.
    start = jnp.argmax(batch.audio_index >= 0, axis=1)
    at = jnp.minimum(start[:, None] + jnp.arange(features.shape[1]), hidden.shape[1] - 1)
    heard = jnp.take_along_axis(hidden, at[..., None], axis=1)
    spelled = (features @ params["ctc"]["letters"]).reshape(features.shape[0], -1, _CTC_CLASSES["letters"])
    metrics["letters"] = _ctc(spelled, _LETTER_STEPS * batch.num_audio_tokens, batch.letters)
    metrics["tokens"] = _ctc(heard @ params["ctc"]["tokens"], batch.num_audio_tokens, batch.transcript)
    return metrics["text"] + sum(weight * metrics[name] for name, weight in _CTC_WEIGHTS.items()), metrics


def _convolved(audio: Any, log_mel: Array, config: ModelConfig) -> Array:
    """`audio.convolve`, `[B, A, M]` to `[B, X, D]`, on as many clips at once as go through without a loop.

    Inside one, the convolution's gradient is 20 times slower on CPUs.
    """
    chunks = log_mel.shape[1] // config.audio.chunk_frames
    clips = max(1, MAX_CHUNKS_AT_ONCE // chunks)
    return jnp.concatenate([audio.convolve(log_mel[at : at + clips]) for at in range(0, log_mel.shape[0], clips)])


def _hidden(decoder: Any, embeddings: Array, config: ModelConfig) -> Array:
    """`[B, T, D]` normed hidden states; the caches that the decoder fills are dropped, and so never made."""
    text = config.text
    batch, length, _ = embeddings.shape
    cache = jnp.zeros((batch * text.num_kv_heads, length, text.head_dim), POLICY.cache)
    caches = (cache,) * text.num_layers
    return decoder(embeddings, caches, caches, jnp.zeros(batch, jnp.int32), False)[0]


def _ctc(logits: Array, num_frames: Array, labels: Array) -> Array:
    """Nats per label; clips without speech count through their blanks.

    Args:
      logits: `[B, X, classes]` float32; class 0 is the blank.
      num_frames: `[B]` int32, how many of the X count.
      labels: `[B, L]` int32, `IGNORED` behind their end.
    """
    frame_padding = (jnp.arange(logits.shape[1]) >= num_frames[:, None]).astype(jnp.float32)
    # The blank is class 0, so token ids move up by one.
    padding = (labels == IGNORED).astype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        losses = optax.ctc_loss(logits, frame_padding, labels + 1, padding)
    # An alignment that does not exist (too many tokens for the frames) costs a constant and teaches nothing.
    possible = losses < 1e4
    return jnp.sum(jnp.where(possible, losses, 0.0)) / jnp.maximum(jnp.sum(1 - padding), 1)


def _with_masked_bands(log_mel: Array, num_frames: Array, key: Array) -> Array:
    """SpecAugment's frequency masks: in half of the clips, bands of up to `_BAND_WIDTH` bins become the clip's mean.

    Args:
      log_mel: `[B, A, M]` float32, 0.0 behind each clip's own frames; they stay so.
      num_frames: `[B]` int32.

    Returns:
      `[B, A, M]` float32.
    """
    batch, frames, bins = log_mel.shape
    own = (jnp.arange(frames) < num_frames[:, None])[..., None]
    mean = jnp.sum(log_mel, axis=(1, 2)) / (num_frames * bins).astype(log_mel.dtype)
    on_key, *keys = jax.random.split(key, 1 + _MASKED_BANDS)
    on = jax.random.bernoulli(on_key, 0.5, (batch, 1))
    for band in keys:
        width_key, start_key = jax.random.split(band)
        width = jax.random.randint(width_key, (batch, 1), 0, _BAND_WIDTH + 1)
        start = jax.random.randint(start_key, (batch, 1), 0, bins - _BAND_WIDTH + 1)
        bin_index = jnp.arange(bins)
        masked = on & (bin_index >= start) & (bin_index < start + width)
        log_mel = jnp.where(masked[:, None] & own, mean[:, None, None], log_mel)
    return log_mel
