"""Which tensor of a checkpoint fills which parameter: one table, read in both directions.

A row maps a module path of ours to its prefix in the original layout (`thinker.*`) and in the layout native to transformers.
What follows the prefix (`weight`, `bias`, `self_attn.q_proj.weight`, ...) is the same everywhere. `{}` stands for a layer
number.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from qwen_asr_jax.config import Layout, ModelConfig
from qwen_asr_jax.typing import DType, Params


@dataclasses.dataclass(frozen=True)
class _Row:
    path: str
    original: str
    native: str


_TABLE = (
    _Row("audio_tower.conv_stem.", "thinker.audio_tower.", "model.audio_tower."),
    _Row("audio_tower.layers.{}.", "thinker.audio_tower.layers.{}.", "model.audio_tower.layers.{}."),
    _Row("audio_tower.ln_post.", "thinker.audio_tower.ln_post.", "model.audio_tower.ln_post."),
    _Row("audio_tower.proj1.", "thinker.audio_tower.proj1.", "model.multi_modal_projector.linear_1."),
    _Row("audio_tower.proj2.", "thinker.audio_tower.proj2.", "model.multi_modal_projector.linear_2."),
    _Row("decoder.embed_tokens.", "thinker.model.embed_tokens.", "model.language_model.embed_tokens."),
    _Row("decoder.layers.{}.", "thinker.model.layers.{}.", "model.language_model.layers.{}."),
    _Row("decoder.norm.", "thinker.model.norm.", "model.language_model.norm."),
    _Row("decoder.lm_head.", "thinker.lm_head.", "lm_head."),
)
_NATIVE_ALIGNER_HEAD = "score."  # what `lm_head.` is called in a native aligner


SCALE = "scale"
"""Last key of what is derived and no tensor of a checkpoint: the scales of an int8 `weight` beside them."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: where it goes and how it is stored.

    Attributes:
      path: keys into the parameter tree, layer numbers as integers.
      name: the tensor's name in the checkpoint.
      shape: the parameter's shape.
      dtype: the parameter's dtype; int8 stands for a matrix that gets a `SCALE` beside it.
    """

    path: tuple[str | int, ...]
    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file: convolutions are stored `[c_out, c_in, freq, time]`."""
        return self.shape[::-1] if len(self.shape) == 4 else self.shape

    def to_parameter(self, tensor: np.ndarray) -> np.ndarray:
        """The stored tensor in the parameter's axis order (a view)."""
        return tensor.T if tensor.ndim == 4 else tensor

    def to_stored(self, parameter: np.ndarray) -> np.ndarray:
        """The parameter in the stored axis order (a view): the inverse of `to_parameter`, which is its own."""
        return self.to_parameter(parameter)


def tensor_name(path: tuple[str | int, ...], config: ModelConfig, layout: Layout) -> str:
    """The checkpoint's name for the parameter at `path`.

    Raises:
      KeyError: no row of the table covers the path.
    """
    dotted = ".".join(map(str, path))
    for row in _TABLE:
        match = re.match(re.escape(row.path).replace(r"\{\}", r"(\d+)"), dotted)
        if match:
            prefix = row.original if layout == "original" else row.native
            if prefix == "lm_head." and config.kind == "aligner":
                prefix = _NATIVE_ALIGNER_HEAD
            return prefix.format(*match.groups()) + dotted[match.end() :]
    raise KeyError(dotted)


def leaves(params: Params, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """All `(path, leaf)` of a nested dict, in order."""
    if isinstance(params, dict):
        for key, value in params.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, params


def entries(abstract: Params, config: ModelConfig) -> list[Entry]:
    """Every tensor that a checkpoint of this configuration must have.

    Args:
      abstract: parameter tree of shapes (`models.functional.split` of an abstract module).
    """
    return [
        Entry(path, tensor_name(path, config, config.layout), tuple(leaf.shape), np.dtype(leaf.dtype))
        for path, leaf in leaves(abstract)
        if path[-1] != SCALE
    ]


def ignored_names(config: ModelConfig) -> frozenset[str]:
    """Tensors that may be in a checkpoint and are not used: the explicit copy of a tied head."""
    if not config.text.tie_word_embeddings:
        return frozenset()
    return frozenset({"thinker.lm_head.weight", "lm_head.weight"})


Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def mismatches(found: Shapes, wanted: Shapes) -> list[str]:
    """What is missing, mis-shaped or unknown among the stored tensors, one line each, by name."""
    problems = []
    for name, shape in wanted.items():
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name] != shape:
            problems.append(f"{name} has shape {list(found[name])}, config.json makes it {list(shape)}")
    return problems + [f"{name} is unknown" for name in found if name not in wanted]


def summary(problems: Sequence[str], shown: int = 6) -> str:
    """The first few of a list of problems on one line, and how many more there are."""
    more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + more
