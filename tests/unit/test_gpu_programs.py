"""What a GPU would be given, looked at on a machine without one: the engine's programs lowered for CUDA."""

from __future__ import annotations

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_asr_jax import demo, kernels, runtime
from qwen_asr_jax.checkpoint.key_map import leaves
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.buckets import default_buckets
from qwen_asr_jax.engine.state import new_state
from qwen_asr_jax.ops import kv_cache
from qwen_asr_jax.pipelines.load import load_model, with_chosen_kernels
from qwen_asr_jax.pipelines.run_config import EngineOptions
from qwen_asr_jax.policy import PRESETS
from tests.unit.test_ops import normal

LAYERS, SLOTS = 2, 512
CONFIG = dataclasses.replace(
    MODELS["0.6b"],
    text=dataclasses.replace(MODELS["0.6b"].text, num_layers=LAYERS, vocab_size=4096),
    audio=dataclasses.replace(MODELS["0.6b"].audio, num_layers=LAYERS),
)
BUCKETS = default_buckets("gpu")
INT, FLAG = jnp.int32, jnp.bool_

OPERATION = re.compile(r"= \"?(?:stablehlo|chlo|func)\.([\w.]+)\"?|\"?stablehlo\.([\w.]+)\"?\(")
TENSOR = re.compile(r"tensor<([\dx]+)x(\w+)>")


@pytest.fixture(scope="module", params=list(PRESETS))
def gpu(request):
    """Policy, definitions and shapes as they are on a GPU."""
    with runtime.lowering_for("gpu"):
        policy = with_chosen_kernels(PRESETS[request.param])
        yield policy, *abstract_model(CONFIG, policy)


def lowered(verb, *args, **options) -> str:
    """The verb's StableHLO for CUDA."""
    return jax.export.export(verb, platforms=["cuda"])(*args, **options).mlir_module()


def shape(dims, dtype):
    return jax.ShapeDtypeStruct(dims, dtype)


def decode_text(gpu, rows=1, steps_per_check=BUCKETS.steps_per_check):
    policy, _, decoder, params = gpu
    state = jax.eval_shape(lambda: new_state(CONFIG.text, policy, rows, SLOTS))
    args = (decoder, params["decoder"], state, shape((2,), INT), shape((), INT))
    return lowered(verbs.decode, *args, chunk=32, steps_per_check=steps_per_check)


def prefill_text(gpu, rows=1, first=True, rows_at_once=0, time=192):
    policy, _, decoder, params = gpu
    state = jax.eval_shape(lambda: new_state(CONFIG.text, policy, rows, SLOTS))
    args = (
        shape((rows, time, CONFIG.text.embed_dim), jnp.float32),
        shape((rows,), INT),
        shape((rows,), INT),
        shape((2,), INT),
    )
    return lowered(verbs.prefill, decoder, params["decoder"], state, *args, first=first, rows_at_once=rows_at_once)


def encode_text(gpu, rows=1):
    _, audio, _, params = gpu
    return lowered(verbs.encode, audio, params["audio_tower"], shape((rows, 800, 128), jnp.float32), shape((rows,), INT))


def products(text: str) -> collections.Counter[tuple[str, ...]]:
    """Matrix products by the dtypes of operands and result."""
    found = collections.Counter()
    for line in text.splitlines():
        if "stablehlo.dot_general" in line:
            found[tuple(kind for _, kind in TENSOR.findall(line)[-3:])] += 1
    return found


def functions(text: str) -> dict[str, str]:
    """Bodies of the module's functions, by name."""
    return {m[1]: m[0] for m in re.finditer(r"func\.func \w+ @(\w+)\(.*?\n  }", text, re.S)}


def layer_of(text: str) -> str:
    """The function that all layers call: they are traced and lowered once."""
    (layer,) = (body for name, body in functions(text).items() if name.startswith("_call"))
    return layer


def test_projections_are_fused_on_a_gpu_and_kernels_are_not_the_cpus(gpu):
    policy, _, _, params = gpu
    assert policy.implementation == "xla"
    assert policy.fused
    attention = params["decoder"]["layers"][0]["self_attn"]
    heads = CONFIG.text.num_heads + 2 * CONFIG.text.num_kv_heads
    assert attention["qkv_proj"]["weight"].shape == (heads * CONFIG.text.head_dim, CONFIG.text.embed_dim)
    assert {"q_proj", "k_proj", "v_proj"}.isdisjoint(attention)
    assert params["decoder"]["layers"][0]["mlp"]["gate_up_proj"]["weight"].shape[0] == 2 * CONFIG.text.mlp_dim
    assert params["audio_tower"]["layers"][0]["self_attn"]["qkv_proj"]["bias"].shape == (3 * CONFIG.audio.embed_dim,)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_decode_step_is_four_products_per_layer_two_for_attention_and_the_head(gpu, rows):
    text = decode_text(gpu, rows)
    assert sum(products(layer_of(text)).values()) == 6
    assert text.count("call @_call") == LAYERS
    rest = text.replace(layer_of(text), "")
    assert sum(products(rest).values()) == 1  # the head


@pytest.mark.parametrize("make", [decode_text, prefill_text, encode_text])
def test_nothing_goes_to_the_host(gpu, make):
    text = make(gpu)
    targets = set(re.findall(r"custom_call @(\w+)", text))
    assert not {t for t in targets if "callback" in t or "qwen_asr" in t}, targets
    assert "infeed" not in text
    assert "outfeed" not in text


