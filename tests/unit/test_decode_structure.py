"""What the compiled decode loop must not contain: anything of the size of the cache or of a weight that is moved each step."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from qwen_asr_jax.checkpoint.key_map import leaves
from qwen_asr_jax.checkpoint.load import abstract_model
from qwen_asr_jax.checkpoint.random_checkpoint import MODELS
from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.state import cache_bytes, new_state
from qwen_asr_jax.kernels import cpu
from qwen_asr_jax.ops.screen import screen_of
from qwen_asr_jax.policy import PRESETS, Policy
from tests.kernel_cases import needs_kernels, under

SLOTS = 256
CONFIG = dataclasses.replace(MODELS["0.6b"], text=dataclasses.replace(MODELS["0.6b"].text, num_layers=2, vocab_size=4096))
"""The 0.6B model's layers, two of them, with a smaller vocabulary: shapes at which XLA takes its real decisions."""

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = \w+\[([\d,]+)\]\S* ([\w\-]+)\((.*)")
CALLED = re.compile(r"(?:condition|body|calls|to_apply)=%?([\w.\-]+)")
MOVES = {"copy", "slice", "dynamic-slice", "convert", "transpose", "concatenate", "pad", "gather", "scatter"}


def compile_decode(policy, rows, jitted=verbs.decode, screened=False, **options):
    """The decode verb, compiled for abstract arguments, and the weights' shapes."""
    _, decoder, abstract = abstract_model(CONFIG, policy)
    state = jax.eval_shape(lambda: new_state(CONFIG.text, policy, rows, SLOTS))
    eos_ids, steps = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    screen = jax.eval_shape(screen_of, abstract["decoder"]["embed_tokens"]["weight"]) if screened else None
    lowered = jitted.lower(decoder, abstract["decoder"], state, eos_ids, steps, chunk=32, screen=screen, **options)
    return lowered.compile(), abstract["decoder"]


STORED = [
    Policy("bf16 stored", "bfloat16", "float32", "float32", "float32", "float32", "bfloat16", "bfloat16"),
    Policy("fp16 stored", "float16", "float32", "float32", "bfloat16", "float32", "float16", "float16"),
]
"""Mixtures that only XLA computes."""
NATIVE = [under(policy, "cpu") for policy in PRESETS.values()]


def label(policy):
    return f"{policy.name}-{policy.implementation}"


def cases(rows):
    """Policies with the kernels that compute them, each with so many rows."""
    chosen = [
        pytest.param((under(p, "xla"), n), id=f"{label(under(p, 'xla'))}-{n}")
        for p in [*PRESETS.values(), *STORED]
        for n in rows
    ]
    return chosen + [pytest.param((p, n), id=f"{label(p)}-{n}", marks=needs_kernels) for p in NATIVE for n in rows]


@pytest.fixture(scope="module", params=cases([1, 4]))
def case(request):
    """`(policy, rows, compiled program, weights)`."""
    policy, rows = request.param
    return policy, rows, *compile_decode(policy, rows)


def computations(hlo: str) -> dict[str, list[str]]:
    """The lines of every computation, by name."""
    found, name = {}, ""
    for line in hlo.splitlines():
        if line and not line[0].isspace() and "{" in line:
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def inside_loops(hlo: str) -> list[str]:
    """All lines of the bodies of while loops and what they call, fusions included as one line each."""
    all_computations = computations(hlo)
    todo = [m[1] for lines in all_computations.values() for line in lines if (m := re.search(r"body=%?([\w.\-]+)", line))]
    seen, lines = set(), []
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        lines += all_computations[name]
        todo += [c for line in all_computations[name] if " fusion(" not in line for c in CALLED.findall(line)]
    assert lines, "the decode verb must hold a loop"
    return lines


def operation(hlo: str, line: str) -> str:
    """The operation that a line performs; for a fusion, that of its root, seen through bitcasts."""
    if " fusion(" not in line:
        return INSTRUCTION.match(line)[2]
    body = computations(hlo)[CALLED.search(line)[1]]
    by_name = {m[1]: r for r in body if (m := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", r))}
    row = next(r for r in body if "ROOT" in r)
    while (op := INSTRUCTION.match(row)) and op[2] in {"bitcast", "bitcast-convert"}:
        row = by_name[re.match(r"%?([\w.\-]+)", op[3].split(" ")[-1] if op[3][0] != "%" else op[3])[1]]
    return op[2] if op else "tuple"


def moved_in_loops(hlo: str, sizes: set[int]) -> list[str]:
    """Lines inside loops that move or convert an array of one of these sizes."""
    moved = []
    for line in inside_loops(hlo):
        match = INSTRUCTION.match(line)
        if match and math.prod(map(int, match[1].split(","))) in sizes and operation(hlo, line) in MOVES:
            moved.append(line.strip()[:160])
    return moved


def test_cache_is_aliased(case):
    policy, rows, program, _ = case
    assert program.memory_analysis().alias_size_in_bytes >= cache_bytes(CONFIG.text, policy, rows, SLOTS)


def test_nothing_of_the_cache_or_a_weight_moves(case):
    _, rows, program, params = case
    cache = rows * CONFIG.text.num_kv_heads * SLOTS * CONFIG.text.head_dim
    weights = {math.prod(leaf.shape) for _, leaf in leaves(params) if len(leaf.shape) == 2}
    assert not moved_in_loops(program.as_text(), {cache, *weights})


def test_temporaries_are_small(case):
    _, rows, program, _ = case
    assert program.memory_analysis().temp_size_in_bytes < rows * (4 << 20)  # the smallest matrix alone is 4 MB in float32


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("policy", PRESETS.values(), ids=lambda p: p.name)
def test_nothing_moves_with_fused_projections_and_a_loop_within_the_loop(policy, rows):
    """How a GPU runs it, as far as XLA's passes for all backends show."""
    fused = dataclasses.replace(under(policy, "xla"), projections="fused")
    program, params = compile_decode(fused, rows, steps_per_check=4)
    cache = rows * CONFIG.text.num_kv_heads * SLOTS * CONFIG.text.head_dim
    weights = {math.prod(leaf.shape) for _, leaf in leaves(params) if len(leaf.shape) == 2}
    assert not moved_in_loops(program.as_text(), {cache, *weights})
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes(CONFIG.text, policy, rows, SLOTS)
    assert memory.temp_size_in_bytes < rows * (4 << 20)


def rewritten_caches(hlo: str, size: int) -> list[str]:
    """Fusions inside loops that chain many slice updates below a bitcast: XLA computes the whole cache anew for these."""
    found = []
    for line in inside_loops(hlo):
        match = INSTRUCTION.match(line)
        if match and " fusion(" in line and math.prod(map(int, match[1].split(","))) == size:
            body = computations(hlo)[CALLED.search(line)[1]]
            updates = sum(" dynamic-update-slice(" in row for row in body)
            if updates > 8 and any(" bitcast-convert(" in row for row in body):
                found.append(line.strip()[:160])
    return found


@pytest.mark.parametrize("policy_rows", cases([16]))
def test_the_caches_of_many_rows_are_updated_in_place(policy_rows):
    """One fusion for the updates of 16 rows took ten times as long as all the rest of the step."""
    policy, rows = policy_rows
    program, _ = compile_decode(policy, rows)
    size = rows * CONFIG.text.num_kv_heads * SLOTS * CONFIG.text.head_dim
    assert not rewritten_caches(program.as_text(), size)


def native_calls(hlo: str) -> list[str]:
    """The handlers that are called inside loops."""
    return [m[1] for line in inside_loops(hlo) if (m := re.search(r'custom_call_target="(qwen_asr_\w+)"', line))]


def test_a_step_is_one_native_call_for_the_layers_and_one_for_the_head(case):
    policy, _, program, _ = case
    wanted = [] if policy.implementation == "xla" else [cpu.target("qwen_asr_head"), cpu.target("qwen_asr_decoder_layers")]
    assert sorted(native_calls(program.as_text())) == sorted(wanted)


@needs_kernels
@pytest.mark.parametrize("policy", [p for p in NATIVE if p.head != jnp.int8], ids=label)
def test_a_screened_head_moves_nothing_either(policy):
    program, params = compile_decode(policy, 2, screened=True)
    weights = {math.prod(leaf.shape) for _, leaf in leaves(params) if len(leaf.shape) == 2}
    assert not moved_in_loops(program.as_text(), weights)
    assert native_calls(program.as_text()).count(cpu.target("qwen_asr_head")) == 1
    assert program.memory_analysis().temp_size_in_bytes < 2 * (4 << 20)


def test_the_alias_check_can_fail():
    undonated = jax.jit(verbs.decode.__wrapped__, static_argnames=("definition", "chunk"))
    program, _ = compile_decode(under(PRESETS["fp32"], "xla"), 1, undonated)
    assert program.memory_analysis().alias_size_in_bytes == 0


def test_the_move_check_can_fail():
    def loop(x, stacked):  # layers stacked in one array: every step slices, and so copies, one layer's weights
        return jax.lax.fori_loop(0, 9, lambda i, x: (x @ stacked[i].T).astype(x.dtype), x)

    shapes = jax.ShapeDtypeStruct((2, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((9, 1024, 1024), jnp.bfloat16)
    assert moved_in_loops(jax.jit(loop).lower(*shapes).compile().as_text(), {1 << 20})
