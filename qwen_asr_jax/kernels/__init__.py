"""Native code behind `ops`: kernels that plain XLA cannot match, one folder per platform; and the choice of what computes."""

from __future__ import annotations

import pathlib

from qwen_asr_jax import runtime
from qwen_asr_jax.policy import Policy

IMPLEMENTATIONS = ("auto", "xla", "cpu", "cuda")
"""What can be asked for. What the chosen kernels do not have is XLA's."""


def choose(implementation: str) -> str:
    """Which kernels compute where `implementation` is asked for: `xla`, `cpu` or `cuda`.

    Args:
      implementation: `xla`; `cpu`, the native kernels; `cuda`, those for decoding on NVIDIA GPUs; or `auto`: the native ones
        where JAX computes on a CPU and they are there, else XLA. Nobody has measured the CUDA kernels so far, so they are
        never chosen unasked.

    Raises:
      NotImplementedError: the native kernels are asked for and not available, or the name is unknown; the message says why.
    """
    if implementation not in IMPLEMENTATIONS:
        raise NotImplementedError(f"no implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}")
    if implementation == "xla":
        return "xla"
    from qwen_asr_jax.kernels import cpu, gpu  # starts JAX

    if implementation == "cuda":
        if reason := gpu.unavailable():
            raise NotImplementedError(f"implementation 'cuda' (native kernels) is not available: {reason}")
        return "cuda"
    reason = cpu.unavailable()
    if reason is not None and implementation == "cpu":
        raise NotImplementedError(f"implementation 'cpu' (native kernels) is not available: {reason}")
    return "cpu" if reason is None else "xla"


def for_policy(policy: Policy) -> str:
    """`choose` for a policy's own choice; XLA where the native kernels do not have its mixture of dtypes.

    Raises:
      NotImplementedError: the native kernels are asked for and cannot compute what the policy says.
    """
    name = choose(policy.implementation)
    # They round operands to the weights' dtype, and to bfloat16 for int8 weights.
    mixed = [
        f"{field}={dtype} with compute_dtype={policy.compute_dtype}"
        for field, dtype in (
            ("param_dtype", policy.param_dtype),
            ("layer_dtype", policy.layer_dtype),
            ("head_dtype", policy.head_dtype),
        )
        if policy.compute_dtype != ("bfloat16" if dtype == "int8" else dtype)
    ]
    if policy.fused:  # they take each matrix for itself, as it lies in the file
        mixed.append("projections=fused")
    if name == "cpu" and mixed:
        if policy.implementation == "cpu":
            raise NotImplementedError(f"implementation 'cpu' (native kernels) cannot compute {mixed[0]}")
        return "xla"
    if name == "cuda" and policy.projections == "separate":
        raise NotImplementedError("implementation 'cuda' (native kernels) wants projections=fused")
    return name


def missing() -> str | None:
    """Why a CPU host has to do without native kernels; None where it has them, and on a GPU, for which they are not."""
    from qwen_asr_jax.kernels import cpu

    return cpu.unavailable() if runtime.platform() == "cpu" else None


def describe(policy: Policy) -> str:
    """What computes under the policy, with the CPU kernels' instruction set: `xla`, `cuda`, `cpu avx512bf16`."""
    name = for_policy(policy)
    if name != "cpu":
        return name
    from qwen_asr_jax.kernels import cpu

    return f"cpu {cpu.instruction_set()}"


def build_failure(library: pathlib.Path) -> str:
    """What the build left in the place of a library, in one line."""
    try:
        return library.with_suffix(".missing").read_text(encoding="utf-8").strip()
    except OSError:
        return "the package was not installed, only its sources are here"
