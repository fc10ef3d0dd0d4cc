"""What the sections of a GPU's report measure: products that stay in their loops, counts of kernels, costs, sound, states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax.bench.gpu import costs, hlo, loop, matvec, measurement, sound
from qwen_asr_jax.bench.gpu.matrices import STORED, TURNED, products
from qwen_asr_jax.bench.gpu.measurement import COSTS
from qwen_asr_jax.bench.gpu.sheet import RESULTS, Sheet, Task
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.errors import QwenASRError


def sheet_in(folder, **settings):
    return Sheet(Task("a step", "machine", settings, str(folder), str(folder), 0.0, quick=True))


def operands(dtype, layout, count=3, rows=2):
    shape = (24, 16) if layout == STORED else (16, 24)
    return matvec._values((rows, 16), "bfloat16" if dtype == "int8" else dtype, count), matvec._values(shape, dtype, count)


@pytest.mark.parametrize("layout", [STORED, TURNED])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8"])
def test_many_products_are_right(dtype, layout):
    if (dtype, layout) == ("int8", TURNED):
        pytest.skip("not measured")
    xs, weights = operands(dtype, layout)
    scale = jnp.linspace(0.1, 1.0, 24, dtype=jnp.float32) if dtype == "int8" else None
    found = matvec.many(xs, weights, scale, repeats=2, layout=layout)
    for x, weight, y in zip(xs, weights, found, strict=True):
        matrix = np.asarray(weight, np.float32)
        wanted = np.asarray(x, np.float32) @ (matrix.T if layout == STORED else matrix)
        np.testing.assert_allclose(y, wanted * (1 if scale is None else np.asarray(scale)), rtol=2e-2, atol=2e-2)


def test_products_stay_in_the_loop():
    """XLA must not compute them once, before it."""
    xs, weights = operands("float32", STORED, count=5)
    text = matvec.many.lower(xs, weights, None, repeats=7, layout=STORED).compile().as_text()
    bodies = [lines for name, lines in hlo._computations(text).items() if name in hlo._BODY.findall(text)]
    assert sum(" dot(" in line or " fusion(" in line for lines in bodies for line in lines) >= 5
    assert hlo.loop_kernels(text) >= 5


def test_matrices_do_not_share_memory():
    weights = matvec._values((64, 64), "float32", 3)
    assert len({weight.unsafe_buffer_pointer() for weight in weights}) == 3
    assert len(np.unique(np.asarray(weights[0]))) > 1000
    assert np.abs(np.asarray(matvec._values((64, 64), "int8", 1)[0])).max() > 100


HLO = """HloModule jit_decode

%fused (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %b = f32[4]{0} add(%a, %a)
}

%captured (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %c = f32[4]{0} fusion(%p), kind=kLoop, calls=%fused
  ROOT %d = f32[4]{0} custom-call(%c), custom_call_target="product"
}

%inner (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[4]{0} get-tuple-element(%t), index=1
  %y = f32[4]{0} call(%x), to_apply=%captured
  %z = f32[4]{0} copy(%y)
  ROOT %r = (s32[], f32[4]{0}) tuple(%i, %z)
}

%outer (u: (s32[], f32[4])) -> (s32[], f32[4]) {
  %u = (s32[], f32[4]{0}) parameter(0)
  %w = (s32[], f32[4]{0}) while(%u), condition=%looks, body=%inner
  %v = f32[4]{0} get-tuple-element(%w), index=1
  %e = f32[4]{0} fusion(%v), kind=kLoop, calls=%fused
  ROOT %s = (s32[], f32[4]{0}) tuple(%i, %e)
}

