"""What scripts say on stderr, without what depends on how the package was installed."""

from __future__ import annotations

KERNEL_NOTICE = "without native kernels: "


def without_kernel_notice(err: str) -> str:
    """The text without the line that says that native kernels are missing; at most one may."""
    lines = err.splitlines(keepends=True)
    kept = [line for line in lines if KERNEL_NOTICE not in line]
    assert len(lines) - len(kept) <= 1, err
    return "".join(kept)
