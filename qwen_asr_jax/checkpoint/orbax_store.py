"""Orbax directories: converted checkpoints that load without renaming or casting; int8 matrices with their scales.

OUT/config.json, generation_config.json, tokenizer files   as in the source
OUT/qwen_asr_jax.json                                      format version, policy, source layout
OUT/params/                                                the parameter tree, in the policy's dtypes
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from qwen_asr_jax.checkpoint.key_map import SCALE, leaves, mismatches, summary
from qwen_asr_jax.config import read_json
from qwen_asr_jax.errors import CheckpointError, OutputError
from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.ops.quantize import dequantize_rows, quantize_rows
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Params

FORMAT = 1
"""Version of the parameter tree's names and axis orders; raised when either changes."""

_Path: TypeAlias = tuple[str | int, ...]
_Leaves: TypeAlias = Mapping[_Path, Any]

_MARKER = "qwen_asr_jax.json"
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)


def is_orbax(model_dir: pathlib.Path) -> bool:
    """Whether the directory was written by `save`."""
    return (model_dir / _MARKER).exists()


def save(source_dir: pathlib.Path, out_dir: pathlib.Path, params: Params, policy: Policy) -> None:
    """Writes `params` and the source's side files into `out_dir`, which must be an empty directory.

    Raises:
      OutputError: it cannot be written.
    """
    import orbax.checkpoint as ocp  # 0.6 s to import, and needed nowhere else

    for name in _SIDE_FILES:
        if (source_dir / name).exists():
            shutil.copyfile(source_dir / name, out_dir / name)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((out_dir / "params").absolute(), params)
    except Exception as e:  # orbax and TensorStore raise all kinds
        raise OutputError(f"{out_dir}: cannot be written ({str(e).splitlines()[0][:200]})") from None
    marker = {
        "format": FORMAT,
        "policy": policy.name,
        "param_dtype": policy.param_dtype,
        "layer_dtype": policy.layer_dtype,
        "head_dtype": policy.head_dtype,
        "files": _sizes(out_dir / "params"),
    }
    (out_dir / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def restore(model_dir: pathlib.Path, abstract: Params) -> Params:
    """Reads the parameter tree onto the default device, in the dtypes of `abstract`.

    Where int8 is stored and wanted, values and scales come back as they are. Where only one of the two is int8, matrices are
    quantised from what is stored, or get their nearest values back; what quantising has lost stays lost.

    Args:
      abstract: parameter tree of shapes. Orbax needs it as a target: without one, layer numbers come back as strings.

    Raises:
      CheckpointError: the format is another version's, or the tree does not fit `config.json`.
    """
    import orbax.checkpoint as ocp

    marker = read_json(model_dir / _MARKER)
    found = marker.get("format") if isinstance(marker, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{model_dir / _MARKER}: written in format {found}, this version reads {FORMAT};"
            " run scripts/convert_checkpoint.py again on the original checkpoint"
        )
    path = (model_dir / "params").absolute()
    # Looked at first, because on damaged files TensorStore prints pages beside the error that it raises.
    wanted, there = marker.get("files", {}), _sizes(path)
    damaged = [name for name, size in wanted.items() if there.get(name) != size]
    if damaged:
        raise CheckpointError(f"{path}: absent or damaged: {summary(damaged)}; convert the checkpoint again")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = _stored_tree(model_dir, checkpointer.metadata(path), abstract)
            targets = _targets(stored, dict(leaves(abstract)), device)
            return _converted(checkpointer.restore(path, targets), abstract)
    except CheckpointError:
        raise
    except Exception as e:  # orbax and TensorStore raise all kinds, some with pages of text
        first_line = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise CheckpointError(f"{path}: cannot be restored ({first_line}); convert the checkpoint again") from None


def _sizes(params_dir: pathlib.Path) -> dict[str, int]:
    """Bytes of every file of an orbax directory, by relative path."""
    return {str(p.relative_to(params_dir)): p.stat().st_size for p in sorted(params_dir.rglob("*")) if p.is_file()}


def _targets(stored: _Leaves, wanted: _Leaves, device: jax.sharding.Sharding) -> Params:
    """What orbax is to read, nested: all that is stored, cast on the way where that is all there is to do."""

    def dtype_of(path: _Path) -> np.dtype:
        # Orbax casts while it reads, but without saturating: into float16 that is done behind it, as is all about int8.
        own = stored[path].dtype
        if path not in wanted or own == np.int8 or wanted[path].dtype in (np.int8, np.float16):
            return np.dtype(own)
        return np.dtype(wanted[path].dtype)

    return _nested(
        (path, jax.ShapeDtypeStruct(leaf.shape, dtype_of(path), sharding=device)) for path, leaf in stored.items()
    )


def _nested(pairs: Iterable[tuple[_Path, Any]]) -> Params:
    """The inverse of `leaves`."""
    tree: Params = {}
    for path, leaf in pairs:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _converted(params: Params, abstract: Params) -> Params:
    """The tree in the wanted dtypes, module by module and in place, so that memory peaks one matrix above what is stored."""
    for key, wanted in abstract.items():
        if isinstance(wanted, dict):
            params[key] = _converted(params[key], wanted)
        elif key != SCALE:
            _convert_leaf(params, key, wanted.dtype)
    return params


def _convert_leaf(module: Params, key: str | int, wanted: np.dtype) -> None:
    if wanted == np.int8 and module[key].dtype != np.int8:
        module[key], module[SCALE] = jax.block_until_ready(_quantize(module[key]))
    elif wanted != np.int8 and module[key].dtype == np.int8:
        module[key] = jax.block_until_ready(_dequantize(module[key], module.pop(SCALE), wanted))
    else:
        module[key] = narrow(module[key], wanted)


_quantize = jax.jit(quantize_rows)
_dequantize = jax.jit(dequantize_rows, static_argnums=2)


def _stored_tree(model_dir: pathlib.Path, metadata: Any, abstract: Params) -> _Leaves:
    """Stored shapes and dtypes by path, keyed as `abstract`, once they are known to fit that: scales behind int8 matrices.

    Raises:
      CheckpointError: they do not fit, or are not there.
    """
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    if tree is None:
        raise CheckpointError(f"{model_dir / 'params'}: absent or damaged; convert the checkpoint again")
    by_name = {".".join(map(str, path)): leaf for path, leaf in leaves(tree)}
    expected = {path: tuple(leaf.shape) for path, leaf in leaves(abstract) if path[-1] != SCALE}
    for path, shape in list(expected.items()):
        leaf = by_name.get(".".join(map(str, path)))
        if leaf is not None and leaf.dtype == np.int8:
            expected[*path[:-1], SCALE] = shape[:1]
    paths = {".".join(map(str, path)): path for path in expected}
    found = {name: tuple(leaf.shape) for name, leaf in by_name.items()}
    problems = mismatches(found, {name: expected[path] for name, path in paths.items()})
    if problems:
        raise CheckpointError(
            f"{model_dir}: params do not fit config.json: {summary(problems)} (convert the checkpoint again)"
        )
    return {path: by_name[name] for name, path in paths.items()}


def num_bytes(params: Params) -> int:
    """Bytes of all arrays in the tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
