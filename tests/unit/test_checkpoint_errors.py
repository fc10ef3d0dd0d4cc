"""Loading is strict: each thing that can be wrong with a model directory fails with one line that names it.

Every case starts from a copy of a good tiny checkpoint and breaks one thing. What must load in spite of all that, and that
nothing is ever half-written, is at the end.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_asr_jax.checkpoint import convert as convert_module
from qwen_asr_jax.checkpoint import write as write_module
from qwen_asr_jax.checkpoint.convert import convert
from qwen_asr_jax.checkpoint.key_map import leaves
from qwen_asr_jax.checkpoint.load import load_checkpoint
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS, write_random_checkpoint
from qwen_asr_jax.config import read_config
from qwen_asr_jax.errors import CheckpointError, OutputError, UsageError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.policy import PRESETS
from tests.audio_samples import synthetic

TINY = MODELS["tiny"]
ALIGNER = dataclasses.replace(
    TINY, kind="aligner", head_rows=50, text=dataclasses.replace(TINY.text, tie_word_embeddings=False)
)

NORM = "thinker.model.norm.weight"
Q_PROJ = "thinker.model.layers.1.self_attn.q_proj.weight"
CONV = "thinker.audio_tower.conv2d2.weight"
HEAD = "thinker.lm_head.weight"

CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
VOCAB, MERGES, TOKENS = "vocab.json", "merges.txt", "tokenizer_config.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "sharded"
    write_random_checkpoint(path, "tiny", max_shard_bytes=100_000)
    assert len(shards(path)) >= 3
    return path


@pytest.fixture(scope="module")
def orbax(tiny_original, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "orbax"
    convert(tiny_original, path, PRESETS["bf16"])
    return path


@pytest.fixture
def copy_of(request, tmp_path):
    """A private copy of the checkpoint that a fixture holds."""
    return lambda name: shutil.copytree(request.getfixturevalue(name), tmp_path / name)


def assert_refused(model_dir, *parts: str) -> None:
    """Loading raises a `CheckpointError` of one line that names the directory and all `parts`."""
    with pytest.raises(CheckpointError) as e:
        load_model(model_dir, policy="fp32")
    message = str(e.value)
    assert "\n" not in message
    for part in (str(model_dir), *parts):
        assert part in message


def params_of(model_dir, policy: str = "fp32"):
    return load_checkpoint(model_dir, read_config(model_dir), PRESETS[policy]).params


def assert_bit_equal(found, wanted) -> None:
    found, wanted = dict(leaves(found)), dict(leaves(wanted))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        assert found[path].dtype == leaf.dtype, path
        assert np.asarray(found[path]).tobytes() == np.asarray(leaf).tobytes(), path


# Ways to break a model directory: each returns a function of the directory.


def write(name: str, content: str | bytes):
    return lambda model_dir: (model_dir / name).write_bytes(content.encode() if isinstance(content, str) else content)


def delete(name: str):
    return lambda model_dir: (model_dir / name).unlink()


def edit(name: str, change):
    def apply(model_dir):
        content = json.loads((model_dir / name).read_text(encoding="utf-8"))
        change(content)
        (model_dir / name).write_text(json.dumps(content), encoding="utf-8")

    return apply


def config(section: str, **values):
    """Sets fields of a section of config.json (`body` is what holds the sections, in either layout); None deletes one."""

    def change(content):
        body = content.get("thinker_config", content)
        part = {"root": content, "body": body}.get(section) or body[section]
        part.update(values)
        for name in [name for name, value in values.items() if value is None]:
            del part[name]

    return edit(CONFIG, change)


def text(**values):
    return config("text_config", **values)


def audio(**values):
    return config("audio_config", **values)


def tensors(change, name: str = "model.safetensors"):
    def apply(model_dir):
        content = load_file(model_dir / name)
        change(content)
        save_file(content, model_dir / name, metadata={"format": "pt"})

    return apply


def tensor(name: str, change):
    return tensors(lambda t: t.update({name: change(t[name])}))


def truncate(name: str, share: float = 0.7):
    def apply(model_dir):
        data = (model_dir / name).read_bytes()
        (model_dir / name).write_bytes(data[: int(share * len(data))])

    return apply


def extra_shard(change):
    """`change(model_dir, weight_map, name of a shard that does not hold NORM)`."""

    def apply(model_dir):
        content = json.loads((model_dir / INDEX).read_text())
        weight_map = content["weight_map"]
        change(model_dir, weight_map, next(f for f in weight_map.values() if f != weight_map[NORM]))
        (model_dir / INDEX).write_text(json.dumps(content))

    return apply


def duplicate(model_dir, weight_map, other):
    tensors(lambda t: t.update({NORM: np.ones(48, np.float32)}), other)(model_dir)


def shorten_vocabulary(model_dir):
    edit(VOCAB, lambda vocab: vocab.pop(max(vocab, key=vocab.get)))(model_dir)
    merges = (model_dir / MERGES).read_text().splitlines()
    (model_dir / MERGES).write_text("\n".join(merges[:-1]) + "\n")


def three_problems(t):
    t.update({"extra": t.pop(NORM), Q_PROJ: t[Q_PROJ][:-1]})


def shards(model_dir) -> list[str]:
    return sorted(path.name for path in model_dir.glob("*.safetensors"))


ORIGINAL = [
    # config.json as a file
    (delete(CONFIG), [CONFIG, "no such file"]),
    *((write(CONFIG, content), [CONFIG]) for content in ("", "{", "[]", b"\xff\xfe")),
    # settings that are not supported or make no sense
    (text(rope_theta=None), [CONFIG, "rope_theta", "missing"]),
    (text(hidden_act="gelu"), [CONFIG, "hidden_act='gelu'", "silu"]),
    (text(rope_scaling={"rope_type": "yarn"}), [CONFIG, "rope_type='yarn'", "default"]),
    (text(rope_scaling={"type": "linear"}), [CONFIG, "rope", "'linear'"]),
    (text(rope_scaling="yarn"), [CONFIG, "rope_"]),
    (text(attention_bias=True), [CONFIG, "attention_bias=True"]),
    (text(use_sliding_window=True), [CONFIG, "use_sliding_window=True"]),
    (audio(activation_function="relu"), [CONFIG, "activation_function='relu'"]),
    (audio(n_window_infer=750), [CONFIG, "n_window_infer 750"]),
    (audio(output_dim=64), [CONFIG, "output_dim 64", "hidden_size 48"]),
    (audio(encoder_attention_heads=5), [CONFIG, "5 heads"]),
    (text(num_key_value_heads=3), [CONFIG, "3 kv heads"]),
    (text(head_dim=15), [CONFIG, "head_dim 15"]),
    (text(hidden_size="48"), [CONFIG, "hidden_size", "'48'"]),
    (text(num_hidden_layers=0), [CONFIG, "num_hidden_layers"]),
    (text(rms_norm_eps="tiny"), [CONFIG, "rms_norm_eps", "'tiny'"]),
    (config("body", text_config=[1]), [CONFIG, "text_config"]),
    (config("root", support_languages=5), [CONFIG, "support_languages"]),
    *((edit(GENERATION, lambda c, v=v: c.update(eos_token_id=v)), ["eos_token_id"]) for v in ("x", ["x"], {}, [10**11])),
    (write(GENERATION, "[1]"), [GENERATION]),
    (write(GENERATION, "{"), [GENERATION]),
    # weights
    (delete("model.safetensors"), ["no model.safetensors", "download"]),
    (truncate("model.safetensors"), ["model.safetensors is truncated", "download"]),
    (truncate("model.safetensors", 0.001), ["model.safetensors is truncated"]),
    (write("model.safetensors", b""), ["model.safetensors is truncated"]),
    (write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), ["not a safetensors file"]),
    (tensors(lambda t: t.pop(NORM)), [f"{NORM} is missing"]),
    (tensors(lambda t: t.update({"thinker.visual": np.zeros(3, np.float32)})), ["thinker.visual is unknown"]),
    (tensor(Q_PROJ, lambda q: q.T.copy()), [f"{Q_PROJ} has shape [48, 64], config.json makes it [64, 48]"]),
    (tensor(CONV, lambda c: c.T.copy()), [f"{CONV} has shape [3, 3, 16, 16], config.json makes it [16, 16, 3, 3]"]),
    (tensor(NORM, lambda n: n.astype(np.int32)), [f"{NORM} is stored as I32"]),
    (tensor(NORM, lambda n: n.astype(np.float64)), [f"{NORM} is stored as F64"]),
    (tensors(three_problems), [f"{NORM} is missing", "extra is unknown", f"{Q_PROJ} has shape [63, 48]"]),
    (tensors(lambda t: t.update({f"x{i}": np.zeros(1) for i in range(50)})), ["x0 is", "and 44 more"]),
    (text(intermediate_size=97), ["mlp.gate_proj.weight has shape [96, 48], config.json makes it [97, 48]"]),
    # the tokenizer
    *((delete(name), [name, "missing"]) for name in (VOCAB, MERGES, TOKENS)),
    *((write(MERGES, content), [MERGES]) for content in ("one two three\nfour\n", "zzz qqq\n", b"\xff\xfe")),
    *((write(VOCAB, content), [VOCAB]) for content in ("{", "{}", "[]")),
    *((write(TOKENS, content), [TOKENS, "added_tokens_decoder"]) for content in ("{}", "[]")),
    *(
        (edit(TOKENS, lambda c, v=v: c.update(added_tokens_decoder=v)), [TOKENS, "added_tokens_decoder"])
        for v in ([1], {"one": {"content": "x"}}, {"384": {}}, {"384": "x"})
    ),
    (edit(TOKENS, lambda c: c["added_tokens_decoder"].pop("384")), [TOKENS, "<|im_start|> at 385"]),
    (shorten_vocabulary, ["vocab.json has 383 entries", "<|endoftext|> at 384"]),
    *((write("tokenizer.json", content), ["tokenizer.json"]) for content in ("{", "{}", "[]")),
    (text(vocab_size=400), ["vocab_size 400"]),
]
BOTH = [
    *(
        (config(section, **{name: None}), [CONFIG, name, "missing"])
        for section, names in {
            "text_config": "hidden_size head_dim vocab_size num_key_value_heads rms_norm_eps max_position_embeddings",
            "audio_config": "d_model n_window n_window_infer num_mel_bins encoder_layers",
            "body": "audio_config text_config audio_token_id",
        }.items()
        for name in names.split()
    ),
    (config("body", audio_token_id=True), [CONFIG, "audio_token_id", "True"]),
    (config("body", audio_token_id=7), ["audio_token_id 7", "<|audio_pad|>"]),
]
NATIVE = [
    (text(rope_parameters={"rope_type": "default"}), [CONFIG, "rope_theta", "missing"]),
    (text(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}), [CONFIG, "rope_type='yarn'"]),
    *((write("tokenizer.json", content), ["tokenizer.json"]) for content in ("{", "{}", "[]")),
]
SECOND = "model-00002-of-"
SHARDED = [
    (lambda model_dir: (model_dir / shards(model_dir)[1]).unlink(), [SECOND, "is absent"]),
    (lambda model_dir: truncate(shards(model_dir)[1])(model_dir), [SECOND, "is truncated"]),
    *((write(INDEX, content), [INDEX]) for content in ("{", "{}", "[]", '{"weight_map": []}')),
    *((write(INDEX, json.dumps({"weight_map": {NORM: value}})), [INDEX]) for value in (3, ["x"])),
    (extra_shard(lambda _, weight_map, other: weight_map.update({NORM: other})), [f"{NORM} is not in model-"]),
    (extra_shard(lambda _, weight_map, other: weight_map.update(unheard=other)), ["unheard is not in model-"]),
    (extra_shard(duplicate), [f"{NORM} is in two files, model-"]),
]
MARKER = "qwen_asr_jax.json"
ORBAX = [
    (write(MARKER, '{"format": 999}'), ["format 999", "convert_checkpoint.py"]),
    (write(MARKER, "{}"), ["convert_checkpoint.py"]),
    (write(MARKER, "[]"), ["convert"]),
    (write(MARKER, "{"), [MARKER]),
    (lambda model_dir: shutil.rmtree(model_dir / "params"), ["params", "convert"]),
    (delete("params/_METADATA"), ["params", "convert"]),
    (write("params/_METADATA", "{"), ["params", "convert"]),
    (text(intermediate_size=97), ["mlp.gate_proj.weight has shape [96, 48], config.json makes it [97, 48]"]),
    (text(num_hidden_layers=4), ["decoder.layers.3.", "is missing"]),
    (text(num_hidden_layers=2), ["decoder.layers.2.", "is unknown"]),
    (text(tie_word_embeddings=False), ["decoder.lm_head.weight is missing"]),
]
BROKEN = [
    *(("tiny_original", *case) for case in ORIGINAL + BOTH),
    *(("tiny_native", *case) for case in NATIVE + BOTH),
    *(("sharded", *case) for case in SHARDED),
    *(("orbax", *case) for case in ORBAX),
]


@pytest.mark.parametrize("source, breaking, parts", BROKEN, ids=[f"{source}-{' '.join(p)}" for source, _, p in BROKEN])
def test_what_is_broken_is_named(copy_of, source, breaking, parts):
    model_dir = copy_of(source)
    breaking(model_dir)
    assert_refused(model_dir, *parts)


def test_model_dir_must_be_a_directory(tmp_path, tiny_original):
    assert_refused(tmp_path / "absent", "no such directory")
    assert_refused(tiny_original / CONFIG, "is a file")


@pytest.mark.parametrize("layout", ["original", "native"])
def test_an_aligner_cannot_transcribe_but_its_weights_load(tmp_path, layout):
    write_random_checkpoint(tmp_path / "aligner", ALIGNER, layout=layout)
    assert_refused(tmp_path / "aligner", "aligner", "cannot transcribe")
    write_random_checkpoint(tmp_path / "other", ALIGNER)
    params = params_of(tmp_path / "aligner")
    assert params["decoder"]["lm_head"]["weight"].shape == (50, 48)
    assert_bit_equal(params, params_of(tmp_path / "other"))


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("source", ["tiny_native", "sharded", "orbax"])
def test_every_layout_loads_bit_equal(request, tiny_original, source, policy):
    """The orbax directory holds bf16 as the others do, so nothing was lost for the wider formats."""
    assert_bit_equal(params_of(request.getfixturevalue(source), policy), params_of(tiny_original, policy))


def test_a_distilled_geometry_loads(tmp_path):
    write_random_checkpoint(tmp_path / "x", dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, num_layers=14)))
    assert sorted(params_of(tmp_path / "x")["decoder"]["layers"]) == list(range(14))
    load_model(tmp_path / "x", policy="fp32")


def test_a_tied_model_ignores_a_stored_head_and_an_untied_one_needs_it(copy_of, tiny_original):
    model_dir = copy_of("tiny_original")
    tensor(HEAD, lambda head: np.zeros_like(head))(model_dir)
    assert_bit_equal(params_of(model_dir), params_of(tiny_original))
    text(tie_word_embeddings=False)(model_dir)
    assert not np.asarray(params_of(model_dir)["decoder"]["lm_head"]["weight"]).any()
    tensors(lambda t: t.pop(HEAD))(model_dir)
    assert_refused(model_dir, f"{HEAD} is missing")


@pytest.mark.parametrize("policy", PRESETS)
def test_an_orbax_directory_round_trips_bit_for_bit(tmp_path, tiny_original, policy):
    convert(tiny_original, tmp_path / "out", PRESETS[policy])
    assert_bit_equal(params_of(tmp_path / "out", policy), params_of(tiny_original, policy))


def test_weights_beyond_float16_saturate_in_every_layout(copy_of, tmp_path):
    model_dir = copy_of("tiny_original")
    tensor(Q_PROJ, lambda q: np.where(np.arange(48) == 7, q.dtype.type(1e6), q))(model_dir)
    convert(model_dir, tmp_path / "out", PRESETS["bf16"])
    loaded = params_of(model_dir, "fp16")
    assert np.isfinite(np.asarray(loaded["decoder"]["layers"][1]["self_attn"]["q_proj"]["weight"])).all()
    assert_bit_equal(params_of(tmp_path / "out", "fp16"), loaded)


def make(source, out) -> None:
    write_random_checkpoint(out, "tiny")


def convert_bf16(source, out) -> None:
    convert(source, out, PRESETS["bf16"])


@pytest.mark.parametrize("create", [make, convert_bf16])
def test_an_output_that_is_taken_is_refused_and_left_alone(tmp_path, tiny_original, create):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for out in ("out", "out/thesis.txt", "out/thesis.txt/below"):
        with pytest.raises(OutputError, match=f"^{tmp_path / out}: "):
            create(tiny_original, tmp_path / out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "thesis.txt"]


@pytest.mark.parametrize("create", [make, convert_bf16])
def test_an_empty_directory_may_be_written_to(tmp_path, tiny_original, create):
    create(tiny_original, tmp_path)
    result = load_model(tmp_path, policy="bf16").transcribe(synthetic(0.5), max_new_tokens=1)
    assert len(result.tokens) == 1 or result.finish_reason == "eos"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("a bug")])
@pytest.mark.parametrize("create, where", [(make, write_module), (convert_bf16, convert_module.orbax_store)])
def test_a_failure_midway_leaves_nothing_behind(tmp_path, tiny_original, monkeypatch, create, where, error):
    name = "write_tensors" if create is make else "save"
    real = getattr(where, name)

    def write_and_fail(*arguments):
        real(*arguments)
        raise error

    monkeypatch.setattr(where, name, write_and_fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        create(tiny_original, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_made_leaves_nothing_behind(tmp_path, copy_of):
    small = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=400))
    with pytest.raises(UsageError, match="'huge'"):
        write_random_checkpoint(tmp_path / "out", "huge")
    with pytest.raises(UsageError, match="400 rows"):
        write_random_checkpoint(tmp_path / "out", small)
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        write_random_checkpoint(tmp_path / "out", "tiny", tokenizer_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    model_dir = copy_of("tiny_original")
    truncate("model.safetensors")(model_dir)
    with pytest.raises(CheckpointError, match="truncated"):
        convert_bf16(model_dir, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model_dir]
