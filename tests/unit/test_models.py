"""The modules as modules: random initialisation, and gradients through everything that inference uses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen_asr_jax.checkpoint.key_map import leaves
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.models.functional import split
from qwen_asr_jax.models.qwen3_asr import Qwen3ASR
from qwen_asr_jax.policy import PRESETS

CONFIG = MODELS["tiny"]


def test_gradients_reach_every_parameter():
    policy = dataclasses.replace(PRESETS["fp32"], implementation="xla")  # native kernels have no derivatives
    model = Qwen3ASR(CONFIG, policy=policy, rngs=nnx.Rngs(0))
    definition, params = split(model)
    ids = jnp.arange(40, dtype=jnp.int32)[None]
    mel = jax.random.normal(jax.random.key(1), (1, 100, 128))

    def loss(params):
        model = definition.bind(params)
        features = model.audio_tower(mel, jnp.asarray([13], jnp.int32))
        embeddings = model.decoder.embed(ids).at[:, 5:18].set(features)
        text = CONFIG.text
        empty = tuple(jnp.zeros((text.num_kv_heads, 40, text.head_dim)) for _ in range(text.num_layers))
        hidden, _, _ = model.decoder(embeddings, empty, empty, jnp.zeros(1, jnp.int32), False)
        return -jax.nn.log_softmax(model.decoder.logits(hidden[:, :-1]))[0, jnp.arange(39), ids[0, 1:]].mean()

    gradients = jax.jit(jax.grad(loss))(params)
    for path, gradient in leaves(gradients):
        assert np.isfinite(gradient).all(), path
        # A bias of all keys shifts every score of a query alike, which a softmax does not see.
        if path[-2:] != ("k_proj", "bias"):
            assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("policy", PRESETS)
def test_random_and_abstract_models_have_the_same_shapes(policy):
    random = split(Qwen3ASR(CONFIG, policy=PRESETS[policy], rngs=nnx.Rngs(0)))
    abstract = split(Qwen3ASR(CONFIG, policy=PRESETS[policy]))
    shapes = [[(path, leaf.shape, leaf.dtype) for path, leaf in leaves(params)] for _, params in (random, abstract)]
    assert shapes[0] == shapes[1]
    assert random[0] == abstract[0]
    assert hash(random[0]) == hash(abstract[0])
    other = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, rope_theta=1.0))
    assert split(Qwen3ASR(other, policy=PRESETS[policy]))[0] != abstract[0]
