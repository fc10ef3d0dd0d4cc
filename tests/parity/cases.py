"""What parity is measured on, and how: geometries, clips, and one comparison that gives one row of numbers."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax.numpy as jnp
import numpy as np

from qwen_asr_jax.audio.read import read_audio
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS, write_random_checkpoint
from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.policy import PRESETS
from qwen_asr_jax.text.prompt import build_prompt
from tests.audio_samples import SHARED_AUDIO, synthetic

TOKENS = 24


def _changed(audio: dict, text: dict) -> ModelConfig:
    base = MODELS["tiny"]
    text_config = dataclasses.replace(base.text, **text)
    audio_config = dataclasses.replace(base.audio, **({"output_dim": text_config.embed_dim} | audio))
    return dataclasses.replace(base, audio=audio_config, text=text_config)


GEOMETRIES: dict[str, ModelConfig] = {
    "tiny": MODELS["tiny"],
    # attention twice as wide as the decoder, as in the 0.6B model; odd numbers of heads and channels in the encoder
    "wide heads": _changed(
        {"embed_dim": 96, "num_heads": 3, "conv_channels": 12, "num_layers": 3}, {"embed_dim": 64, "head_dim": 32}
    ),
    "distilled, 14 layers": _changed({}, {"num_layers": 14, "num_heads": 8}),
    "one kv head, 4 s windows": _changed({"n_window_infer": 400}, {"num_kv_heads": 1}),
    "no grouping": _changed({"num_heads": 1}, {"num_kv_heads": 4, "rope_theta": 1e4}),
}

CLIPS: dict[str, float] = {"0.3 s": 0.3, "3.64 s": 3.64, "11 s": 11.0, "35 s": 35.0}
"""Synthetic clips by length: below the minimum, within one window, in two windows, in five."""


@functools.cache
def clip(name: str) -> np.ndarray:
    """Samples of a named clip; `jfk` is a real recording, there only in development."""
    if name == "jfk":
        return read_audio(SHARED_AUDIO / "jfk.wav").samples
    return synthetic(CLIPS[name], seed=round(CLIPS[name] * 100))


def clip_names() -> list[str]:
    """All clips that this machine has."""
    return [*CLIPS, *(["jfk"] if (SHARED_AUDIO / "jfk.wav").exists() else [])]


def checkpoints(geometry: ModelConfig | str, root: pathlib.Path, tokenizer_dir: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the geometry in both layouts under `root`."""
    for layout in ("original", "native"):
        write_random_checkpoint(root / layout, geometry, layout=layout, seed=7, tokenizer_dir=tokenizer_dir)
    return root


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison with the reference.

    Attributes:
      mel_error: largest absolute difference of the log-mel.
      encoder_error: largest absolute difference of the audio features, over their largest value.
      logit_error: root mean square difference of the logits along the reference's tokens, over their standard deviation.
      choices: positions, of `TOKENS`, at which the same token comes out when both are fed the reference's tokens.
      tokens_equal: free-running greedy decoding gives the same tokens.
    """

    mel_error: float
    encoder_error: float
    logit_error: float
    choices: int
    tokens_equal: bool


class Reference:
    """The oracle's answers for one checkpoint and clip, computed once.

    Attributes:
      own_errors: by policy, the logit error of transformers' own model in that policy's dtype, against the oracle.
    """

    def __init__(self, oracle, halves: dict, model: QwenASR, samples: np.ndarray):
        self.features = oracle.features(samples)
        self.encoded = oracle.encode(self.features)
        self.prompt = build_prompt(model.tokenizer, len(self.encoded))
        self.tokens = oracle.generate(list(self.prompt.ids), self.features, TOKENS)
        forced = [*self.prompt.ids, *self.tokens[:-1]]
        self.logits = oracle.logits(forced, self.features)[len(self.prompt.ids) - 1 :]
        self.own_errors = {
            policy: self.logit_error(half.logits(forced, self.features)[len(self.prompt.ids) - 1 :])
            for policy, half in halves.items()
        }

    def logit_error(self, logits: np.ndarray) -> float:
        """Root mean square difference from the oracle's logits, over their standard deviation."""
        return float(np.sqrt(np.mean((logits - self.logits) ** 2)) / self.logits.std())


def references(root: pathlib.Path) -> dict[str, Reference]:
    """The oracle's answers for all clips, on the checkpoint under `root`."""
    import torch

    from tests.parity.oracle import Oracle

    oracle = Oracle(root / "native")
    halves = {policy: Oracle(root / "native", getattr(torch, PRESETS[policy].compute_dtype)) for policy in ("bf16", "fp16")}
    ours = load(root, "native", "fp32")
    return {name: Reference(oracle, halves, ours, clip(name)) for name in clip_names()}


def compare(model: QwenASR, reference: Reference, samples: np.ndarray) -> Row:
    """Runs our model on the clip and compares every stage."""
    engine = model.engine
    padded = read_audio(samples).samples
    count = engine.num_audio_tokens(len(padded))
    mel = engine.log_mel([padded])
    (features,) = engine.encode(mel, [count]).arrays
    encoded = np.asarray(features)[0, :count]
    frames = len(padded) // 160
    theirs = reference.features.input_features[0, :, :frames].numpy().T
    logits = _forced_logits(model, reference, features)
    result = model.transcribe(samples, max_new_tokens=len(reference.tokens))
    ours = list(result.tokens) + ([] if result.truncated else reference.tokens[len(result.tokens) :])
    return Row(
        mel_error=float(np.abs(np.asarray(mel)[0, :frames] - theirs).max()),
        encoder_error=float(np.abs(encoded - reference.encoded).max() / np.abs(reference.encoded).max()),
        logit_error=reference.logit_error(logits),
        choices=int((logits.argmax(-1) == reference.logits.argmax(-1)).sum()),
        tokens_equal=ours == reference.tokens,
    )


def _forced_logits(model: QwenASR, reference: Reference, features) -> np.ndarray:
    """Our logits at the positions that chose the reference's tokens."""
    checkpoint, text = model.engine.checkpoint, model.engine.config.text
    decoder = checkpoint.decoder.bind(checkpoint.params["decoder"])
    prompt = reference.prompt
    ids = jnp.asarray([[*prompt.ids, *reference.tokens[:-1]]], jnp.int32)
    at = slice(prompt.audio_start, prompt.audio_start + prompt.num_audio_tokens)
    embeddings = decoder.embed(ids).at[0, at].set(features[0, : prompt.num_audio_tokens])
    cache = tuple(
        jnp.zeros((text.num_kv_heads, ids.shape[1], text.head_dim), model.engine.policy.cache)
        for _ in range(text.num_layers)
    )
    hidden, _, _ = decoder(embeddings, cache, cache, jnp.zeros(1, jnp.int32), False)
    return np.asarray(decoder.logits(hidden[0, len(prompt.ids) - 1 :]))


def load(root: pathlib.Path, layout: str, policy: str) -> QwenASR:
    """Our model from one of the layouts under `root`."""
    return load_model(root / layout, policy=policy)
