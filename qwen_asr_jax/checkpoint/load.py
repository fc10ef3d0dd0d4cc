"""From a model directory to parameters on the device.

Strict: unknown, missing, doubled and mis-shaped tensors are collected and reported together, by name, before anything is
loaded. Then each tensor is read, cast or quantised, and placed on its own, and fused with its neighbours where the policy
wants that: memory peaks little above the final weights.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from qwen_asr_jax.checkpoint import orbax_store
from qwen_asr_jax.checkpoint.fuse import fuse, fuse_all
from qwen_asr_jax.checkpoint.key_map import SCALE, Entry, entries, ignored_names, mismatches, summary
from qwen_asr_jax.checkpoint.safetensors_reader import TensorFiles
from qwen_asr_jax.checkpoint.stored_tensor import StoredTensor, aligned_empty
from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.errors import CheckpointError
from qwen_asr_jax.models.functional import Definition, split
from qwen_asr_jax.models.qwen3_asr import Qwen3ASR
from qwen_asr_jax.ops.cast import FP16_LIMIT
from qwen_asr_jax.ops.quantize import quantize_rows
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
      config: geometry and ids.
      audio, decoder: definitions of the two modules.
      params: `{"audio_tower": ..., "decoder": ...}`, nested dicts of arrays on the default device.
    """

    config: ModelConfig
    audio: Definition
    decoder: Definition
    params: Params


def abstract_model(config: ModelConfig, policy: Policy) -> tuple[Definition, Definition, Params]:
    """The two module definitions and the parameter tree as shapes."""
    model = Qwen3ASR(config, policy=policy)
    audio, audio_params = split(model.audio_tower)
    decoder, decoder_params = split(model.decoder)
    return audio, decoder, {"audio_tower": audio_params, "decoder": decoder_params}


def load_checkpoint(model_dir: pathlib.Path, config: ModelConfig, policy: Policy) -> Checkpoint:
    """Loads a directory in the original, the native or the orbax layout.

    Args:
      config: what `read_config` read from the directory.

    Raises:
      CheckpointError: anything is missing, unknown, mis-shaped or unreadable; the message lists what and says what to do.
    """
    audio, decoder, abstract = abstract_model(config, policy)
    stored = abstract_model(config, dataclasses.replace(policy, projections="separate"))[2] if policy.fused else abstract
    if orbax_store.is_orbax(model_dir):
        params = fuse_all(orbax_store.restore(model_dir, stored), abstract)
    else:
        files = TensorFiles(model_dir)
        wanted = entries(stored, config)
        check_tensors(model_dir, files, wanted, ignored_names(config))
        params = _load(files, wanted, abstract)
    return Checkpoint(config=config, audio=audio, decoder=decoder, params=params)


def check_tensors(model_dir: pathlib.Path, files: TensorFiles, wanted: list[Entry], ignored: frozenset[str]) -> None:
    """Compares what the files hold with what the configuration needs.

    Raises:
      CheckpointError: they differ; every difference is counted and the first few are named.
    """
    found = {name: shape for name, shape in files.shapes.items() if name not in ignored}
    expected = {entry.name: entry.stored_shape for entry in wanted}
    if files.problems:  # an absent or broken file explains what is missing
        expected = {name: shape for name, shape in expected.items() if name in found}
    problems = files.problems + mismatches(found, expected)
    if problems:
        raise CheckpointError(
            f"{model_dir}: weights do not fit config.json: {summary(problems)} (both must come from one Qwen3-ASR model;"
            " download it again if they should)"
        )


def _load(files: TensorFiles, wanted: list[Entry], abstract: Params) -> Params:
    by_name = {entry.name: entry for entry in wanted}
    params: Params = {}
    quantising: Iterable[Array] = ()
    for name, tensor in files.read(list(by_name)):
        entry = by_name[name]
        node, above = params, None
        for key in entry.path[:-1]:
            node, above = node.setdefault(key, {}), node
        if entry.dtype == np.int8:
            # One tensor is quantised while the next is read; were there more, their sources would fill the memory.
            jax.block_until_ready(quantising)
            node[entry.path[-1]], node[SCALE] = quantising = _quantize(tensor.read())
        else:
            node[entry.path[-1]] = _place(entry, tensor)
        fuse(above, _at(abstract, entry.path[:-2]))
    return jax.block_until_ready(params)


def _at(tree: Params, path: Sequence[str | int]) -> Params:
    """The subtree at the path."""
    return functools.reduce(operator.getitem, path, tree)


_quantize = jax.jit(quantize_rows)


def _place(entry: Entry, tensor: StoredTensor) -> Array:
    if tensor.dtype == entry.dtype and entry.shape == entry.stored_shape:
        # Mapped only where it then stays: pages that were merely copied from would be resident until the end of the file.
        mapped = tensor.mapped() if jax.default_backend() == "cpu" else None
        return jax.device_put(tensor.read() if mapped is None else mapped, may_alias=True)
    out = aligned_empty(entry.shape, entry.dtype)
    if entry.shape != entry.stored_shape:
        cast_into(out, entry.to_parameter(tensor.read()))
    else:
        for where, piece in tensor.pieces():
            cast_into(out.reshape(-1)[where], piece)
    return jax.device_put(out, may_alias=True)


def cast_into(out: np.ndarray, tensor: np.ndarray) -> None:
    """Fills `out` with the tensor's values in its own dtype."""
    with np.errstate(over="ignore"):
        np.copyto(out, tensor, casting="unsafe")  # NumPy knows no order between the two half-precision dtypes
    if out.dtype == np.float16 and tensor.dtype != np.float16:
        # As `ops.cast.narrow`. Clipping float16 is slow, so it is done only where there is something to clip; on the bits
        # of a positive float, integer order is float order.
        limit = np.float16(FP16_LIMIT)
        if ((out.view(np.uint16) & 0x7FFF) > limit.view(np.uint16)).any():
            np.clip(out, -limit, limit, out=out)
