"""The shapes for which the CUDA kernels are emulated: all types, few and many rows, odd sizes, those of the models."""

from __future__ import annotations

DECODER = ("WEIGHTS", "CACHE", "BATCH", "WIDTH", "INNER", "HEADS", "KEY_HEADS", "HEAD_DIM")
HEAD = ("WEIGHTS", "BATCH", "WIDTH", "VOCAB")
"""Macros of `decoder.cu` and of `head.cu`, without their prefix."""

F32, BF16, F16, I8 = range(4)

_USUAL, _ODD = (128, 160, 4, 2, 64), (48, 80, 2, 1, 16)
_TINY = (64, 96, 4, 2, 16)
_SMALL, _LARGE = (256, 768, 4, 2, 128), (512, 1536, 4, 2, 128)  # of the two models, a quarter of it

DECODERS = [
    *((w, c, b, *_USUAL) for w, c in [(F32, F32), (BF16, BF16), (F16, F16), (I8, BF16)] for b in (1, 2, 3, 8)),
    *((w, c, b, *_ODD) for w, c in [(F32, BF16), (BF16, F32), (F16, BF16), (I8, F16)] for b in (1, 3)),
    *((w, c, b, 192, 96, 2, 2, 128) for w, c, b in [(F32, F32, 1), (BF16, BF16, 2), (I8, F16, 5)]),
    *((w, c, b, 64, 48, 6, 2, 32) for w, c, b in [(BF16, F16, 4), (F16, F32, 7), (I8, F32, 6)]),
    *((w, c, b, *_SMALL) for w, c, b in [(BF16, BF16, 1), (I8, BF16, 1), (I8, BF16, 8)]),
    *((w, c, b, *_LARGE) for w, c, b in [(F32, F32, 1), (F32, F32, 8), (BF16, BF16, 1), (BF16, BF16, 3), (F16, BF16, 8)]),
    (BF16, BF16, 1, 1024, 3072, 16, 8, 128),
]

HEADS = [
    *((w, b, 128, 777) for w in (F32, BF16, F16, I8) for b in (1, 2, 3, 8)),
    *((w, b, 48, 31) for w, b in [(F32, 1), (BF16, 5), (F16, 2), (I8, 7)]),
    (BF16, 1, 64, 1),
    (BF16, 1, 1024, 1000),
    (I8, 4, 2048, 200),
]

SANITIZED_DECODERS, SANITIZED_HEADS = DECODERS[::3], HEADS[::3]
"""Sanitizers make compiling three times as long. All types, few and many rows and odd sizes are among these."""

_PRESET = (48, 96, 4, 2, 16)  # the random checkpoint `tiny`, with 512 tokens

LIBRARY_DECODERS = [
    *[(F32, F32, 2, *_TINY), (BF16, BF16, 1, *_TINY), (I8, F16, 3, *_TINY)],
    *((w, c, b, *_PRESET) for w, c in [(F32, F32), (BF16, BF16), (I8, BF16)] for b in (1, 2)),
]
LIBRARY_HEADS = [
    *[(F32, 2, 64, 100), (BF16, 1, 64, 100), (I8, 3, 64, 100)],
    *((w, b, 48, 512) for w in (F32, BF16) for b in (1, 2)),
]
"""Those of the libraries with which JAX's CPU backend runs the calls."""


def flags(names: tuple[str, ...], values: tuple[int, ...]) -> list[str]:
    """The macros as a compiler wants them."""
    return [f"-DQWEN_{name}={value}" for name, value in zip(names, values, strict=True)]
