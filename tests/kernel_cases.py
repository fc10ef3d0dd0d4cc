"""What the tests of native kernels share: where they run, values, modules under every implementation, and tolerances."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from qwen_asr_jax.kernels import cpu
from qwen_asr_jax.models.functional import split
from qwen_asr_jax.policy import PRESETS, Policy

F32, F16, BF16 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)

needs_kernels = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}")

IMPLEMENTATIONS = ["xla", pytest.param("cpu", marks=needs_kernels)]
"""The reference, and what has to agree with it."""

NATIVE_POLICIES = [
    *PRESETS.values(),
    dataclasses.replace(PRESETS["bf16"], name="bf16 but the cache", cache_dtype="float32"),
    dataclasses.replace(PRESETS["int8"], name="int8 with a float16 cache", cache_dtype="float16"),
    dataclasses.replace(PRESETS["fp32"], name="fp32 but the cache", cache_dtype="bfloat16"),
]
"""Policies that the native kernels compute."""

MIXED_POLICIES = [
    dataclasses.replace(PRESETS["bf16"], name="bf16 stored", compute_dtype="float32"),
    dataclasses.replace(PRESETS["fp16"], name="fp16 stored", compute_dtype="float32", cache_dtype="float32"),
    dataclasses.replace(PRESETS["int8"], name="int8 times fp32", compute_dtype="float32"),
    dataclasses.replace(PRESETS["fp16"], name="int8 times fp16", layer_dtype="int8", head_dtype="int8"),
    dataclasses.replace(PRESETS["fp32"], name="int8 in fp32", layer_dtype="int8"),
]
"""Policies that only XLA computes: operands would have to keep another dtype than the kernels give them."""


def normal(shape, dtype=F32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def under(policy: Policy, implementation: str) -> Policy:
    return dataclasses.replace(policy, implementation=implementation)


def tolerance(policy: Policy) -> float:
    """How far implementations may be apart, of the largest value.

    In float32 only the order of sums differs. Otherwise an operand, a cached value or an attention weight that lies between
    two values of its dtype may be rounded to either, which is one unit in the last place (2^-8, 2^-11) of one factor of some
    products; int8 has bfloat16's, against the finer 16-bit integers of a few native rows.
    """
    narrowest = {policy.compute_dtype, policy.cache_dtype, policy.layer_dtype, policy.head_dtype}
    if narrowest & {"bfloat16", "int8"}:
        return 2.0**-7
    return 2.0**-10 if "float16" in narrowest else 3e-6


def both(make, policy: Policy, method: str = "__call__"):
    """One module under XLA and under the native kernels, with the same parameters, as jitted functions `(xla, native)`.

    Args:
      make: from `policy` and `rngs` to a module.
      method: what to call of it.
    """
    _, params = split(make(policy=policy, rngs=nnx.Rngs(0)))
    params = jax.tree.map(_vectors_too, params)

    def function(implementation):
        definition, _ = split(make(policy=under(policy, implementation)))
        jitted = jax.jit(lambda params, *args: getattr(definition.bind(params), method)(*args))
        return lambda *args: jitted(params, *args)

    return function("xla"), function("auto")


def _vectors_too(leaf):
    """Norm weights are created as ones, and biases as zeros: with those a mistake would not show."""
    if leaf.ndim != 1 or leaf.dtype != jnp.float32 or np.ptp(leaf) > 0:
        return leaf
    return leaf + jnp.asarray(0.3 * normal(leaf.shape, seed=int(leaf[0])))


def assert_close(found, wanted, policy: Policy, factor: float = 1.0):
    """Values agree within `tolerance` of the largest value wanted; dtypes and shapes are the same."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    found, wanted = (np.asarray(x).astype(np.float64) for x in (found, wanted))
    assert np.isfinite(wanted).all()
    apart = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert apart <= factor * tolerance(policy), f"{apart:.3g}"
