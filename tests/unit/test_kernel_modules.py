"""The modules that native kernels compute as one call, against the same modules in XLA."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax import kernels
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.config import AudioConfig, TextConfig
from qwen_asr_jax.models.audio_encoder import AudioEncoder
from qwen_asr_jax.models.text_decoder import TextDecoder
from qwen_asr_jax.nn.conv_stem import Conv2d, ConvStem
from qwen_asr_jax.nn.decoder_layer import DecoderLayer
from qwen_asr_jax.nn.encoder_layer import EncoderLayer
from qwen_asr_jax.ops.rope import rope_tables
from qwen_asr_jax.policy import PRESETS
from tests.kernel_cases import MIXED_POLICIES, NATIVE_POLICIES, assert_close, both, needs_kernels, normal, under

TINY = MODELS["tiny"]
ODD_TEXT = TextConfig(97, 50, 77, 1, 6, 2, 18, 1e-6, 1e6, 4096, True)
"""Nothing is a multiple of a vector, and three query heads share a key head."""
WIDE_TEXT = TextConfig(97, 256, 384, 1, 4, 2, 128, 1e-6, 1e6, 4096, True)
"""The head width of the real models."""
ODD_AUDIO = AudioConfig(128, 5, 50, 800, 42, 1, 3, 70, 48)
"""Few channels, heads of 14."""

native_policies = pytest.mark.parametrize("policy", NATIVE_POLICIES, ids=lambda policy: policy.name)
pytestmark = needs_kernels


def by_name(*names):
    return pytest.mark.parametrize("policy", [PRESETS[name] for name in names], ids=names)


def decoder_case(config, policy, start, time, slots, over_cache=True):
    """Arguments of a decoder layer: a cache that is filled up to `start`, with what must not be read behind it."""
    batch, shape = len(start), (len(start) * config.num_kv_heads, slots, config.head_dim)
    start = np.asarray(start, np.int32)
    filled = np.repeat(np.arange(slots) < start[:, None], config.num_kv_heads, axis=0)[..., None]
    caches = [jnp.asarray(np.where(filled, normal(shape, seed=seed), 3e4), policy.cache) for seed in (1, 2)]
    positions = start[:, None] + np.arange(time)
    mask = np.arange(slots) <= positions[..., None]
    if not over_cache:
        mask = np.broadcast_to(np.arange(time) <= np.arange(time)[:, None], (batch, time, time))
    rope = rope_tables(jnp.asarray(positions), config.head_dim, config.rope_theta)
    return normal((batch, time, config.embed_dim)), rope, *caches, start, mask


def check_decoder_layer(config, policy, start, time, slots, over_cache=True, batches=None):
    """Compares the results, and what became of the caches.

    Args:
      batches: for each, so many of the first rows are compared as a batch of their own; None for all rows at once.
    """
    xla, native = both(lambda **kw: DecoderLayer(config, **kw), policy)
    x, rope, *caches, start, mask = decoder_case(config, policy, start, time, slots, over_cache)
    wanted = [np.asarray(each) for each in xla(x, rope, *caches, start if over_cache else None, mask)]
    for n in batches or [len(start)]:
        heads = n * config.num_kv_heads
        given = [cache[:heads] for cache in caches]
        begin = start[:n] if over_cache else None
        out, *updated = native(x[:n], [each[:n] for each in rope], *given, begin, mask[:n])
        assert_close(out - x[:n], wanted[0][:n] - x[:n], policy)  # the residual hides nothing
        written = (np.arange(slots) >= start[:n, None]) & (np.arange(slots) < start[:n, None] + time)
        written = np.repeat(written, config.num_kv_heads, axis=0)
        for before, after, of_xla in zip(given, updated, wanted[1:], strict=True):
            assert after.dtype == policy.cache
            np.testing.assert_array_equal(np.asarray(after)[~written], np.asarray(before)[~written])
            assert_close(np.asarray(after)[written], of_xla[:heads][written], policy)


STARTS = [0, 299, 7, 255, 256, 31, 120, 298, 1]
"""The first slot and the last, and those around a block of 256."""


class TestDecoderLayer:
    @pytest.mark.parametrize("config", [TINY.text, ODD_TEXT], ids=["tiny", "odd"])
    @native_policies
    def test_one_token_per_row(self, policy, config):
        check_decoder_layer(config, policy, STARTS, 1, 300, batches=range(1, 10))

    @pytest.mark.parametrize("time", [9, 158])
    @by_name("fp32", "bf16")
    def test_a_prompt(self, policy, time):
        check_decoder_layer(TINY.text, policy, [0, 0], time, 160, over_cache=False)

    @pytest.mark.parametrize("time", [2, 70])
    @native_policies
    def test_more_tokens_up_to_the_last_slot(self, policy, time):
        check_decoder_layer(ODD_TEXT, policy, [3, 0, 300 - time], time, 300)

    @pytest.mark.parametrize("time", [1, 40])
    @by_name(*PRESETS)
    def test_wide_heads(self, policy, time):
        check_decoder_layer(WIDE_TEXT, policy, [20, 88 - time], time, 88)

    def test_the_whole_cache_at_once(self):
        check_decoder_layer(TINY.text, PRESETS["fp32"], [0], 33, 33)

    @pytest.mark.parametrize("time", [1, 12])
    @by_name("fp32", "bf16", "int8")
    def test_a_nan_stays_in_its_row(self, policy, time):
        _, native = both(lambda **kw: DecoderLayer(TINY.text, **kw), policy)
        x, *rest = decoder_case(TINY.text, policy, [0, 5, 9], time, 64)
        x[1, time - 1, 3] = np.nan
        out = np.asarray(native(x, *rest)[0])
        assert np.isnan(out[1, -1]).all()
        assert np.isfinite(out[[0, 2]]).all()

    @pytest.mark.parametrize("time", [1, 12])
    def test_large_values_saturate_under_fp16(self, time):
        """Where the reference saturates, so that one large channel does not become an infinity."""
        policy = PRESETS["fp16"]
        xla, native = both(lambda **kw: DecoderLayer(TINY.text, **kw), policy)
        x, *rest = decoder_case(TINY.text, policy, [0, 5], time, 64)
        x[:, :, 4] = 1e5
        for out in (xla(x, *rest), native(x, *rest)):
            assert all(np.isfinite(np.asarray(each)).all() for each in out)

    def test_a_row_does_not_depend_on_the_others(self):
        """Whatever else is in the batch, for a batch that goes the same way."""
        _, native = both(lambda **kw: DecoderLayer(TINY.text, **kw), PRESETS["bf16"])
        x, (cos, sin), k, v, start, mask = decoder_case(TINY.text, PRESETS["bf16"], [4, 9, 30, 63], 1, 64)
        heads = TINY.text.num_kv_heads
        whole = np.asarray(native(x, (cos, sin), k, v, start, mask)[0])
        for row in range(4):
            one, cached = slice(row, row + 1), slice(row * heads, (row + 1) * heads)
            alone = native(x[one], (cos[one], sin[one]), k[cached], v[cached], start[one], mask[one])[0]
            np.testing.assert_allclose(alone[0], whole[row], atol=2e-2, rtol=1e-2)


def window_mask(windows, size, valid):
    return np.arange(windows * size).reshape(windows, size) < np.asarray(valid)[:, None, None]


class TestEncoderLayer:
    @pytest.mark.parametrize(
        "time, windows, size, valid",
        [
            (13, 1, 13, [13]),
            (26, 1, 26, [26, 1, 14]),
            (143, 2, 104, [143, 60, 105]),
            (5, 1, 9, [5]),
            (208, 2, 104, [208, 104]),
        ],
    )
    @by_name("fp32", "bf16", "fp16", "int8")
    def test_windows(self, policy, time, windows, size, valid):
        config = ODD_AUDIO
        xla, native = both(lambda **kw: EncoderLayer(config, **kw), policy)
        x, mask = normal((len(valid), time, config.embed_dim)), window_mask(windows, size, valid)
        wanted, found = xla(x, mask), native(x, mask)
        assert np.isfinite(found).all(), "what is behind a clip's end means nothing, but is not NaN"
        means = np.arange(time) < np.asarray(valid)[:, None]
        assert_close((found - x)[means], (wanted - x)[means], policy)

    def test_padding_is_never_read(self):
        _, native = both(lambda **kw: EncoderLayer(TINY.audio, **kw), PRESETS["fp32"])
        x, mask = normal((2, 39, TINY.audio.embed_dim)), window_mask(1, 39, [20, 39])
        clean = np.asarray(native(x, mask))
        x[0, 20:] = np.nan
        np.testing.assert_array_equal(native(x, mask)[0, :20], clean[0, :20])

    def test_fp16_clamps_its_output(self):
        policy = PRESETS["fp16"]
        xla, native = both(lambda **kw: EncoderLayer(TINY.audio, **kw), policy)
        x, mask = 1e5 * normal((1, 13, TINY.audio.embed_dim)), window_mask(1, 13, [13])
        wanted, found = np.asarray(xla(x, mask)), np.asarray(native(x, mask))
        assert np.abs(found).max() == np.abs(wanted).max() == 64504
        assert_close(found, wanted, policy)


class TestConvStem:
    @pytest.mark.parametrize("config, chunks", [(TINY.audio, 1), (ODD_AUDIO, 3)], ids=["tiny", "odd"])
    @by_name("fp32", "bf16", "fp16", "int8")
    def test_chunks(self, policy, config, chunks):
        xla, native = both(lambda **kw: ConvStem(config, **kw), policy)
        x = normal((chunks, config.chunk_frames, config.num_mel_bins))
        assert_close(native(x), xla(x), policy)

    @by_name("fp32", "bf16")
    def test_groups_of_chunks(self, policy):
        """More than go through at once, in groups of which the last is padded."""
        xla, native = both(lambda **kw: ConvStem(TINY.audio, **kw), policy)
        x = normal((67, TINY.audio.chunk_frames, TINY.audio.num_mel_bins))
        wanted, found = xla(x), native(x)
        assert_close(found, wanted, policy)
        np.testing.assert_array_equal(found[:3], native(x[:3]))

    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 9), (3, 100, 4)])
    @pytest.mark.parametrize("c_in, c_out", [(1, 5), (8, 3), (33, 40)])
    @by_name("fp32", "bf16", "fp16")
    def test_one_convolution(self, policy, shape, c_in, c_out):
        xla, native = both(lambda **kw: Conv2d(c_in, c_out, **kw), policy)
        x = normal((*shape, c_in))
        found = native(x)
        assert found.dtype == policy.compute
        assert_close(found, xla(x).astype(policy.compute), policy)


class TestWholeHalves:
    @by_name("fp32", "bf16", "fp16", "int8")
    def test_the_encoder(self, policy):
        xla, native = both(lambda **kw: AudioEncoder(TINY.audio, **kw), policy)
        mel, tokens = 0.5 * normal((3, 9 * 100, 128)), np.asarray([117, 40, 105], np.int32)
        wanted, found = xla(mel, tokens), native(mel, tokens)
        means = np.arange(wanted.shape[1]) < tokens[:, None]
        assert_close(found[means], wanted[means], policy, factor=4)  # several layers, one behind the other

    @pytest.mark.parametrize("shape", [(1,), (2, 4), (3, 7)])
    @by_name(*PRESETS)
    def test_logits(self, policy, shape):
        xla, native = both(lambda **kw: TextDecoder(TINY, **kw), policy, "logits")
        hidden = normal((*shape, TINY.text.embed_dim))
        wanted, found = xla(hidden), native(hidden)
        assert found.shape == (*shape, TINY.text.vocab_size)
        assert_close(found, wanted, policy)

    def test_a_head_of_its_own(self):
        config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, tie_word_embeddings=False), head_rows=77)
        for method in ("logits", "greedy"):
            xla, native = both(lambda **kw: TextDecoder(config, **kw), PRESETS["fp32"], method)
            hidden = normal((4, config.text.embed_dim))
            for found, wanted in zip(jax.tree.leaves(native(hidden)), jax.tree.leaves(xla(hidden)), strict=True):
                assert_close(found, wanted, PRESETS["fp32"])


@pytest.mark.parametrize("policy", MIXED_POLICIES, ids=lambda policy: policy.name)
def test_other_mixtures_are_computed_by_xla(policy):
    """Bit by bit, and without a single native call."""
    assert kernels.for_policy(under(policy, "auto")) == "xla"
    layer = both(lambda **kw: DecoderLayer(TINY.text, **kw), policy)
    args = decoder_case(TINY.text, policy, [3, 8], 1, 16)
    cases = [(layer, args)]
    encoder = both(lambda **kw: EncoderLayer(TINY.audio, **kw), policy)
    cases.append((encoder, (normal((1, 13, TINY.audio.embed_dim)), window_mask(1, 13, [9]))))
    cases.append((both(lambda **kw: ConvStem(TINY.audio, **kw), policy), (normal((1, 100, 128)),)))
    cases.append((both(lambda **kw: TextDecoder(TINY, **kw), policy, "greedy"), (normal((2, TINY.text.embed_dim)),)))
    for (xla, chosen), args in cases:
        assert "qwen_asr" not in str(jax.make_jaxpr(chosen)(*args))
        jax.tree.map(np.testing.assert_array_equal, chosen(*args), xla(*args))
