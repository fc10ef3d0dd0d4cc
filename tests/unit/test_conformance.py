"""The published conformance vectors of a tiny model whose weights are given by a formula.

Config: encoder 32 wide, 2 layers, 2 heads, mlp 64, 8 conv channels; decoder 24 wide, mlp 40, 2 layers, 4 heads, 2 kv heads of
16, vocabulary 50, tied. The expected numbers were computed with an independent NumPy model and with transformers.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax.audio.frames import num_audio_tokens
from qwen_asr_jax.checkpoint.key_map import entries
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.config import AudioConfig, ModelConfig, TextConfig
from qwen_asr_jax.policy import PRESETS

AUDIO = AudioConfig(128, 8, 50, 800, 32, 2, 2, 64, 24)
TEXT = TextConfig(50, 24, 40, 2, 4, 2, 16, 1e-6, 1e6, 4096, True)
CONFIG = ModelConfig("asr", "original", AUDIO, TEXT, 50, 47, (), ())
TOLERANCE = 1e-5  # float32 noise is 1e-6; a LayerNorm epsilon of 1e-6 would already show as 2.6e-5


def _wave(k: np.ndarray, j: int | None = None) -> np.ndarray:
    z = 43758.5453 * np.sin(12.9898 * (k + 1) + (0.0 if j is None else 78.233 * (j + 1)))
    return 2 * (z - np.floor(z)) - 1


def _weights():
    *definitions, abstract = abstract_model(CONFIG, PRESETS["fp32"])
    wanted = sorted(entries(abstract, CONFIG), key=lambda e: e.name)
    assert len(wanted) == 69
    by_name, params = {}, {}
    for j, entry in enumerate(wanted):
        shape = entry.stored_shape
        u = _wave(np.arange(np.prod(shape), dtype=np.float64), j).reshape(shape)
        if entry.name.endswith("embed_tokens.weight"):
            pass
        elif len(shape) >= 2:
            u = u * np.sqrt(3 / np.prod(shape[1:]))
        elif entry.name.endswith("bias"):
            u = 0.1 * u
        else:
            u = 1 + 0.2 * u
        by_name[entry.name] = u
        node = params
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = jnp.asarray(entry.to_parameter(u.astype(np.float32)))
    return definitions, params, by_name


@pytest.fixture(scope="module")
def tiny():
    (audio, decoder), params, _ = _weights()
    return audio.bind(params["audio_tower"]), decoder.bind(params["decoder"])


def _mel(frames: int) -> np.ndarray:
    return _wave(np.arange(128 * frames, dtype=np.float64)).reshape(128, frames).astype(np.float32)


def _encode(encoder, frames: int) -> np.ndarray:
    padded = np.zeros((1, -(-frames // 100) * 100, 128), np.float32)
    padded[0, :frames] = _mel(frames).T
    tokens = num_audio_tokens(frames, AUDIO)
    return np.asarray(encoder(jnp.asarray(padded), jnp.asarray([tokens], jnp.int32)))[0, :tokens]


def test_formula_gives_the_published_weights_and_mel():
    _, _, by_name = _weights()
    for name, start in {
        "thinker.audio_tower.conv2d1.bias": [0.0480170, 0.0128790, -0.0090502],
        "thinker.audio_tower.conv2d1.weight": [-0.4920132, -0.1567711, -0.1902928],
        "thinker.model.norm.weight": [0.8675661, 0.9350728, 1.0793410],
    }.items():
        np.testing.assert_allclose(by_name[name].ravel()[:3], start, atol=1e-7)
    mel = _mel(130)
    np.testing.assert_allclose(mel[0, :3], [0.8433808, -0.8855637, 0.1164452], atol=1e-6)
    assert mel[127, 129] == pytest.approx(0.133611, abs=1e-6)


@pytest.mark.parametrize(
    "frames, tokens, first, last, total",
    [
        (8, 1, [0.22462, 0.11840, -0.18830], [0.22462, 0.11840, -0.18830], 11.959),
        (50, 7, [-0.07586, 0.03627, 0.12973], [0.48900, 0.02142, 0.30747], 72.4424),
        (100, 13, [-0.41389, 0.34463, -0.07546], [-0.14009, 0.42091, 0.05936], 146.7169),
        (130, 17, [-0.25068, 0.23718, 0.04090], [-0.24461, 0.25001, -0.19443], 187.3887),
        (850, 111, [-0.35550, 0.35075, -0.02562], [0.47954, 0.07866, 0.15001], 1248.136),
        (1700, 221, [-0.32709, 0.33331, 0.06175], [-0.12295, 0.38742, 0.13783], 2501.429),
    ],
)
def test_encoder(tiny, frames, tokens, first, last, total):
    out = _encode(tiny[0], frames)
    assert out.shape == (tokens, 24)
    np.testing.assert_allclose(out[0, :3], first, atol=TOLERANCE)
    np.testing.assert_allclose(out[-1, :3], last, atol=TOLERANCE)
    assert np.abs(out).sum() == pytest.approx(total, rel=2e-6, abs=1e-3)


def _logits(decoder, embeddings: jnp.ndarray) -> np.ndarray:
    time = embeddings.shape[1]
    empty = tuple(jnp.zeros((2, time, 16)) for _ in range(2))
    hidden, _, _ = decoder(embeddings, empty, empty, jnp.zeros(1, jnp.int32), False)
    return np.asarray(decoder.logits(hidden))[0]


def test_decoder_on_text(tiny):
    decoder = tiny[1]
    logits = _logits(decoder, decoder.embed(jnp.arange(1, 8)[None]))
    # The fourth was published as 0.05511; transformers gives 0.0550994 in float32 and 0.0551004 in float64.
    np.testing.assert_allclose(logits[-1, :5], [1.96735, -2.16280, -1.67200, 0.05510, -0.96178], atol=TOLERANCE)


def test_decoder_on_audio(tiny):
    encoder, decoder = tiny
    features = _encode(encoder, 130)
    ids = jnp.asarray([[1, 2, 3] + [47] * 17 + [4, 5, 6]])
    embeddings = decoder.embed(ids).at[0, 3:20].set(features)
    logits = _logits(decoder, embeddings)
    np.testing.assert_allclose(logits[0, :3], [0.17601, 2.21814, -3.85443], atol=TOLERANCE)
    np.testing.assert_allclose(logits[-1, :5], [-0.32631, 4.77370, 2.54304, 1.59505, -3.77723], atol=TOLERANCE)
    assert logits[-1].argmax() == 6
    assert logits.shape == (23, 50)
    assert np.abs(logits).sum() == pytest.approx(2679.97, abs=5e-3)
