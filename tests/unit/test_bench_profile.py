"""Profiles: operations are named after the model's own functions, per stage."""

from __future__ import annotations

import pytest

from qwen_asr_jax.bench.profile import operation_sources, profile_table
from qwen_asr_jax.errors import OutputError
from tests.audio_samples import synthetic

PROGRAM = """HloModule jit_decode, is_scheduled=true

FileNames
1 "/somewhere/qwen_asr_jax/engine/verbs.py"
2 "/somewhere/qwen_asr_jax/nn/decoder_layer.py"
3 "/somewhere/qwen_asr_jax/nn/layers.py"
4 "/somewhere/qwen_asr_jax/ops/linear/xla.py"

FunctionNames
1 "decode.<locals>.step"
2 "GatedMLP.__call__"
3 "Linear.__call__"
4 "_dot"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=1 end_line=1 column=1 end_column=2}
3 {file_name_id=3 function_name_id=3 line=1 end_line=1 column=1 end_column=2}
4 {file_name_id=4 function_name_id=4 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}

%body (a: f32[2]) -> f32[2] {
  %wide.1 = f32[2,3072]{1,0} dot(%a, %b), metadata={op_name="jit(decode)/while/body/jit(_call)/dot_general" stack_frame_id=4}
  ROOT %arg_max.7 = (s32[1]{0}, f32[1]{0}) fusion(%c), metadata={op_name="jit(decode)/while/body/reduce" stack_frame_id=1}
  %bare = f32[4]{0} copy(%d)
}
"""


def test_operations_are_named_after_the_models_functions():
    assert operation_sources(PROGRAM) == {
        "wide.1": ("GatedMLP dot_general", "f32[2,3072]"),
        "arg_max.7": ("decode reduce", "s32[1]"),
    }


def test_a_program_without_a_table_of_frames():
    text = '  %x.1 = f32[2]{0} add(%a, %b), metadata={op_name="jit(f)/add"}\n'
    assert operation_sources(text) == {"x.1": ("add", "f32[2]")}


def test_native_kernels_go_by_their_names():
    call = 'custom-call(%a), custom_call_target="qwen_asr_head_v1", metadata={op_name="jit(decode)/while/body/ffi_call"}'
    assert operation_sources(f"  %ffi_call.2 = (s32[1]{{0}}, f32[1]{{0}}) {call}\n") == {
        "ffi_call.2": ("qwen_asr_head", "s32[1]")
    }


def test_a_real_trace(model, tmp_path):
    model.transcribe(synthetic(1.0), max_new_tokens=4)
    table = profile_table(lambda: model.transcribe(synthetic(1.0), max_new_tokens=4), tmp_path / "trace")
    titles = [line.split(":")[0] for line in table.splitlines() if " ms " in line and ":" in line]
    assert {"encode", "prefill", "decode", "log_mel"} <= set(titles)
    native = model.engine.policy.implementation == "cpu"
    assert ("TextDecoder qwen_asr_decoder_layers" if native else "GatedMLP dot_general") in table
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_traces_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        profile_table(lambda: None, tmp_path / "file" / "trace")
