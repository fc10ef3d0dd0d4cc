"""A short fixed clip through the model, layer by layer: where NaN, infinity or values too large for float16 first appear.

The verbs say of a whole run whether something in it was not finite, and saturating casts say nothing. Here every layer is a
call of its own, and tells what entered its casts (`ops.cast.recording`). All layers of a kind share one compiled program,
always of plain XLA: native kernels keep what they cast to themselves, and the parameters are the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_asr_jax.audio.frames import HOP_LENGTH, SAMPLE_RATE
from qwen_asr_jax.checkpoint.key_map import SCALE, leaves
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.engine.engine import Engine
from qwen_asr_jax.models.audio_encoder import AudioEncoder
from qwen_asr_jax.models.functional import Definition
from qwen_asr_jax.models.text_decoder import TextDecoder
from qwen_asr_jax.ops.activations import gelu
from qwen_asr_jax.ops.cast import FP16_LIMIT, recording
from qwen_asr_jax.ops.rope import rope_tables
from qwen_asr_jax.text.prompt import build_prompt
from qwen_asr_jax.text.tokenizer import Tokenizer
from qwen_asr_jax.typing import Array, Params

_CHUNKS = 2
"""Encoder chunks of the clip: two seconds in every published model. Whole ones, so that no token is padding."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one layer said.

    Attributes:
      name: its path among the parameters: `audio_tower.layers.3`, `decoder.layers.17`.
      largest: largest |value| that entered a cast to an operand's dtype; 0.0 where nothing is cast, NaN where one was NaN.
      largest_to_float16: the same of casts to float16 alone, which cut off what is above `FP16_LIMIT`.
      finite: neither these values nor what came out hold NaN or infinity.
    """

    name: str
    largest: float
    largest_to_float16: float
    finite: bool

    @property
    def saturated(self) -> bool:
        """Whether a cast to float16 cut something off."""
        return self.largest_to_float16 > FP16_LIMIT


def probe(engine: Engine, tokenizer: Tokenizer) -> tuple[Reading, ...]:
    """Readings of all layers, in the order in which they compute.

    A layer behind one that is not finite is mostly not finite either: the first one is to blame.

    Args:
      engine: whose parameters and policy are looked at. Its states are not touched.
      tokenizer: encodes the prompt, which is the one of a clip without context.
    """
    config = engine.config
    one_each = dataclasses.replace(
        config,
        audio=dataclasses.replace(config.audio, num_layers=1),
        text=dataclasses.replace(config.text, num_layers=1),
    )
    tower, decoder, _ = abstract_model(one_each, dataclasses.replace(engine.policy, implementation="xla"))
    audio_params, text_params = engine.checkpoint.params["audio_tower"], engine.checkpoint.params["decoder"]
    names: list[str] = []
    measured: list[Array] = []

    def run(name: str, definition: Definition, call: Callable[..., Array], params: Params, *args: Any) -> Array:
        out, figures = _observe(definition, call, params, *args)
        names.append(name)
        measured.append(figures)
        return out

    samples = probe_clip(_CHUNKS * config.audio.chunk_frames * HOP_LENGTH)
    in_tower = [_with_layer(audio_params, i) for i in range(config.audio.num_layers)]
    x = run("audio_tower.conv_stem", tower, AudioEncoder.convolve, in_tower[0], engine.log_mel([samples]))
    for i, params in enumerate(in_tower):
        x = run(f"audio_tower.layers.{i}", tower, _encoder_layer, params, x)
    for name, call in (("ln_post", _ln_post), ("proj1", _proj1), ("proj2", _proj2)):
        x = run(f"audio_tower.{name}", tower, call, in_tower[0], x)

    prompt = build_prompt(tokenizer, _CHUNKS * config.audio.chunk_tokens)
    ids, in_decoder = (
        np.asarray([prompt.ids], np.int32),
        [_with_layer(text_params, i) for i in range(config.text.num_layers)],
    )
    x = run("decoder.embed_tokens", decoder, _embed, in_decoder[0], ids, x, np.int32(prompt.audio_start))
    for i, params in enumerate(in_decoder):
        x = run(f"decoder.layers.{i}", decoder, _decoder_layer, params, x)
    x = run("decoder.norm", decoder, _norm, in_decoder[0], x)
    head = "embed_tokens" if config.text.tie_word_embeddings else "lm_head"
    run(f"decoder.{head}", decoder, TextDecoder.logits, in_decoder[0], x)
    return tuple(
        Reading(name, float(largest), float(to_float16), bool(finite))
        for name, (largest, to_float16, finite) in zip(names, jax.device_get(measured), strict=True)
    )


def broken_parameters(engine: Engine, name: str) -> list[str]:
    """Paths of the parameters of a layer, named as in `Reading`, that hold NaN or infinity; scales count as their weight."""
    node = engine.checkpoint.params
    for key in name.split("."):
        node = node[int(key) if key.isdecimal() else key]
    found: dict[str, None] = {}
    for path, leaf in leaves(node):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not bool(jnp.isfinite(leaf).all()):
            keys = (*path[:-1], "weight") if path[-1] == SCALE else path
            found[".".join([name, *map(str, keys)])] = None
    return list(found)


def probe_clip(num_samples: int) -> np.ndarray:
    """Sound that moves every mel bin at once and one after another: a voice-like hum, bursts of noise, a rising tone, a gap.

    Returns:
      `[num_samples]` float32 within [-1, 1]; always the same.
    """
    t = np.arange(num_samples) / SAMPLE_RATE
    pitch = 140 + 40 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    hum = sum(np.sin(k * phase) / k for k in range(1, 24)) * np.clip(np.sin(2 * np.pi * 2.1 * t), 0, 1)
    noise = np.random.default_rng(0).uniform(-1, 1, num_samples) * (np.sin(2 * np.pi * 3.7 * t) > 0.6)
    rising = np.sin(2 * np.pi * (200 + 1800 * t) * t) * (np.sin(2 * np.pi * 1.3 * t) > 0.5)
    x = 0.25 * hum + 0.3 * noise + 0.2 * rising
    return np.clip(x * ((t < 0.9) | (t > 1.0)), -1, 1).astype(np.float32)


def _with_layer(params: Params, index: int) -> Params:
    """The parameters of a tower or decoder as those of one with a single layer, which is layer `index`."""
    return {**params, "layers": {0: params["layers"][index]}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe(definition: Definition, call: Callable[..., Array], params: Params, *args: Any) -> tuple[Array, Array]:
    """`call(module, *args)`, and `[3]` float32: the figures of a `Reading`. Parameters that are not used cost nothing."""
    with recording() as casts:
        out = call(definition.bind(params), *args)
    values = [value for _, value in casts]
    to_float16 = [value for dtype, value in casts if dtype == np.float16]
    finite = jnp.isfinite(out).all() & jnp.isfinite(_largest(values))
    return out, jnp.stack([_largest(values), _largest(to_float16), finite.astype(jnp.float32)])


def _largest(values: list[Array]) -> Array:
    return jnp.max(jnp.stack(values)) if values else jnp.float32(0)


def _encoder_layer(tower: AudioEncoder, x: Array) -> Array:
    chunk_tokens, window_chunks = tower.config.chunk_tokens, min(_CHUNKS, tower.config.window_chunks)
    windows = -(-_CHUNKS // window_chunks)
    positions = jnp.arange(windows * window_chunks * chunk_tokens)
    mask = (positions < x.shape[1]).reshape(1, windows, -1)
    return tower.layers[0](x, mask)


def _ln_post(tower: AudioEncoder, x: Array) -> Array:
    return tower.ln_post(x)


def _proj1(tower: AudioEncoder, x: Array) -> Array:
    return tower.proj1(x)


def _proj2(tower: AudioEncoder, x: Array) -> Array:
    return tower.proj2(gelu(x))


def _embed(decoder: TextDecoder, ids: Array, features: Array, audio_start: Array) -> Array:
    start = (jnp.int32(0), audio_start, jnp.int32(0))
    return jax.lax.dynamic_update_slice(decoder.embed(ids), features, start)


def _decoder_layer(decoder: TextDecoder, x: Array) -> Array:
    config, time = decoder.config, x.shape[1]
    positions = jnp.arange(time)[None]
    rope = rope_tables(positions, config.head_dim, config.rope_theta)
    cache = jnp.zeros((config.num_kv_heads, time, config.head_dim), decoder.policy.cache)
    mask = positions <= positions[..., None]
    out, _, _ = decoder.layers[0](x, rope, cache, cache, jnp.zeros(1, jnp.int32), mask.reshape(1, time, time))
    return out


def _norm(decoder: TextDecoder, x: Array) -> Array:
    """The last position alone, which is all that the head is asked for."""
    return decoder.norm(x[:, -1:])
