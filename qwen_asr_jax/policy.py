"""Policies: which number format each kind of array has, how matrices are held, and which kernels compute with them.

Every dtype in the package comes from here.

| field            | governs                                                                                    |
|------------------|--------------------------------------------------------------------------------------------|
| `param_dtype`    | stored matrices that the two fields below do not name: convolutions                        |
| `compute_dtype`  | operands of matrix products and convolutions                                               |
| `accum_dtype`    | their sums, and all that is done element by element: residual stream, norms, rotary        |
|                  | tables, softmax, activations; also the stored vectors (norm weights, biases, scales)       |
| `cache_dtype`    | the KV cache                                                                               |
| `logits_dtype`   | the head's output, on which the argmax is taken                                            |
| `layer_dtype`    | matrices of all linear layers, of encoder and decoder: `param_dtype`, or int8              |
| `head_dtype`     | embedding table and head: `param_dtype`, or int8                                           |
| `implementation` | no dtype: which kernels compute, `auto`, `xla`, `cpu` or `cuda`; see `kernels.choose`          |
| `projections`    | no dtype: whether the matrices that multiply one input (q, k and v; gate and up) are held  |
|                  | `separate`, as in the files, or `fused` into one; `auto` is fused on GPUs                  |

int8 matrices have one scale per output row (`qwen_asr_jax.ops.quantize`), and are multiplied in the compute dtype, which holds
all of int8 exactly.

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
    "int8": np.dtype(np.int8),
}
_FLOATS = ("float32", "float16", "bfloat16")
_PROJECTIONS = ("auto", "separate", "fused")


@dataclasses.dataclass(frozen=True)
class Policy:
    """One dtype per kind of array, by name (`float32`, `bfloat16` or `float16`; some `int8`), and the kernels' name.

    Raises:
      UsageError: a name is unknown; `layer_dtype` or `head_dtype` is neither that of the other weights nor int8; `accum_dtype`
        or `logits_dtype` is not float32 (half-precision sums are not supported: 28 layers of them give wrong tokens); or
        weights would have to be converted to a narrower or another half-precision dtype for every product (`compute_dtype`
        must be that of the weights, or float32); or `projections` is unknown. The kernels' name is looked at where they are
        chosen.
    """

    name: str
    param_dtype: str
    compute_dtype: str
    accum_dtype: str
    cache_dtype: str
    logits_dtype: str
    layer_dtype: str
    head_dtype: str
    implementation: str = "auto"
    projections: str = "auto"

    def __post_init__(self) -> None:
        if self.projections not in _PROJECTIONS:
            raise UsageError(f"policy {self.name}: projections={self.projections!r} is not one of {', '.join(_PROJECTIONS)}")
        for field in ("param_dtype", "compute_dtype", "accum_dtype", "cache_dtype", "logits_dtype"):
            value = getattr(self, field)
            if value not in _FLOATS:
                raise UsageError(f"policy {self.name}: {field}={value!r} is not one of {', '.join(_FLOATS)}")
        for field in ("layer_dtype", "head_dtype"):
            value = getattr(self, field)
            if value not in (self.param_dtype, "int8"):
                raise UsageError(
                    f"policy {self.name}: {field} must be int8 or that of the other weights ({self.param_dtype}), got {value}"
                )
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
        """Dtype of stored matrices that are of no linear layer, embedding or head."""
        return _DTYPES[self.param_dtype]

    @property
    def layer(self) -> np.dtype:
        """Dtype of the linear layers' matrices."""
        return _DTYPES[self.layer_dtype]

    @property
    def head(self) -> np.dtype:
        """Dtype of embedding table and head."""
        return _DTYPES[self.head_dtype]

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

    @property
    def fused(self) -> bool:
        """Whether matrices that multiply one input are held as one; `auto` that has not been resolved is not."""
        return self.projections == "fused"

    @property
    def is_preset(self) -> bool:
        """Whether the dtypes are those of the preset of this name, whatever computes."""
        preset = PRESETS.get(self.name)
        return preset is not None and preset.dtypes() == self.dtypes()

    def dtypes(self) -> dict[str, str]:
        """Name and dtypes by field: all but what computes."""
        values = dataclasses.asdict(self)
        del values["implementation"], values["projections"]
        return values


def _uniform(name: str, dtype: str, *, layers: str | None = None, head: str | None = None) -> Policy:
    """Everything but the sums in one dtype, or the layers' or the head's matrices in another."""
    return Policy(
        name=name,
        param_dtype=dtype,
        compute_dtype=dtype,
        accum_dtype="float32",
        cache_dtype=dtype,
        logits_dtype="float32",
        layer_dtype=layers or dtype,
        head_dtype=head or dtype,
    )


PRESETS: dict[str, Policy] = {
    "fp32": _uniform("fp32", "float32"),
    "bf16": _uniform("bf16", "bfloat16"),
    "fp16": _uniform("fp16", "float16"),
    "int8": _uniform("int8", "bfloat16", layers="int8"),
    "int8_all": _uniform("int8_all", "bfloat16", layers="int8", head="int8"),
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