@pytest.mark.parametrize("make", [decode_text, prefill_text, encode_text])
def test_sums_are_float32_and_float32_products_are_not_tf32(gpu, make):
    policy = gpu[0]
    text = make(gpu)
    kinds = products(text)
    operand = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[policy.compute_dtype]
    assert kinds
    assert set(kinds) == {(operand, operand, "f32")}
    for line in text.splitlines():
        if "stablehlo.dot_general" in line and operand == "f32":
            assert "precision = [HIGHEST, HIGHEST]" in line


def test_int8_matrices_are_converted_where_they_are_used(gpu):
    policy, _, _, params = gpu
    text = decode_text(gpu)
    whole = {leaf.shape for _, leaf in leaves(params["decoder"]) if leaf.dtype == np.int8}
    assert bool(whole) == (policy.layer_dtype == "int8")
    barriers = text.count("optimization_barrier")
    assert (barriers > 0) == bool(whole)


@pytest.mark.parametrize("rows", [1, 8])
def test_the_cache_is_donated_and_written_without_a_launch_per_row(gpu, rows):
    text = decode_text(gpu, rows)
    main = next(line for line in text.splitlines() if "func.func public @main" in line)
    arguments = re.findall(r"%arg\d+: tensor<([^>]*)> (\{[^}]*\})?", main)
    cache = "x".join(map(str, (rows * CONFIG.text.num_kv_heads, SLOTS, CONFIG.text.head_dim)))
    aliased = [marks for dims, marks in arguments if dims.startswith(cache)]
    assert len(aliased) == 2 * LAYERS
    assert all("tf.aliasing_output" in marks or "jax.buffer_donor" in marks for marks in aliased)
    layer = layer_of(text)
    updates = layer.count("stablehlo.dynamic_update_slice"), layer.count('"stablehlo.scatter"')
    assert updates == ((2, 0) if rows == 1 else (0, 2))


@pytest.mark.parametrize("time", [192, SLOTS])
def test_a_prompt_into_an_empty_cache_is_one_update_for_all_rows(gpu, time):
    """Also one that fills the cache, as 30 s do."""
    layer = layer_of(prefill_text(gpu, rows=8, time=time))
    assert layer.count("dynamic_update_slice") == 2
    assert "scatter" not in layer
    assert f"tensor<64x{2 * time}x{time}xf32>" in layer  # scores: attention among the new tokens alone
    assert time == SLOTS or f"x{SLOTS}xf32>" not in layer


def test_later_blocks_of_a_prompt_attend_to_the_cache(gpu):
    layer = layer_of(prefill_text(gpu, rows=8, first=False))
    assert layer.count('"stablehlo.scatter"') == 2
    assert f"tensor<64x{2 * 192}x{SLOTS}xf32>" in layer


def test_rows_of_a_large_batch_go_through_the_prompt_in_groups(gpu):
    text = prefill_text(gpu, rows=64, rows_at_once=BUCKETS.rows_at_once(64, 192))
    assert BUCKETS.rows_at_once(64, 192) == 32
    layer = layer_of(text)
    hidden = f"tensor<32x192x{CONFIG.text.embed_dim}xf32>"
    assert hidden in layer
    assert f"tensor<64x192x{CONFIG.text.mlp_dim}" not in text


def test_loops_hold_what_they_should(gpu):
    """One that looks at the rows, and within it one of a fixed number of steps."""
    assert decode_text(gpu, steps_per_check=4).count("stablehlo.while") == 2
    assert decode_text(gpu, steps_per_check=1).count("stablehlo.while") == 1


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("time", [1, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gpus_way_of_writing_a_cache(rows, time, dtype):
    heads, slots, width = 2, 16, 4
    cache, new = normal((rows * heads, slots, width), dtype), normal((rows, heads, time, width), dtype, seed=1)
    start = jnp.asarray([3, 0, 13, 7, 9][:rows], INT)
    wanted = np.array(cache)
    for row in range(rows):
        for head in range(heads):
            wanted[row * heads + head, int(start[row]) : int(start[row]) + time] = new[row, head]
    with runtime.lowering_for("gpu"):
        found = jax.jit(kv_cache.write)(cache, new, start)
        at_zero = jax.jit(lambda c, n: kv_cache.write(c, n, None))(cache, new)
    np.testing.assert_array_equal(np.asarray(found), wanted)
    np.testing.assert_array_equal(np.asarray(at_zero)[:, :time], np.asarray(new).reshape(-1, time, width))
    np.testing.assert_array_equal(np.asarray(at_zero)[:, time:], np.asarray(cache)[:, time:])


def test_the_platform_is_only_borrowed():
    before = runtime.platform()
    with runtime.lowering_for("cpu"):
        assert runtime.platform() == "cpu"
        with runtime.lowering_for("gpu"):
            assert runtime.platform() == "gpu"
            assert kernels.missing() is None
            assert kernels.choose("auto") == "xla"
        assert runtime.platform() == "cpu"
    assert runtime.platform() == before


@pytest.mark.parametrize("policy", ["fp32", "fp16", "int8"])
def test_the_demonstration_model_understands_its_clips_as_a_gpu_would_run_it(policy):
    """Fused, in a batch that is encoded by window, with caches that grow and a batch that shrinks."""
    clips = demo.clips()
    wanted = {name: clip.text for name, clip in clips.items()}
    order = [*clips, *clips]
    with runtime.lowering_for("gpu"):
        model = load_model(demo.MODEL_DIR, policy, options=EngineOptions(cache_ahead=8, prefill_tokens=1024))
        assert model.engine.policy.fused
        solo = {name: model.transcribe(clip.path).text for name, clip in clips.items()}
        batch = model.transcribe([clips[name].path for name in order])
    assert solo == wanted
    assert [result.text for result in batch] == [wanted[name] for name in order]
