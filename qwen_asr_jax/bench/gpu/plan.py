"""What is measured, in which order, and how long it may take: the most valuable answers first.

Times are estimates for an H200 with nothing in the compilation cache, where compiling the 28-layer programs takes most of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.kernels import IMPLEMENTATIONS
from qwen_asr_jax.policy import PRESETS
from qwen_asr_jax.runtime import default_threads

SECTIONS = {
    "machine": "The machine",
    "parity": "Parity",
    "matvec": "Products of few rows",
    "loop": "The decode loop",
    "conv": "The conv stem",
    "workloads": "Workloads",
    "memory": "Memory",
    "compile": "Starting and compiling",
}
"""Sections of the report in the order of the page, with their headings."""

DEMO = "demo"
"""Stands for the bundled model among the presets of random ones."""

LOOP_FLAGS = {
    "loops captured": "--xla_gpu_enable_command_buffer=+WHILE",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "smallest graphs": "--xla_gpu_graph_min_graph_size=1",
    "graphs not updated": "--xla_gpu_command_buffer_update_mode=SKIP_TEMP",
}
MATVEC_FLAGS = {
    "no Triton products": "--xla_gpu_enable_triton_gemm=false",
    "no cublasLt": "--xla_gpu_enable_cublaslt=false",
    "all tilings": "--xla_gpu_exhaustive_tiling_search=true",
    "split K": "--xla_gpu_experimental_force_split_k=4",
}
"""XLA's flags by the name of the variant. Where jaxlib does not know one, it ends the step's process, and no other."""

CHECKS = (1, 2, 4, 16, 8, 32)
"""Values of the engine's `steps_per_check`: first the plain loop, whose tokens the others must choose, then what the engine
takes."""

FORCED_STEPS = 24

_GPU_KERNELS = [name for name in IMPLEMENTATIONS if name not in ("auto", "xla", "cpu")]


@dataclasses.dataclass(frozen=True)
class Step:
    """One process of the report.

    Attributes:
      name: unique.
      section: a key of `SECTIONS`, or `checkpoint` or `reference`.
      settings: of the section's module.
      expected_s: how long it takes.
      needs: names of the preparations that must be done before.
      variables: environment of its process; `XLA_FLAGS` are added to the user's.
      beside: steps of one such name that follow one another run side by side.
      cache: folder of compiled programs. Steps that run beside others have one of their own: what the compiler chose beside
        others is not what is to be measured later.
    """

    name: str
    section: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    expected_s: float = 20.0
    needs: tuple[str, ...] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beside: str = ""
    cache: str = "xla"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is to be done.

    Attributes:
      steps: in the order of their value.
      preparations: run one after another in the background, while steps that do not need them are measured.
    """

    steps: Sequence[Step]
    preparations: Sequence[Step]

    @property
    def expected_s(self) -> float:
        """How long all steps take, by the estimates; those beside each other as long as the longest."""
        groups: dict[str, float] = {}
        for step in self.steps:
            key = step.beside or step.name
            groups[key] = max(groups.get(key, 0.0), step.expected_s)
        return sum(groups.values())


def make_plan(sections: Sequence[str], quick: bool) -> Plan:
    """The plan of the named sections; all for none.

    Raises:
      UsageError: there is no such section.
    """
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise UsageError(f"unknown section {unknown[0]!r}: choose of {', '.join(SECTIONS)}")
    steps = [step for step in (_quick_steps() if quick else _full_steps()) if not sections or step.section in sections]
    needed = {need for step in steps for need in step.needs}
    return Plan(steps, [step for step in _preparations(quick) if step.name in needed or _leads_to(step, needed)])


def _leads_to(step: Step, needed: set[str]) -> bool:
    """A reference needs the checkpoint."""
    return step.section == "checkpoint" and f"reference {step.settings['preset']}" in needed


