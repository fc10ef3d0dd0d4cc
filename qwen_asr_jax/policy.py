"""Dtype policies: which number format each kind of array has. Every dtype in the package comes from here.

| field           | governs                                                                                     |
|-----------------|---------------------------------------------------------------------------------------------|
| `param_dtype`   | stored matrices: linear, convolution and embedding weights                                  |
| `compute_dtype` | operands of matrix products and convolutions                                                |
| `accum_dtype`   | their sums, and all that is done element by element: residual stream, norms, rotary tables, |
|                 | softmax, activations; also the stored vectors (norm weights and biases)                     |
| `cache_dtype`   | the KV cache                                                                                |
| `logits_dtype`  | the head's output, on which the argmax is taken                                             |

The residual stream stays in float32 under every preset. That costs nothing where weights dominate the traffic, and it is
what keeps fp16 from overflowing through the decoder's layers. The one further guard fp16 needs, saturating casts, is in
`qwen_asr_jax.ops.cast`.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from qwen_asr_jax.errors import UsageError

_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """One dtype per kind of array, by name (`float32`, `bfloat16` or `float16`).

    Raises:
      UsageError: a name is unknown; `accum_dtype` or `logits_dtype` is not float32 (half-precision sums are not supported:
        28 layers of them give wrong tokens); or weights would have to be converted to a narrower or another half-precision
        dtype for every product (`compute_dtype` must be that of the weights, or float32).
    """

    name: str
    param_dtype: str
    compute_dtype: str
    accum_dtype: str
    cache_dtype: str
    logits_dtype: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value not in _DTYPES:
                raise UsageError(f"policy {self.name}: {field.name}={value!r} is not one of {', '.join(_DTYPES)}")
        if self.compute_dtype not in (self.param_dtype, "float32"):
            raise UsageError(
                f"policy {self.name}: compute_dtype must be float32 or that of the weights ({self.param_dtype}), got"
                f" {self.compute_dtype}"
            )
        for field_name in ("accum_dtype", "logits_dtype"):
            if getattr(self, field_name) != "float32":
                raise UsageError(f"policy {self.name}: {field_name} must be float32, got {getattr(self, field_name)}")

    @property
    def param(self) -> np.dtype:
        """Dtype of stored matrices."""
        return _DTYPES[self.param_dtype]

    @property
    def compute(self) -> np.dtype:
        """Dtype of matrix-product operands."""
        return _DTYPES[self.compute_dtype]

    @property
    def accum(self) -> np.dtype:
        """Dtype of sums, element-wise work and stored vectors."""
        return _DTYPES[self.accum_dtype]

    @property
    def cache(self) -> np.dtype:
        """Dtype of the KV cache."""
        return _DTYPES[self.cache_dtype]

    @property
    def logits(self) -> np.dtype:
        """Dtype of the logits."""
        return _DTYPES[self.logits_dtype]


def _half(name: str, dtype: str) -> Policy:
    return Policy(
        name=name,
        param_dtype=dtype,
        compute_dtype=dtype,
        accum_dtype="float32",
        cache_dtype=dtype,
        logits_dtype="float32",
    )


PRESETS: dict[str, Policy] = {
    "fp32": Policy("fp32", "float32", "float32", "float32", "float32", "float32"),
    "bf16": _half("bf16", "bfloat16"),
    "fp16": _half("fp16", "float16"),
}


DEFAULT_POLICY = "bf16"


def get_policy(policy: str | Policy) -> Policy:
    """The preset of that name; a `Policy` is returned as it is.

    Raises:
      UsageError: no preset has that name.
    """
    if isinstance(policy, Policy):
        return policy
    if policy not in PRESETS:
        raise UsageError(f"unknown policy {policy!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[policy]
