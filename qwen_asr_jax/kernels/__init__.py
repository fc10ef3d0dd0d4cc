"""Native code behind `ops`: kernels that plain XLA cannot match, one folder per platform; and the choice of what computes."""

from __future__ import annotations

IMPLEMENTATIONS = ("auto", "xla", "cpu")
"""What can be asked for. An op that the chosen kernels do not have is XLA's."""


def choose(implementation: str) -> str:
    """Which kernels compute where `implementation` is asked for: `xla` or `cpu`.

    Args:
      implementation: `xla`; `cpu`, the native kernels; or `auto`: these where JAX computes on a CPU and they are there, else
        XLA.

    Raises:
      NotImplementedError: the native kernels are asked for and not available, or the name is unknown; the message says why.
    """
    if implementation not in IMPLEMENTATIONS:
        raise NotImplementedError(f"no implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}")
    if implementation == "xla":
        return "xla"
    from qwen_asr_jax.kernels import cpu  # starts JAX

    reason = cpu.unavailable()
    if reason is not None and implementation == "cpu":
        raise NotImplementedError(f"implementation 'cpu' (native kernels) is not available: {reason}")
    return "cpu" if reason is None else "xla"


def missing() -> str | None:
    """Why a CPU host has to do without native kernels; None where it has them, and on a GPU, for which they are not."""
    import jax

    from qwen_asr_jax.kernels import cpu

    return cpu.unavailable() if jax.default_backend() == "cpu" else None


def describe(implementation: str) -> str:
    """What computes where `implementation` is asked for, with the kernels' instruction set: `xla`, `cpu avx512bf16`."""
    if choose(implementation) == "xla":
        return "xla"
    from qwen_asr_jax.kernels import cpu

    return f"cpu {cpu.instruction_set()}"
