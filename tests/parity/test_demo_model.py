"""The bundled demonstration model in transformers: the same tokens on the bundled clips, in float32."""

from __future__ import annotations

import pytest

from qwen_asr_jax import demo
from qwen_asr_jax.audio.read import read_audio
from qwen_asr_jax.pipelines.load import load_model
from tests.parity.native_copy import write_native_copy


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    from tests.parity.oracle import Oracle

    return Oracle(write_native_copy(demo.MODEL_DIR, tmp_path_factory.mktemp("demo") / "native"))


@pytest.mark.parametrize("name", ["short", "english", "german", "long", "silence"])
def test_the_reference_says_the_same(oracle, name):
    model = load_model(demo.MODEL_DIR, "fp32")
    clip = demo.clips()[name]
    result = model.transcribe(clip.path)
    tokens = oracle.transcribe(model, read_audio(clip.path).samples)
    assert result.text == clip.text
    assert list(result.tokens) == tokens
