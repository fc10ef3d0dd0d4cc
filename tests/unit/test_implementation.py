"""Which kernels compute: the choice, where it can be said, and what says it of results."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from qwen_asr_jax import cli, kernels
from qwen_asr_jax.bench import baseline, fields, provenance, tables
from qwen_asr_jax.bench.compare import compare_sets
from qwen_asr_jax.bench.options import Options
from qwen_asr_jax.bench.record import parse
from qwen_asr_jax.bench.sweep import grid, points_of, sweep_config
from qwen_asr_jax.errors import BackendError, UsageError
from qwen_asr_jax.kernels import cpu
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.run_config import from_run_config, run_config
from qwen_asr_jax.policy import PRESETS
from tests.audio_samples import synthetic
from tests.bench_records import record
from tests.kernel_cases import needs_kernels

REASON = "they were not built"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def without(monkeypatch):
    """A CPU host without native kernels."""
    monkeypatch.setattr(cpu, "unavailable", lambda: REASON)


@pytest.fixture
def having(monkeypatch):
    """A CPU host with native kernels, as far as the choice goes."""
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    monkeypatch.setattr(cpu, "instruction_set", lambda: "avx2")


def computed_by(name, policy="bf16"):
    return dataclasses.replace(PRESETS[policy], implementation=name)


def test_auto_takes_native_kernels_where_they_are(having):
    names = ("auto", "xla", "cpu")
    assert [kernels.choose(name) for name in names] == ["cpu", "xla", "cpu"]
    assert [kernels.describe(computed_by(name)) for name in names] == ["cpu avx2", "xla", "cpu avx2"]
    assert {*names, "cuda"} == set(kernels.IMPLEMENTATIONS)
    assert kernels.missing() is None


def test_auto_is_xla_where_there_are_none(without):
    assert kernels.choose("auto") == kernels.describe(computed_by("xla")) == kernels.describe(computed_by("auto")) == "xla"
    assert kernels.missing() == REASON
    with pytest.raises(NotImplementedError, match=REASON):
        kernels.choose("cpu")


def test_a_gpu_lacks_nothing(without, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kernels.missing() is None


def test_an_unknown_name_lists_the_known():
    with pytest.raises(NotImplementedError, match="'abacus'; there are auto, xla, cpu"):
        kernels.choose("abacus")


@needs_kernels
def test_modules_work_whatever_is_chosen(tiny_original):
    samples = synthetic(0.5)
    wanted = load_model(tiny_original, "fp32", implementation="xla").transcribe(samples, max_new_tokens=4)
    for name in ("auto", "cpu"):
        model = load_model(tiny_original, "fp32", implementation=name)
        assert model.engine.policy.implementation == "cpu"
        assert model.transcribe(samples, max_new_tokens=4).tokens == wanted.tokens


def test_the_argument_goes_on_top_of_the_policy(tiny_original, without):
    xla = dataclasses.replace(PRESETS["fp32"], implementation="xla")
    assert load_model(tiny_original, xla).engine.policy.implementation == "xla"
    for policy, name, part in ((xla, "cpu", REASON), ("fp32", "cpu", REASON), ("fp32", "abacus", "auto, xla, cpu")):
        with pytest.raises(BackendError, match=part) as e:
            load_model(tiny_original, policy, implementation=name)
        assert "\n" not in str(e.value)


def test_kernels_do_not_change_a_presets_name():
    config = run_config(PRESETS["bf16"])
    config.policy.implementation = "xla"
    policy, _ = from_run_config(config)
    assert (policy.name, policy.implementation) == ("bf16", "xla")
    assert "policy" not in Options().settings(policy)
    config.policy.layer_dtype = "int8"
    policy, _ = from_run_config(config)
    assert policy.name == "bf16, changed"
    assert "implementation" not in Options().settings(policy)["policy"]


@pytest.fixture
def script_flags(monkeypatch):
    """Sets the model flags as a command line does, for one test."""
    if "implementation" not in flags.FLAGS:
        cli.define_model_flags()

    def set_flags(*words):
        monkeypatch.setattr(sys, "argv", ["test", *words])  # where overrides of a config are looked for
        flags.FLAGS(sys.argv)

    with flagsaver.flagsaver():
        yield set_flags


@pytest.mark.parametrize(
    "words, name, implementation",
    [
        ([], "bf16", "auto"),
        (["--policy=int8", "--implementation=xla"], "int8", "xla"),
        (["--config=configs/int8_all.py", "--implementation=cpu"], "int8_all", "cpu"),
        (["--config=configs/fp32.py", "--config.policy.implementation=xla"], "fp32", "xla"),
        (["--config=configs/fp32.py", "--config.policy.implementation=xla", "--implementation=auto"], "fp32", "auto"),
    ],
)
def test_the_flag_goes_on_top_of_policy_and_config(script_flags, monkeypatch, words, name, implementation):
    monkeypatch.chdir(ROOT)
    script_flags(*words)
    policy, _ = cli.policy_from_flags()
    assert (policy.name, policy.implementation) == (name, implementation)


def test_missing_kernels_are_said_once_and_only_where_they_were_to_be_chosen(without, capsys):
    cli.warn_of_missing_kernels(PRESETS["bf16"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert REASON in err
    assert "C++17 compiler" in err
    cli.warn_of_missing_kernels(dataclasses.replace(PRESETS["bf16"], implementation="xla"))
    assert capsys.readouterr().err == ""


def test_records_say_what_computed(having):
    assert provenance.kernel_notes() == ()
    native = record(implementation="cpu avx2")
    assert parse(native.to_json()).implementation == "cpu avx2"
    old = json.loads(record().to_json())
    del old["implementation"]
    assert fields.implementation(parse(json.dumps(old))) == "xla"
    assert fields.implementation(record(workload="roofline", model=None)) == ""
    assert fields.implementation(record(error="no memory")) == ""


def test_a_note_says_why_there_are_no_kernels(without):
    assert provenance.kernel_notes() == (f"without native kernels: {REASON}",)


def test_kernels_tell_records_apart_and_are_shown_where_they_do():
    old, native = record(), record(implementation="cpu avx2")
    same = record(implementation="xla")
    assert fields.identity(old) == fields.identity(same) != fields.identity(native)
    assert fields.identity(old, without=("implementation",)) == fields.identity(native, without=("implementation",))
    assert [row.implementation for row in fields.make_rows([old, same])] == ["", ""]
    both = fields.make_rows([old, native])
    assert sorted(row.implementation for row in both) == ["cpu avx2", "xla"]
    assert "kernels" in tables.summary_table(both).splitlines()[0]
    assert "kernels" not in tables.summary_table(fields.make_rows([old, same])).splitlines()[0]


def test_sets_are_compared_across_kernels_if_asked_for():
    old, native = record(), record(implementation="cpu avx2")
    with pytest.raises(UsageError, match="differ in implementation"):
        compare_sets([old], [native])
    (row,) = compare_sets([old], [native], across=["implementation"]).rows
    assert "xla" not in row.what
    (row,) = compare_sets([native], [native]).rows
    assert "avx2" not in row.what
    rows = compare_sets([old, native], [old, native]).rows
    assert sorted("cpu avx2" in row.what for row in rows) == [False, True]


def test_a_log_compares_new_kernels_with_old_ones_where_it_has_no_others():
    old, native, same = record(), record((50.0, 55.0), implementation="cpu avx2"), record(implementation="xla")
    found = baseline.compare([old], [native])
    assert found.pairs == [(old, native)]
    assert "kernels xla -> cpu avx2" in baseline.comparison_text(found, "before")
    found = baseline.compare([old], [native, same])
    assert (found.pairs, found.gone, found.new) == ([(old, same)], [], [native])
    found = baseline.compare([native], [record(implementation="cpu avx512"), same])
    assert (len(found.pairs), len(found.gone), len(found.new)) == (1, 0, 1)


def test_memory_is_shown_by_kernels_where_they_differ():
    memory = {"weights": {"bfloat16": 4e6}, "peak_rss_bytes": 9e6}
    rows = fields.make_rows([record(memory=memory), record(memory=memory, implementation="cpu avx2")])
    text = tables.memory_table(rows)
    assert "kernels" in text.splitlines()[0]
    assert len(text.splitlines()) == 4
    assert "kernels" not in tables.memory_table(rows[:1]).splitlines()[0]


def test_records_of_changed_policies_from_before_int8_are_the_same_measurement():
    dtypes = {"name": "bf16, changed", "param_dtype": "bfloat16", "cache_dtype": "float32"}
    old = record(policy="bf16, changed", settings={"policy": dtypes})
    new = record(policy="bf16, changed", settings={"policy": dtypes | {"layer_dtype": "bfloat16", "head_dtype": "bfloat16"}})
    assert fields.identity(old) == fields.identity(new)


def test_sweeps_can_set_the_kernels():
    points = points_of(sweep_config(grid(implementation=["xla", "cpu"])))
    assert [point.flags["implementation"] for point in points] == ["xla", "cpu"]
    assert all("--implementation=" in " ".join(point.arguments()) for point in points)
    (roofline,) = points_of(sweep_config([{"workload": "roofline", "implementation": "xla"}]))
    assert "implementation" not in roofline.flags
    assert fields.point(record(sweep={"point": {"implementation": "xla"}})) == ()
