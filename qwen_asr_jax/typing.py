"""The axis legend, and the array types that signatures use.

One letter per axis, the same in docstrings and in every einsum:

| letter | axis                        | letter | axis                                     |
|--------|-----------------------------|--------|------------------------------------------|
| `B`    | batch rows (clips)          | `F`    | MLP width                                |
| `T`    | query time (tokens)         | `V`    | vocabulary                               |
| `S`    | key or cache time (slots)   | `L`    | layers                                   |
| `D`    | embedding width             | `M`    | mel bins                                 |
| `N`    | attention heads             | `A`    | mel frames                               |
| `K`    | key/value heads             | `W`    | attention windows of the audio encoder   |
| `G`    | query heads per key head    | `C`    | convolution channels                     |
| `H`    | head dimension              | `Q`    | encoder chunks (100 frames each)         |
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
"""A JAX array; the docstring of its user gives shape and dtype."""

Params: TypeAlias = Any
"""A nested dict of raw arrays, keyed by attribute name and, in layer lists, by integer."""

DType: TypeAlias = np.dtype
"""A NumPy dtype, `ml_dtypes.bfloat16` included; JAX accepts it wherever it takes a dtype."""