ENTRY %main (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  %before = f32[4]{0} fusion(%q), kind=kLoop, calls=%fused
  ROOT %n = (s32[], f32[4]{0}) while(%before), condition=%looks, body=%outer
}
"""


def test_kernels_are_counted_in_loops_alone_and_once():
    assert hlo.loop_kernels(HLO) == 4  # fusion and product of the graph, copy, fusion of the outer loop; not the one before
    assert hlo.loop_kernels("ENTRY %main () -> f32[] {\n  ROOT %a = f32[] add(%b, %c)\n}") == 0


def test_the_newest_program_of_a_name_is_found():
    def decode_of_this_test(x, times):
        return jax.lax.fori_loop(0, times, lambda _, y: jnp.sin(y), x)

    compiled = jax.jit(decode_of_this_test, static_argnums=1)
    held = [compiled.lower(jnp.ones(size), 5).compile() for size in (3, 4)]
    assert "f32[4]" in hlo.program_text("decode_of_this_test")
    assert hlo.program_text("never compiled") is None
    assert hlo.kernels_of(held[0]) >= 1


def test_products_are_those_of_the_published_sizes():
    assert products(MODELS["0.6b"].text) == {
        "q|k|v": (4096, 1024),
        "o": (1024, 2048),
        "gate|up": (6144, 1024),
        "down": (1024, 3072),
        "head": (151936, 1024),
    }


def test_costs_are_those_of_the_targets(tmp_path):
    costs.write_costs(sheet_in(tmp_path), ["0.6b"])
    found = {(each.name, each.settings["rows"]): each for each in measurement.read(tmp_path / RESULTS)[0]}
    assert all(each.section == COSTS for each in found.values())
    step = found["step", 1].figures
    assert step["bytes"] == pytest.approx(1.192e9 + 173 * 114688, rel=0.01)  # the weights once, the cache of 173 tokens
    assert step["tokens"] == 158  # as a clip of 11 s has in this model
    many = found["step", 128].figures
    assert many["bytes"] == pytest.approx(1.192e9 + 128 * 450 * 114688, rel=0.01)
    assert many["flops"] > 127 * step["flops"]


def test_sound_is_the_same_everywhere_and_differs_by_seed():
    clip = sound.clip(2.0, seed=1)
    assert clip.duration_s == 2.0
    assert clip.samples.shape == (32000,)
    assert clip.samples.dtype == np.float32
    assert 0.2 < np.abs(clip.samples).max() <= 1.0
    np.testing.assert_array_equal(clip.samples, sound.clip(2.0, seed=1).samples)
    assert np.abs(clip.samples - sound.clip(2.0, seed=2).samples).max() > 0.1
    energy = np.abs(np.fft.rfft(clip.samples)) ** 2
    assert energy.reshape(-1)[:16000].reshape(8, -1).sum(axis=1).min() > 1e-3  # something in every kilohertz


def test_states_differ_by_seed_and_steps_are_exactly_those(model):
    steps = 5
    first, second = (loop._run(model.engine, loop._state(model.engine, 62, steps, seed), steps)[1] for seed in (1, 2))
    assert len(first) == len(second) == steps
    assert first != second
    again = loop._run(model.engine, loop._state(model.engine, 62, steps, 1), steps)[1]
    assert again == first
    with pytest.raises(QwenASRError, match="chose 5 tokens where 6"):
        loop._run(model.engine, loop._state(model.engine, 62, steps, 1), steps + 1)


def test_other_loops_are_held_against_the_plain_one_alone(tmp_path):
    plain = {"preset": "tiny", "policy": "bf16", "implementation": "auto", "variant": "", "steps_per_check": 1}
    assert loop._plain_tokens(tmp_path, plain | {"steps_per_check": 8}, [[1], [2]]) is None
    assert loop._plain_tokens(tmp_path, plain | {"variant": "flags"}, [[1], [2]]) is None
    assert loop._plain_tokens(tmp_path, plain, [[3], [4]]) == [[3], [4]]
    assert loop._plain_tokens(tmp_path, plain | {"steps_per_check": 8}, [[1], [2]]) == [[3], [4]]
    assert loop._plain_tokens(tmp_path, plain | {"policy": "int8", "variant": "flags"}, [[1], [2]]) is None
    assert loop._plain_tokens(tmp_path, plain, [[5], [6]]) == [[5], [6]]  # measured anew
