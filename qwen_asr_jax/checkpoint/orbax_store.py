"""Orbax directories: converted checkpoints that load without renaming or casting.

OUT/config.json, generation_config.json, tokenizer files   as in the source
OUT/qwen_asr_jax.json                                      format version, policy, source layout
OUT/params/                                                the parameter tree, in the policy's dtypes
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from qwen_asr_jax.checkpoint.key_map import leaves, mismatches, summary
from qwen_asr_jax.config import read_json
from qwen_asr_jax.errors import CheckpointError, OutputError
from qwen_asr_jax.ops.cast import narrow
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Params

FORMAT = 1
"""Version of the parameter tree's names and axis orders; raised when either changes."""

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
        "files": _sizes(out_dir / "params"),
    }
    (out_dir / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def restore(model_dir: pathlib.Path, abstract: Params) -> Params:
    """Reads the parameter tree onto the default device, cast to the dtypes of `abstract` where they differ.

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

            def target(wanted: Any, found: Any) -> jax.ShapeDtypeStruct:
                # Orbax casts while it reads, but without saturating: into float16 it must be done here.
                dtype = found.dtype if wanted.dtype == np.float16 else wanted.dtype
                return jax.ShapeDtypeStruct(wanted.shape, dtype, sharding=device)

            params = checkpointer.restore(path, jax.tree.map(target, abstract, stored))
            return _narrowed(params, abstract)
    except CheckpointError:
        raise
    except Exception as e:  # orbax and TensorStore raise all kinds, some with pages of text
        first_line = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise CheckpointError(f"{path}: cannot be restored ({first_line}); convert the checkpoint again") from None


def _sizes(params_dir: pathlib.Path) -> dict[str, int]:
    """Bytes of every file of an orbax directory, by relative path."""
    return {str(p.relative_to(params_dir)): p.stat().st_size for p in sorted(params_dir.rglob("*")) if p.is_file()}


def _narrowed(params: Params, abstract: Params) -> Params:
    """The tree in the wanted dtypes, leaf by leaf and in place, so that memory peaks one leaf above the result."""
    for key, wanted in abstract.items():
        params[key] = _narrowed(params[key], wanted) if isinstance(wanted, dict) else narrow(params[key], wanted.dtype)
    return params


def _stored_tree(model_dir: pathlib.Path, metadata: Any, abstract: Params) -> Params:
    """The tree of stored shapes and dtypes, keyed as `abstract`, once it is known to fit that.

    Raises:
      CheckpointError: it does not fit, or is not there.
    """
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    if tree is None:
        raise CheckpointError(f"{model_dir / 'params'}: absent or damaged; convert the checkpoint again")
    by_name = {".".join(map(str, path)): leaf for path, leaf in leaves(tree)}
    found = {name: tuple(leaf.shape) for name, leaf in by_name.items()}
    wanted = {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in leaves(abstract)}
    problems = mismatches(found, wanted)
    if problems:
        raise CheckpointError(
            f"{model_dir}: params do not fit config.json: {summary(problems)} (convert the checkpoint again)"
        )
    return jax.tree_util.tree_map_with_path(lambda path, _: by_name[".".join(str(k.key) for k in path)], abstract)


def num_bytes(params: Params) -> int:
    """Bytes of all arrays in the tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
