"""How many operations a compiled loop runs: an estimate, from the program's text, of the kernels that it launches."""

from __future__ import annotations

import contextlib
import math
import re

import jax

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) ")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*?(?:\s|\})([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|called_computations=\{|branch_computations=\{)=?%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all"),
    *(
        "partition-id",
        "replica-id",
        "opt-barrier",
        "domain",
        "add-dependency",
        "copy-start",
        "iota",
        "async-done",
        "copy-done",
    ),
}
"""Instructions that run nothing themselves, or what they call."""


def loop_kernels(text: str) -> int:
    """Instructions in the bodies of all loops that are likely a kernel each, a fusion as one."""
    bodies = _computations(text)
    todo = [name for lines in bodies.values() for line in lines for name in _BODY.findall(line)]
    seen: set[str] = set()
    kernels = 0
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in bodies.get(name, []):
            found = _INSTRUCTION.match(line)
            if not found:
                continue
            if found[1] not in _FREE:
                kernels += 1
            elif found[1] in ("while", "call", "conditional"):
                todo += _CALLED.findall(line)
    return kernels


def program_text(name: str) -> str | None:
    """The text of the newest compiled program of that name in this process, `decode` for what was `jit(decode)`.

    None where there is none, or its text is not kept.
    """
    for program in jax.local_devices()[0].client.live_executables():  # begins with the newest
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # of a program from the cache it may not be there
            module = program.hlo_modules()[0]
            if module.name.removeprefix("jit_") == name:
                return module.to_string()
    return None


def kernels_of(program: jax.stages.Compiled) -> float:
    """`loop_kernels` of a compiled program; not a number where its text is not kept."""
    try:
        return loop_kernels(program.as_text() or "")
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return math.nan


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation, by name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            header = _HEADER.match(line)
            lines = found.setdefault(header[1], []) if header else []
        else:
            lines.append(line)
    return found