def _preparations(quick: bool) -> list[Step]:
    first, others = ("tiny", ()) if quick else ("0.6b", ("1.7b",))
    # Beside them, what needs no checkpoint is being measured: half of the cores are left to it.
    on_cpu = {"JAX_PLATFORMS": "cpu", "NPROC": str(max(1, default_threads() // 2))}
    forced = {"preset": first, "steps": FORCED_STEPS}
    return [
        Step(f"checkpoint {first}", "checkpoint", {"preset": first}, 10, variables=on_cpu),
        Step(f"reference {DEMO}", "reference", {"preset": DEMO, "clips": _clips(quick)}, 20, variables=on_cpu),
        Step(f"reference {first}", "reference", forced, 30, variables=on_cpu),
        *[Step(f"checkpoint {preset}", "checkpoint", {"preset": preset}, 25, variables=on_cpu) for preset in others],
    ]


def _clips(quick: bool) -> list[str]:
    """Bundled clips whose transcripts are compared."""
    return ["short"] if quick else ["short", "english", "german", "long", "silence"]


def _parity(preset: str, policies: Sequence[str], implementations: Sequence[str], expected_s: float) -> list[Step]:
    needs, clips = (f"reference {DEMO}", f"reference {preset}"), _clips(preset == "tiny")
    return [
        Step(
            f"parity {policy}",
            "parity",
            {"policy": policy, "implementations": list(implementations), "presets": [preset], "clips": clips},
            expected_s,
            needs,
            beside="parity",
            cache=f"xla-parity-{policy}",
        )
        for policy in policies
    ]


def _loop(
    preset: str,
    checks: Sequence[int],
    expected_s: float,
    variant: str = "",
    implementation: str = "auto",
    flags: str = "",
) -> Step:
    shown = " ".join(part for part in ("loop", preset, variant, "" if implementation == "auto" else implementation) if part)
    settings = {
        "preset": preset,
        "policy": "bf16",
        "implementation": implementation,
        "checks": list(checks),
        "variant": variant,
    }
    variables = {"XLA_FLAGS": flags} if flags else {}
    return Step(shown, "loop", settings, expected_s, (f"checkpoint {preset}",), variables)


def _workloads(
    name: str, preset: str, jobs: Sequence[Mapping[str, Any]], expected_s: float, policy: str = "bf16", kernels: str = "auto"
) -> Step:
    settings = {"preset": preset, "policy": policy, "implementation": kernels, "jobs": list(jobs)}
    return Step(name, "workloads", settings, expected_s, (f"checkpoint {preset}",))


def _full(seconds: float, tokens: int, needs_s: float = 15.0) -> dict[str, Any]:
    return {"workload": "full", "seconds": seconds, "tokens": tokens, "needs_s": needs_s}


def _batch(rows: int, needs_s: float = 25.0) -> dict[str, Any]:
    return {"workload": "batch", "seconds": 30.0, "tokens": 90, "rows": rows, "needs_s": needs_s}


_STAGES = [
    _full(11.0, 30, needs_s=0.0),
    {"workload": "decode", "seconds": 11.0, "tokens": 32, "contexts": [62, 158], "needs_s": 8.0},
    {"workload": "prefill", "seconds": 11.0, "tokens": 30, "needs_s": 4.0},
    {"workload": "encoder", "seconds": 11.0, "tokens": 30, "needs_s": 8.0},
]


def _memory(models: Sequence[tuple[str, str]], expected_s: float = 40) -> list[Step]:
    """Twice, as compiling takes memory, too: with an empty cache of programs, then with the one that this left behind."""
    return [
        Step(
            f"memory {preset} {policy} {state}",
            "memory",
            {"preset": preset, "policy": policy, "implementation": "auto", "compiled_before": state == "again"},
            seconds,
            (f"checkpoint {preset}",),
            beside=f"memory {state}",
            cache=f"xla-memory-{preset}-{policy}",
        )
        for state, seconds in (("first", expected_s), ("again", expected_s / 3))
        for preset, policy in models
    ]


def _full_steps() -> list[Step]:
    """In the order of value: limits, the loop and the bars of the small model, parity, batches, the large model, the rest."""
    both = ["0.6b", "1.7b"]
    others = (("0.6b", 3), ("1.7b", 2))
    variants = [_loop("0.6b", CHECKS[:1], 20, variant, flags=flags) for variant, flags in LOOP_FLAGS.items()]
    steps = [
        Step("machine", "machine", {"presets": both}, 25),
        _loop("0.6b", CHECKS[:3], 40),
        *[_loop("0.6b", CHECKS[:1], 20, implementation=name) for name in _GPU_KERNELS],
        _workloads("workloads 0.6b", "0.6b", _STAGES, 50),
        Step("matvec", "matvec", {"presets": both}, 50),
        *_parity("0.6b", list(PRESETS), ["xla", *_GPU_KERNELS], 60),
        _workloads("batch 0.6b 128", "0.6b", [_batch(128, 0.0)], 40),
        *_memory([("0.6b", "fp32"), ("0.6b", "bf16"), ("0.6b", "fp16"), ("0.6b", "int8"), ("1.7b", "bf16")]),
        _workloads("workloads 1.7b", "1.7b", _STAGES, 50),
        _workloads("batch 1.7b 128", "1.7b", [_batch(128, 0.0)], 45),
        variants[0],
        _loop("1.7b", CHECKS[:2], 30),
        *[_workloads(f"workloads 0.6b {name}", "0.6b", _STAGES[:2], 40, kernels=name) for name in _GPU_KERNELS],
        *[_workloads(f"workloads 1.7b {name}", "1.7b", _STAGES[:2], 45, kernels=name) for name in _GPU_KERNELS],
        *variants[1:],
        Step("conv", "conv", {"preset": "0.6b"}, 40),
        Step("start 0.6b", "compile", {"preset": "0.6b", "policy": "bf16"}, 50, ("checkpoint 0.6b",)),
        *[
            _matvec_variant(variant, flags, "0.6b", 20 if variant != "all tilings" else 45)
            for variant, flags in MATVEC_FLAGS.items()
        ],
        *[_workloads(f"full 0.6b {policy}", "0.6b", [_full(11.0, 30)], 40, policy) for policy in ("int8", "fp16", "fp32")],
        _workloads("clips 0.6b", "0.6b", [_full(30.0, 90), _full(3.64, 19), _full(120.0, 360)], 75),
        _workloads("batches 0.6b", "0.6b", [_batch(rows) for rows in (64, 256, 8, 1)], 130),
        _workloads("full 0.6b int8_all", "0.6b", [_full(11.0, 30)], 40, "int8_all"),
        *[_workloads(f"full 1.7b {p}", "1.7b", [_full(11.0, 30)], 45, p) for p in ("int8", "fp16", "fp32", "int8_all")],
        _workloads("clips 1.7b", "1.7b", [_full(30.0, 90), _full(3.64, 19), _full(120.0, 360)], 90),
        _workloads("batches 1.7b", "1.7b", [_batch(rows) for rows in (64, 256, 8, 1)], 150),
        _workloads("contexts 0.6b", "0.6b", [_STAGES[1] | {"contexts": [64, 256, 1024, 4096]}], 70),
        *[dataclasses.replace(_loop(each, CHECKS[start:], 50), name=f"loop {each}, other checks") for each, start in others],
        Step("start 1.7b", "compile", {"preset": "1.7b", "policy": "bf16"}, 60, ("checkpoint 1.7b",)),
    ]
    return [*steps, *_memory([("1.7b", "fp32"), ("1.7b", "fp16"), ("1.7b", "int8")])]


def _matvec_variant(variant: str, flags: str, preset: str, expected_s: float) -> Step:
    settings = {"presets": [preset], "variant": variant, "only_first": True}
    return Step(f"matvec {variant}", "matvec", settings, expected_s, variables={"XLA_FLAGS": flags})


def _quick_steps() -> list[Step]:
    """Every section once, with the tiny model: a check of this report on a CPU, of no machine."""
    first_loop, flags = next(iter(LOOP_FLAGS.items()))
    jobs = [
        {"workload": "full", "seconds": 2.0, "tokens": 4},
        {"workload": "decode", "seconds": 2.0, "tokens": 4, "contexts": [62, 158]},
        {"workload": "prefill", "seconds": 2.0, "tokens": 4},
        {"workload": "encoder", "seconds": 2.0, "tokens": 4},
        {"workload": "batch", "seconds": 2.0, "tokens": 4, "rows": 2},
    ]
    return [
        Step("machine", "machine", {"presets": ["tiny"]}, 15),
        Step("matvec", "matvec", {"presets": ["tiny"]}, 15),
        _loop("tiny", CHECKS[:2], 15),
        _loop("tiny", CHECKS[:1], 15, first_loop, flags=flags),
        _workloads("workloads tiny", "tiny", jobs, 15),
        *_parity("tiny", ("bf16",), ("xla", *_GPU_KERNELS), 30),
        *_memory([("tiny", "bf16")], 12),
        Step("conv", "conv", {"preset": "tiny"}, 10),
        Step("start tiny", "compile", {"preset": "tiny", "policy": "bf16"}, 20, ("checkpoint tiny",)),
    ]
